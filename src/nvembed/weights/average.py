"""Averages training states: the mean often combines the strengths of each state."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from nvembed.errors import InputError, OutputError, WeightsError
from nvembed.weights.adapter import (
    ADAPTER_CONFIG,
    BACKBONE_PREFIX,
    Adapter,
    json_bytes,
    peft_names,
    read_adapter,
    write_folder,
)
from nvembed.weights.tensors import ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS, read_json


def average(
    states: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    shares: Sequence[float] | None = None,
) -> Adapter:
    """Write the weighted mean of several states of one base checkpoint as a new state.

    Paper: Wortsman et al. 2022, "Model soups". The weights are averaged, not the factors of adapters: the
    mean of ``B_i A_i`` is exactly an adapter whose rank is the sum of their ranks.

    Numbers keep the first state's dtype and are rounded once. All states are in memory at the same time.

    Args:
        states: two or more, such as a run's ``best``: adapters in peft's format with their poolers, or
            fully fine-tuned backbones.
        folder: the new state; it must not exist.
        shares: the weight of each state, above 0; they are divided by their sum. ``None``: equal weights.

    Raises:
        InputError: there are fewer than two states, or not one share above 0 for each.
        WeightsError: the states change different tensors; see also ``read_adapter``.
        OutputError: the folder exists or cannot be written.
    """
    folder, paths = Path(folder), [Path(state) for state in states]
    if len(paths) < 2:
        raise InputError(f"expected two or more states to average, got {len(paths)}")
    shares = [1.0] * len(paths) if shares is None else list(shares)
    if len(shares) != len(paths) or not all(0 < share < float("inf") for share in shares):
        raise InputError(f"shares are {shares}: expected {len(paths)} numbers above 0, one per state")
    if folder.exists():
        raise OutputError(f"{folder} exists already: remove it, or write to another path")
    weights = [share / sum(shares) for share in shares]
    adapters = [read_adapter(path) for path in paths]
    first = adapters[0]
    for path, other in zip(paths[1:], adapters[1:], strict=True):
        _check_alike(first, other, f"{paths[0]} and {path}")
    mean = Adapter(
        first.scale,
        pairs={name: _pair(name, adapters, weights) for name in first.pairs},
        replaced={
            name: _sum([one.replaced[name] for one in adapters], weights).contiguous()
            for name in first.replaced
        },
    )
    files: dict[str, dict[str, Tensor]] = {ADAPTER_TENSORS: peft_names(mean.pairs)}
    files |= {BACKBONE_TENSORS: {}, POOLER_TENSORS: {}}
    for name, value in mean.replaced.items():
        files[BACKBONE_TENSORS if name.startswith(BACKBONE_PREFIX) else POOLER_TENSORS][name] = value
    others = {ADAPTER_CONFIG: _config(paths[0], mean)} if mean.pairs else {}
    write_folder(folder, {file: values for file, values in files.items() if values}, others)
    return mean


def _check_alike(one: Adapter, other: Adapter, which: str) -> None:
    ours, theirs = one.shapes, other.shapes
    differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differ:
        raise WeightsError(
            f"{which} change different tensors ({len(differ)}, such as {differ[0]}): expected states of one "
            "checkpoint with the same adapter settings"
        )


def _pair(name: str, adapters: Sequence[Adapter], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    parts = [one.pairs[name] for one in adapters]
    factors = [weight * one.scale / adapters[0].scale for weight, one in zip(weights, adapters, strict=True)]
    dtype = parts[0][0].dtype
    a = torch.cat([a.to(dtype) for a, _ in parts])
    b = torch.cat([(f * b.float()).to(dtype) for f, (_, b) in zip(factors, parts, strict=True)], 1)
    return a, b


def _sum(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(values[0], dtype=torch.float32)
    for value, weight in zip(values, weights, strict=True):
        total += weight * value.float()
    return total.to(values[0].dtype)


def _config(state: Path, mean: Adapter) -> bytes:
    alpha = mean.scale * mean.rank
    whole = int(alpha) if alpha == int(alpha) else alpha
    return json_bytes(read_json(state / ADAPTER_CONFIG) | {"r": mean.rank, "lora_alpha": whole})
