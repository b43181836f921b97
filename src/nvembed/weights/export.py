"""Exports a trained model in its smallest form: adapter, pooler, configs, tokenizer, name of the backbone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nvembed.errors import InputError, OutputError
from nvembed.weights.adapter import (
    ADAPTER_CONFIG,
    BACKBONE_PREFIX,
    Adapter,
    check_fit,
    json_bytes,
    peft_names,
    read_adapter,
    write_folder,
)
from nvembed.weights.backbone import Base
from nvembed.weights.card import model_card
from nvembed.weights.checkpoint import find_backbone, name_base
from nvembed.weights.low_rank import extract
from nvembed.weights.model_config import write_config
from nvembed.weights.tensors import ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS, Checkpoint, read_json


@dataclass(frozen=True)
class Exported:
    """A summary of the files that were written."""

    base: Base
    dtype: str
    adapter_numbers: int
    pooler_numbers: int
    size_bytes: int  # of all files
    error: float | None  # of an extracted adapter: |D - B A| / |D|, where D is the change of the backbone


def export(
    folder: str | os.PathLike[str],
    model: Checkpoint,
    state: Path,
    *,
    base: str,
    rank: int | None = None,
    dtype: torch.dtype | None = None,
    licence: str | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Exported:
    """Write a trained state as a model's folder without its backbone (`weights.backbone`).

    Args:
        model: the checkpoint that was trained.
        state: of the training run: an adapter in peft's format and a pooler, or a whole backbone.
        base: the source of the backbone: a path, a hub id, or an installed package with one GGUF file.
        rank: write the difference between the trained backbone and ``base`` as an adapter of this rank
            (`low_rank.extract`). ``None`` keeps the state's adapter.
        dtype: of the stored tensors; ``None`` is bfloat16 if that changes no value, else the state's dtype.
        licence: of the model, for its card.
        files: contents of further files, by name.

    Raises:
        InputError: the backbone was fully fine-tuned and there is no rank, or the rank is below 1.
        WeightsError, MissingExtraError, DownloadError: see `read_adapter` and `name_base`.
        OutputError: the folder exists, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise OutputError(f"{folder} exists already: remove it, or write to another path")
    if rank is not None and rank < 1:
        raise InputError(f"rank is {rank}: expected 1 or more")
    adapter = read_adapter(state)
    check_fit(adapter, model.tensors, str(model.folder))
    if rank is None and any(name.startswith(BACKBONE_PREFIX) for name in adapter.replaced):
        raise InputError(
            f"{state} has a fully fine-tuned backbone: pass a rank to write its change as an adapter, or "
            "write a whole checkpoint with `nvembed merge`"
        )
    origin = name_base(base, model, folder, same=rank is None)
    pairs, whole, error, config = adapter.pairs, {}, None, {}
    if rank is not None:
        extracted = extract(model, adapter, find_backbone(origin, folder), rank)
        pairs, whole, error = extracted.pairs, extracted.whole, extracted.error
        config = extracted.peft_config()
    elif pairs:
        config = read_json(state / ADAPTER_CONFIG)
    parts = {
        ADAPTER_TENSORS: peft_names(pairs),
        BACKBONE_TENSORS: whole,
        POOLER_TENSORS: _pooler(model, adapter),
    }
    stored = _stored(parts, dtype)
    others = {**_others(folder.name, model, origin, licence), **(files or {})}
    if pairs:
        others[ADAPTER_CONFIG] = json_bytes(config | {"base_model_name_or_path": origin.name})
    adapted, pooled = (sum(v.numel() for v in parts[f].values()) for f in (ADAPTER_TENSORS, POOLER_TENSORS))
    return Exported(origin, _dtypes(stored), adapted, pooled, write_folder(folder, stored, others), error)


def _others(name: str, model: Checkpoint, origin: Base, licence: str | None) -> dict[str, bytes]:
    """Return the config that names the base, the model card, and the tokenizer's files."""
    config = write_config(model.config, model.text, "float32")
    config["nvembed"]["base"] = origin.model_dump(exclude_none=True)
    hub = origin.name if origin.source == "hub" else None
    card = model_card(name, model.config, model.text, base=origin.label, base_model=hub, licence=licence)
    return {"config.json": json_bytes(config), "README.md": card.encode(), **model.tokenizer_files()}


def _stored(parts: dict[str, dict[str, Tensor]], dtype: torch.dtype | None) -> dict[str, dict[str, Tensor]]:
    """Return the files that are not empty, in ``dtype``, or in bfloat16 if that changes no value."""
    values = [value for part in parts.values() for value in part.values()]
    if dtype is None and all(torch.equal(value, value.bfloat16().to(value.dtype)) for value in values):
        dtype = torch.bfloat16
    return {
        file: {name: value.to(dtype or value.dtype).contiguous() for name, value in part.items()}
        for file, part in parts.items()
        if part
    }


def _pooler(model: Checkpoint, adapter: Adapter) -> dict[str, Tensor]:
    """Return the trained pooler, or the model's own if the state has none, as adapters of peft."""
    names = [name for name in model.tensors if not name.startswith(BACKBONE_PREFIX)]
    return {name: adapter.replaced[name] if name in adapter.replaced else model.read(name) for name in names}


def _dtypes(stored: dict[str, dict[str, Tensor]]) -> str:
    dtypes = {str(value.dtype).removeprefix("torch.") for part in stored.values() for value in part.values()}
    return " and ".join(sorted(dtypes))
