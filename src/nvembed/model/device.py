"""Devices: their names, and how many tokens fit on one at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from nvembed.errors import InputError
from nvembed.model.config import ModelConfig

# Dtypes that a model runs in.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# CPU: each batch reads all weights, so it should be large; its activations should fit in the cache.
# Measured: docs/log.md.
CPU_BATCH_TOKENS = 2048
CUDA_BATCH_TOKENS = (1024, 131_072)
CUDA_SHARE = 0.6  # of the free memory: the rest is for the kernels' workspace and fragmentation


def activation_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the bytes of activations per packed token in inference, at the widest point of a layer."""
    backbone = config.backbone
    attention = 3 * (backbone.num_heads + 2 * backbone.num_kv_heads) * backbone.head_dim
    width = 4 * backbone.hidden_size + max(3 * backbone.intermediate_size, attention)
    return width * dtype.itemsize


def batch_tokens_for(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Return the token budget of a batch: a constant on CPU; on CUDA it depends on the free memory."""
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    free_bytes, _ = torch.cuda.mem_get_info(device)
    low, high = CUDA_BATCH_TOKENS
    return max(low, min(high, int(CUDA_SHARE * free_bytes / activation_bytes(config, dtype))))


def parse_devices(device: str | Sequence[str] | None) -> list[torch.device]:
    """Return the devices; ``None`` is ``cuda`` if there is one, else ``cpu``.

    Raises:
        InputError: the name is not that of a CPU or CUDA device, or this machine does not have the device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    fault = InputError(f"device is {device!r}: expected 'cpu', 'cuda', 'cuda:1' or several of them")
    try:
        names = [device] if isinstance(device, str) else list(device)
        devices = [torch.device(name) for name in names]
    except (RuntimeError, TypeError) as error:
        raise fault from error
    if not devices or any(each.type not in ("cpu", "cuda") for each in devices):
        raise fault
    count = torch.cuda.device_count()
    for each in devices:
        if each.type == "cuda" and (each.index or 0) >= count:
            raise InputError(f"device is {str(each)!r}, but torch sees {count} CUDA devices on this machine")
    return devices


@contextmanager
def memory_errors(message: str) -> Iterator[None]:
    """Turn torch's several out-of-memory errors into MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise MemoryError(message) from error
        raise


def to_device(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy from CPU; to CUDA from page-locked memory, so that the host does not wait for the device."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


class OnHost:
    """The copy of a tensor on its way to the CPU; on CUDA, work that is queued later does not delay it."""

    def __init__(self, values: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if values.is_cuda:
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._event = torch.cuda.current_stream(values.device).record_event()
        else:
            self._host = values

    def numpy(self) -> np.ndarray:
        """Wait for the copy and return it."""
        if self._event is not None:
            self._event.synchronize()
        return np.asarray(self._host.numpy())


def no_pause() -> None:
    """The ``pause`` of a batch that nothing interrupts."""


def paced(pause: Callable[[], None] | None, device: torch.device) -> Callable[[], None]:
    """Return ``pause``; on CUDA it first waits for the device, so that work it starts there runs soon."""
    if pause is None:
        return no_pause
    if device.type != "cuda":
        return pause
    pending: deque[torch.cuda.Event] = deque()

    def wait_and_pause() -> None:
        pending.append(torch.cuda.current_stream(device).record_event())
        if len(pending) > 1:  # the host stays one pause ahead, so that the device never waits for it
            pending.popleft().synchronize()
        pause()

    return wait_and_pause


def randn(*size: int) -> torch.Tensor:
    """Return ``torch.randn(*size)``; on the meta device an empty tensor.

    Every model is built on the meta device first. There, torch's own function imports sympy and 800 other
    modules, which takes 1.3 s.
    """
    values = torch.empty(*size)
    return values if values.is_meta else values.normal_()
