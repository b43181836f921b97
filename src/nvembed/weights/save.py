"""Writes checkpoints in the released layout, whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save, save_file
from torch import Tensor

from nvembed.errors import OutputError
from nvembed.files import atomic_path
from nvembed.model.config import ModelConfig
from nvembed.text.tokenize import TextSettings
from nvembed.weights.adapter import json_bytes
from nvembed.weights.model_config import write_config
from nvembed.weights.sums import write_sums
from nvembed.weights.tensors import INDEX, SINGLE, read_json

SHARD_BYTES = 5_000_000_000  # the released shards are slightly smaller


def save_checkpoint(
    folder: str | os.PathLike[str],
    config: ModelConfig,
    text: TextSettings,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    tokenizer_files: Mapping[str, bytes],
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    merged: Sequence[str] = (),
) -> None:
    """Write ``config.json``, the tokenizer's files and safetensors shards of at most ``shard_bytes``.

    Args:
        tensors: names and values, in the order of storage; one shard at a time is in memory.
        dtype: of all stored tensors; ``None`` keeps each tensor's own.
        merged: digests of the adapters that are merged into the weights, kept in ``config.json``.

    Raises:
        OutputError: ``folder`` exists, or the disk is full; nothing is left half-written.
    """

    def files(stored: str) -> dict[str, bytes]:
        form = write_config(config, text, stored)
        if merged:
            form["nvembed"]["merged"] = list(merged)
        return {**tokenizer_files, "config.json": json_bytes(form)}

    save_model(folder, tensors, files, dtype=dtype, shard_bytes=shard_bytes)


def save_model(
    folder: str | os.PathLike[str],
    tensors: Iterable[tuple[str, Tensor]],
    files: Callable[[str], Mapping[str, bytes]],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors shards and, beside them, the files that ``files`` returns by name.

    Args:
        files: called with the name of the dtype that the tensors are stored as.

    Raises:
        OutputError: ``folder`` exists, or the disk is full; nothing is left half-written.
    """
    with atomic_path(folder) as work:
        work.mkdir()
        try:
            stored = _write_shards(work, tensors, dtype, shard_bytes)
        except SafetensorError as error:
            raise OutputError(f"could not write {folder}: {error}; nothing was left behind") from error
        for name, content in files(stored).items():
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_bytes(content)
        write_sums(work)


def safetensors_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of a safetensors file."""
    content: bytes = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"format": "pt"})
    return content


def _write_shards(
    work: Path, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, shard_bytes: int
) -> str:
    """Write the shards and, for more than one, their index; return the dtype they are stored as."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    pending_bytes = total_bytes = 0
    dtypes: set[torch.dtype] = set()

    def flush() -> None:
        part = work / f"part-{len(shards)}"
        save_file(pending, part, metadata={"format": "pt"})
        part.chmod(0o644)  # the library makes it readable by its owner only
        shards.append(list(pending))
        pending.clear()

    for name, value in tensors:
        value = value.detach().to(device="cpu", dtype=dtype or value.dtype).contiguous()
        if pending and pending_bytes + value.nbytes > shard_bytes:
            flush()
            pending_bytes = 0
        pending[name] = value
        pending_bytes += value.nbytes
        total_bytes += value.nbytes
        dtypes.add(value.dtype)
    flush()
    if len(shards) == 1:
        (work / "part-0").rename(work / SINGLE)
    else:
        weight_map = {}
        for number, names in enumerate(shards):
            file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
            (work / f"part-{number}").rename(work / file)
            weight_map.update(dict.fromkeys(names, file))
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        (work / INDEX).write_bytes(json_bytes(index))
    return str(next(iter(dtypes)) if len(dtypes) == 1 else torch.float32).removeprefix("torch.")


# The files of a model; code and pickles are not copied.
MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".md")


def copy_model(source: Path, folder: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Copy a model's folder without code and pickles; ``folder`` appears whole or not at all.

    The configs lose ``auto_map``, which names the code.

    Args:
        files: contents of further files by name, which may replace copied files.

    Raises:
        OutputError: the folder exists, or cannot be written.
    """

    def others(place: str, names: list[str]) -> set[str]:
        model_files = {name for name in names if Path(name).suffix in MODEL_FILES or name.startswith("LICEN")}
        return {name for name in names if name not in model_files and not (Path(place) / name).is_dir()}

    with atomic_path(folder) as temporary:
        shutil.copytree(source, temporary, ignore=others)
        for path in (*temporary.rglob("config.json"), *temporary.rglob("tokenizer_config.json")):
            config = read_json(path)
            if config.pop("auto_map", None) is not None:
                path.write_bytes(json_bytes(config))
        for name, content in (files or {}).items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
        write_sums(temporary)
