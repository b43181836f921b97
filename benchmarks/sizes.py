"""Models of any size with the architecture of NV-Embed v2, to try a script on."""

from dataclasses import replace

from nvembed.model.config import ModelConfig, PoolerConfig


def tiny(config: ModelConfig) -> ModelConfig:
    """The same architecture, small enough for a test."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2}
    backbone = replace(config.backbone, head_dim=16, **sizes)
    return ModelConfig(backbone, PoolerConfig(num_latents=8, num_heads=2, head_dim=64))
