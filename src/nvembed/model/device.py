"""Devices: which are asked for, and how many tokens fit on one at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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
        InputError: no name of a CPU or CUDA device, or a CUDA device that is not here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    fault = InputError(f"device is {device!r}: expected 'cpu', 'cuda', 'cuda:1' or several of them")
    try:
        names = [device] if isinstance(device, str) else list(device)
        devices = [torch.device(name) for name in names]
    except (RuntimeError, TypeError) as error:
        raise fault from error
    if not devices or any(found.type not in ("cpu", "cuda") for found in devices):
        raise fault
    for found in devices:
        count = torch.cuda.device_count()
        if found.type == "cuda" and (found.index or 0) >= count:
            raise InputError(f"device is {str(found)!r}, but torch sees {count} CUDA devices here")
    return devices


@contextmanager
def memory_errors(message: str) -> Iterator[None]:
    """Raise torch's several ways of being out of memory as MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise MemoryError(message) from error
        raise


def paced(pause: Callable[[], None] | None, device: torch.device) -> Callable[[], None]:
    """Return ``pause``, on CUDA behind a wait for the device: work put in its queue there must run soon."""
    if pause is None:
        return lambda: None
    if device.type != "cuda":
        return pause
    behind: deque[torch.cuda.Event] = deque()

    def wait_and_pause() -> None:
        behind.append(torch.cuda.current_stream(device).record_event())
        if len(behind) > 1:  # one pause ahead: the device never waits for the host
            behind.popleft().synchronize()
        pause()

    return wait_and_pause


def randn(*size: int) -> torch.Tensor:
    """Return ``torch.randn(*size)``; on the meta device an empty tensor.

    Every checkpoint is built on the meta device, where torch's own function would import sympy and 800 other
    modules, which takes 1.3 s.
    """
    values = torch.empty(*size)
    return values if values.is_meta else values.normal_()
