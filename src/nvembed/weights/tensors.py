"""The files of a model's folder: headers of safetensors, names and shapes, one tensor at a time; JSON."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.config import ModelConfig
from nvembed.model.nv_embed import NVEmbed

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bare values of other types are no weights
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ADAPTER_TENSORS = "adapter_model.safetensors"
POOLER_TENSORS = "pooler.safetensors"
BACKBONE_TENSORS = "backbone.safetensors"  # of a backbone, the tensors that were trained whole
CONFIG_BYTES = 256 << 20  # the largest JSON file of a model that is read: indexes of many shards are smaller
HEAD_NUMBERS = 2048  # of each tensor, the first so many numbers are read to tell models apart


@dataclass(frozen=True)
class StoredTensor:
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F16, BF16, F32


def read_tensor(stored: StoredTensor, name: str, rows: int | None = None) -> Tensor:
    """Read one tensor, or its first rows.

    The file is mapped for this call alone, so that its pages do not stay in memory.
    """
    try:
        with safe_open(stored.file, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[:rows]
            return tensor
    except (SafetensorError, OSError) as error:
        raise _unreadable(stored.file, error) from error


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the header of every safetensors file of a folder: name -> file, shape, dtype."""
    found: dict[str, StoredTensor] = {}
    for shard in shard_names(folder):
        found |= file_tensors(folder / shard)
    return found


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file: name -> file, shape, dtype."""
    found: dict[str, StoredTensor] = {}
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} is not a regular file: fetch it again")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                found[name] = StoredTensor(path, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return found


def shard_names(folder: Path) -> list[str]:
    """Return the names of a checkpoint's weight files, whether they are there or not.

    Of an adapter's folder, they are those of its files that are there.
    """
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX).get("weight_map")
        files = weight_map.values() if isinstance(weight_map, dict) else ()
        if not files or not all(isinstance(name, str) for name in files):
            raise WeightsError(f"{folder / INDEX} has no weight_map of tensors to files: copy the file again")
        for name in files:
            if not re.fullmatch(r"[\w.-]+\.safetensors", name) or name.startswith("."):
                raise WeightsError(
                    f"{folder / INDEX} names {name!r:.80}; expected .safetensors files of this folder"
                )
        return sorted(set(files))
    if (folder / SINGLE).is_file():
        return [SINGLE]
    parts = (ADAPTER_TENSORS, BACKBONE_TENSORS, POOLER_TENSORS)
    if there := [name for name in parts if (folder / name).is_file()]:
        return there
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise WeightsError(
            f"{folder} has only pickled weights ({', '.join(pickles[:3])}), which can run code when read: "
            "convert them to safetensors where you trust them"
        )
    raise WeightsError(f"{folder} has no weights: expected {SINGLE}, or shards with {INDEX}")


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that a checkpoint needs and ``folder`` does not have."""
    needed = ["config.json", "tokenizer.json", "tokenizer_config.json"]
    try:
        needed += shard_names(folder)
    except (ConfigError, WeightsError):
        needed.append(SINGLE)
    return [name for name in needed if not (folder / name).is_file()]


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor a checkpoint of ``config`` holds (304 in NV-Embed v2)."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in NVEmbed(config).state_dict().items()}


def compare_tensors(
    folder: Path, found: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]]
) -> None:
    """Raise WeightsError naming everything missing, unexpected, misshapen and not stored as floats."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} is {found[name].shape}, expected {expected[name]}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name]
    ]
    no_floats = [
        f"{name} is {found[name].dtype}, expected {', '.join(ITEM_BYTES)}"
        for name in sorted(found)
        if found[name].dtype not in ITEM_BYTES
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "misshapen": misshapen, "no floats": no_floats}
    faults = [
        f"{len(names)} {kind}: {'; '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if faults:
        lines = "\n  ".join(faults)
        raise WeightsError(f"the weights in {folder} do not fit its config.json:\n  {lines}")


def values_fingerprint(
    tensors: Mapping[str, StoredTensor], read: Callable[[str, int | None], Tensor], names: Iterable[str]
) -> str:
    """Return 32 hex digits that name the values of some tensors, as float32, in whatever form they lie."""
    digest = hashlib.sha256()
    for name in sorted(names):
        head = tensor_head(tensors[name], partial(read, name)).float().view(torch.uint8)
        digest.update(repr((name, tensors[name].shape)).encode() + head.numpy().tobytes())
    return digest.hexdigest()[:32]


def tensor_head(stored: StoredTensor, read: Callable[[int], Tensor]) -> Tensor:
    """The first numbers of a tensor, without reading much more."""
    width = math.prod(stored.shape[1:])
    return read(-(-HEAD_NUMBERS // width)).flatten()[:HEAD_NUMBERS].contiguous()


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a regular file: copy it again")
        if path.stat().st_size > CONFIG_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size:,} bytes: it is not a model's config")
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise incomplete(path) from error
    except PermissionError as error:
        raise ConfigError(f"{path} cannot be read: permission denied; check its owner and mode") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON ({error}): copy the file again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds a {type(value).__name__}: expected a JSON object")
    return value


def incomplete(path: Path) -> ConfigError:
    return ConfigError(f"{path.parent} has no {path.name}: it is not a complete model folder")


def _unreadable(path: Path, error: Exception) -> WeightsError:
    """Say why: the library calls every file it cannot open missing."""
    if not path.exists():
        return WeightsError(f"{path} is missing: fetch it again")
    if not os.access(path, os.R_OK):
        return WeightsError(f"{path} cannot be read: permission denied; check its owner and mode")
    size = path.stat().st_size
    return WeightsError(f"{path} ({size:,} bytes) is truncated or corrupt ({error}): fetch it again")
