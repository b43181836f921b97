"""How many tokens fit: the activations of one forward pass against the free memory of a device."""

import torch

from nvembed.model.config import ModelConfig

# CPU: weights are read once per batch, so a batch should be large against them, yet its activations small
# against the cache. Measured: docs/log.md.
CPU_BATCH_TOKENS = 2048
CUDA_BATCH_TOKENS = (1024, 131_072)
CUDA_SHARE = 0.6  # of the free memory: the rest is for the kernels' workspace and fragmentation


def activation_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of activations per packed token in inference: the widest moment of one layer."""
    backbone = config.backbone
    attention = 3 * (backbone.num_heads + 2 * backbone.num_kv_heads) * backbone.head_dim
    width = 4 * backbone.hidden_size + max(3 * backbone.intermediate_size, attention)
    return width * dtype.itemsize


def batch_tokens_for(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Return the token budget of a batch: a constant on CPU, from the free memory on CUDA."""
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    free_bytes, _ = torch.cuda.mem_get_info(device)
    low, high = CUDA_BATCH_TOKENS
    return max(low, min(high, int(CUDA_SHARE * free_bytes / activation_bytes(config, dtype))))
