"""Devices: which are asked for, and how many tokens fit on one at a time."""

from collections.abc import Sequence

import torch

from nvembed.errors import InputError
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


def parse_devices(device: str | Sequence[str] | None) -> list[torch.device]:
    """Return the devices named; ``None`` is ``cuda`` where there is one, else ``cpu``.

    Raises:
        InputError: a name torch does not know, or a CUDA device that is not here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    names = [device] if isinstance(device, str) else list(device)
    if not names:
        raise InputError("device is an empty list: expected 'cpu', 'cuda', 'cuda:1' or several of them")
    try:
        devices = [torch.device(name) for name in names]
    except RuntimeError as error:
        raise InputError(f"device is {device!r}: expected 'cpu', 'cuda', 'cuda:1' or several") from error
    for found in devices:
        count = torch.cuda.device_count()
        if found.type == "cuda" and (found.index or 0) >= count:
            raise InputError(f"device is {str(found)!r}, but torch sees {count} CUDA devices here")
    return devices
