"""States of training averaged: one model between them, which often keeps what each is better at."""

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
    """Write the weighted mean of states of one base checkpoint as a state of its own.

    The weights are averaged (Wortsman et al. 2022, "Model soups"), not the factors of adapters: the mean of
    ``B_i A_i`` is an adapter of all their ranks together, exactly. Numbers keep the first state's dtype; each
    is rounded once. All states are in memory at the same time.

    Args:
        states: two or more, such as a run's ``best``: adapters in peft's format with their poolers, or
            backbones trained whole.
        folder: the new state; it must not exist.
        shares: of each state in the mean, above 0; ``None`` is the same for all. Divided by their sum.

    Raises:
        InputError: fewer than two states, or shares that are not as many, or not above 0.
        WeightsError: states that change different tensors; see also ``read_adapter``.
        OutputError: the folder exists, or cannot be written.
    """
    folder, paths = Path(folder), [Path(state) for state in states]
    if len(paths) < 2:
        raise InputError(f"expected two or more states to average, got {len(paths)}")
    given = [1.0] * len(paths) if shares is None else list(shares)
    if len(given) != len(paths) or not all(0 < share < float("inf") for share in given):
        raise InputError(f"shares are {given}: expected {len(paths)} numbers above 0, one per state")
    if folder.exists():
        raise OutputError(f"{folder} exists already: remove it, or write to another path")
    weights = [share / sum(given) for share in given]
    adapters = [read_adapter(path) for path in paths]
    first = adapters[0]
    for path, other in zip(paths[1:], adapters[1:], strict=True):
        _check_alike(first, other, f"{paths[0]} and {path}")
    made = Adapter(
        first.scale,
        pairs={name: _pair(name, adapters, weights) for name in first.pairs},
        replaced={
            name: _sum([one.replaced[name] for one in adapters], weights).contiguous()
            for name in first.replaced
        },
    )
    files: dict[str, dict[str, Tensor]] = {ADAPTER_TENSORS: peft_names(made.pairs)}
    files |= {BACKBONE_TENSORS: {}, POOLER_TENSORS: {}}
    for name, value in made.replaced.items():
        files[BACKBONE_TENSORS if name.startswith(BACKBONE_PREFIX) else POOLER_TENSORS][name] = value
    others = {ADAPTER_CONFIG: _config(paths[0], made)} if made.pairs else {}
    write_folder(folder, {file: values for file, values in files.items() if values}, others)
    return made


def _check_alike(one: Adapter, other: Adapter, which: str) -> None:
    ours, theirs = one.shapes, other.shapes
    differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differ:
        raise WeightsError(
            f"{which} change different tensors ({len(differ)}, such as {differ[0]}): expected states of "
            "one checkpoint and one kind of adapter"
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


def _config(state: Path, made: Adapter) -> bytes:
    alpha = made.scale * made.rank
    whole = int(alpha) if alpha == int(alpha) else alpha
    return json_bytes(read_json(state / ADAPTER_CONFIG) | {"r": made.rank, "lora_alpha": whole})
