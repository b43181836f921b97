"""Sizes and choices that define a model; NV-Embed v2's own as a constant."""

from dataclasses import dataclass, field
from typing import Literal

Architecture = Literal["mistral", "llama", "qwen2", "qwen3"]
PoolingKind = Literal["latent", "mean", "eos", "self"]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's piecewise scaling of rotary frequencies (config key ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclass(frozen=True)
class BackboneConfig:
    """The decoder: Mistral, Llama, Qwen2 (biases on q, k, v) or Qwen3 (RMS norms on q and k)."""

    architecture: Architecture
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    causal: bool = field(default=False, repr=False)
    """Keep the causal mask: the paper's ablation. Not shown, so that other models keep their fingerprints."""

    @property
    def qkv_bias(self) -> bool:
        return self.architecture == "qwen2"

    @property
    def qk_norm(self) -> bool:
        return self.architecture == "qwen3"


@dataclass(frozen=True)
class PoolerConfig:
    """Latent attention's sizes. ``head_dim`` is per head: NV-Embed v2's inner width is 8 x 4096."""

    num_latents: int = 512
    num_heads: int = 8
    head_dim: int = 4096
    ffn_mult: int = 4


@dataclass(frozen=True)
class ModelConfig:
    """A whole model. ``pooler`` is read for ``pooling`` ``latent`` and ``self`` (number of heads) only."""

    backbone: BackboneConfig
    pooler: PoolerConfig
    pooling: PoolingKind = "latent"


NV_EMBED_V2 = ModelConfig(
    backbone=BackboneConfig(
        architecture="mistral",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        max_position=32768,
    ),
    pooler=PoolerConfig(),
)
