"""Several processes as one: their ranks, and what they exchange.

Every rank knows the whole batch and embeds its share. The vectors are gathered, every rank computes the same
loss of all of them and propagates the gradient of its own vectors, and parameter gradients are summed. The
result is that of one process on the whole batch. Shares may be uneven or empty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nvembed.model.nv_embed import NVEmbed

BUCKET = 32 * 1024 * 1024  # elements summed in one message


@dataclass(frozen=True)
class Ranks:
    """The rank of this process, and the number of processes. A single process needs no process group."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, own_UD: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the rows of all ranks, one rank after another; ``sizes`` are their numbers of rows.

        Shorter shares are padded for the exchange, because all ranks must send equally much.
        """
        if self.count == 1:
            return own_UD
        filled = own_UD.new_zeros(max(sizes), own_UD.shape[1])
        filled[: len(own_UD)] = own_UD
        parts = [torch.empty_like(filled) for _ in sizes]
        dist.all_gather(parts, filled)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Add each tensor up over all ranks, in place."""
        if self.count == 1:
            return
        bucket: list[Tensor] = []
        for index, tensor in enumerate(tensors):
            bucket.append(tensor)
            if index + 1 == len(tensors) or sum(part.numel() for part in bucket) >= BUCKET:
                flat = torch.cat([part.flatten() for part in bucket])
                dist.all_reduce(flat)
                for part, value in zip(bucket, torch.split(flat, [p.numel() for p in bucket]), strict=True):
                    part.copy_(value.view_as(part))
                bucket = []

    def most(self, value: int, device: torch.device) -> int:
        """Return the largest of the ranks' values."""
        return int(self._exchange(value, device, lambda tensor: dist.all_reduce(tensor, dist.ReduceOp.MAX)))

    def total(self, value: int, device: torch.device) -> int:
        """Return the sum of the ranks' values."""
        return int(self._exchange(value, device, dist.all_reduce))

    def agreed(self, value: float, device: torch.device) -> float:
        """Return the first rank's value."""
        return self._exchange(value, device, lambda tensor: dist.broadcast(tensor, 0))

    def _exchange(self, value: float, device: torch.device, exchange: Callable[[Tensor], object]) -> float:
        """Return a number after an exchange in place; float64 holds every integer up to 2^53."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, device=device, dtype=torch.float64)
        exchange(tensor)
        return float(tensor)

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()

    def stop(self) -> None:
        if self.count > 1:
            dist.destroy_process_group()


def join(device: str) -> tuple[Ranks, torch.device]:
    """Join the process group of ``torchrun``; a process that it did not start is alone.

    ``cuda`` becomes the rank's own device. CUDA ranks use NCCL, others gloo.
    """
    if not dist.is_torchelastic_launched():
        return Ranks(), torch.device(device)
    kind = torch.device(device).type
    chosen = torch.device(device)
    if kind == "cuda":
        chosen = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    return Ranks(dist.get_rank(), dist.get_world_size()), chosen


def shard(model: NVEmbed, device: torch.device, dtype: torch.dtype) -> None:
    """Spread a model's weights over the ranks (FSDP2), in place: layer by layer, the pooler, the rest.

    Weights and optimizer are float32 shards; layers compute in ``dtype``; gradients are summed in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    poolers = [model.latent_attention_model, model.self_attention_model]
    parts: list[nn.Module] = [*model.embedding_model.layers, *(part for part in poolers if part is not None)]
    for part in (*parts, model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)  # the loss is already the mean over the whole batch
        part.set_force_sum_reduction_for_comms(True)  # the only one that gloo has
