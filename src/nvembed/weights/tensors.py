"""The files of a model's folder: headers of safetensors, names and shapes, tensors one at a time, JSON."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.config import ModelConfig
from nvembed.model.nv_embed import NVEmbed
from nvembed.model.quantised import (
    GROUP,
    Scheme,
    dequantise_groups,
    dequantise_rows,
    quantise_groups,
    quantise_rows,
)
from nvembed.text.model_prompts import ModelPrompts
from nvembed.text.tokenize import TextSettings
from nvembed.text.tokenizer_json import Tokenizer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# INT8 and INT4 are ours: codes that have scales beside them. Tensors of other types are not weights.
ITEM_BYTES = {"F64": 8.0, "F32": 4.0, "F16": 2.0, "BF16": 2.0, "INT8": 1.0, "INT4": 0.5}
SCALE, ZERO = ".scale", ".zero"  # what is added to the name of a quantised tensor
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
ADAPTER_TENSORS = "adapter_model.safetensors"
POOLER_TENSORS = "pooler.safetensors"
BACKBONE_TENSORS = "backbone.safetensors"  # the tensors of a backbone that were fully fine-tuned
CONFIG_BYTES = 256 << 20  # the largest JSON file that is read; indexes of many shards are smaller
HEAD_NUMBERS = 2048  # the numbers of each tensor that fingerprints are computed from


@dataclass(frozen=True)
class StoredTensor:
    file: Path
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F16, BF16, F32; INT8 and INT4 of quantised tensors
    parts: "tuple[tuple[Path, str], ...]" = ()  # of a quantised tensor: codes, scales, zero points


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config is supported and whose tensors have the right names and shapes.

    Args:
        source: (name, first rows or None) -> values, if they are not simply those of ``tensors``: a backbone
            from elsewhere with an adapter merged into it, or names of another layout.
        tokenizer_folder: the folder of tokenizer.json; None is ``folder``.
        tokenizer: the parsed tokenizer.json, if the config depended on it.
        tokenizer_json: the content that other files of the folder give it, if they contradict it.
        prompts: of a folder in the layout of sentence-transformers; None for NV-Embed's.
        truncate_dim: the number of dimensions that are kept by default.
        notes: contradictions in the folder, and how they were resolved.
        dtype: the dtype in which a compressed model is computed by default; None for other models.
        stored_names: our name -> name in the file, for a folder in the layout of sentence-transformers.
    """

    folder: Path
    config: ModelConfig
    text: TextSettings
    tensors: dict[str, StoredTensor]
    source: Callable[[str, int | None], Tensor] | None = None
    tokenizer_folder: Path | None = None
    tokenizer: Tokenizer | None = None
    tokenizer_json: bytes | None = None
    prompts: ModelPrompts | None = None
    truncate_dim: int | None = None
    notes: tuple[str, ...] = ()
    dtype: str | None = None
    stored_names: Mapping[str, str] = field(default_factory=dict)

    def read(self, name: str, rows: int | None = None) -> Tensor:
        """Read one tensor, or its first ``rows`` rows, in the dtype it is stored in."""
        if self.source is not None:
            return self.source(name, rows)
        return read_tensor(self.tensors[name], name, rows)

    def tokenizer_files(self) -> dict[str, bytes]:
        changed = {} if self.tokenizer_json is None else {"tokenizer.json": self.tokenizer_json}
        return read_tokenizer_files(self.tokenizer_folder or self.folder) | changed


def read_tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Return the content of the tokenizer's files that a folder has, by name."""
    return {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}


def read_tensor(stored: StoredTensor, name: str, rows: int | None = None) -> Tensor:
    """Read one tensor, or its first rows; a quantised one as float32.

    The file is mapped for this call only, so that its pages do not stay in memory.
    """
    if stored.dtype == "INT8":
        return dequantise_rows(*read_parts(stored, rows))
    if stored.dtype == "INT4":
        return dequantise_groups(*read_parts(stored, rows))
    return _read(stored.file, name, rows)


def read_parts(stored: StoredTensor, rows: int | None = None) -> list[Tensor]:
    """Read codes and scales of a quantised tensor; of INT4 also the zero point of each group."""
    parts = [_read(path, name, rows) for path, name in stored.parts]
    if stored.dtype == "INT4":
        pairs, groups = parts[2], parts[1].shape[1]
        parts[2] = torch.stack((pairs & 15, pairs >> 4), 2).flatten(1)[:, :groups]
    return parts


def quantised_parts(name: str, weight: Tensor, scheme: Scheme) -> list[tuple[str, Tensor]]:
    """Quantise a matrix for a file: names and tensors. One that int4 cannot hold is int8."""
    if scheme == "int8" or weight.shape[1] % GROUP:
        codes, scale = quantise_rows(weight)
        return [(name, codes), (name + SCALE, scale)]
    return int4_parts(name, *quantise_groups(weight))


def int4_parts(name: str, packed: Tensor, scale: Tensor, zero: Tensor) -> list[tuple[str, Tensor]]:
    """Return what a file holds of codes, scales and zero points of ``quantise_groups``."""
    if zero.shape[1] % 2:
        zero = torch.nn.functional.pad(zero, (0, 1))
    return [(name, packed), (name + SCALE, scale), (name + ZERO, zero[:, ::2] | zero[:, 1::2] << 4)]


def _read(path: Path, name: str, rows: int | None) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[:rows]
            return tensor
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the header of every safetensors file of a folder: name -> file, shape, dtype."""
    stored = {
        name: tensor for shard in shard_names(folder) for name, tensor in file_tensors(folder / shard).items()
    }
    return _with_parts(stored)


def _with_parts(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Put codes, scales and zero points together: one entry with the shape of the matrix."""
    whole = dict(stored)
    for name, codes in stored.items():
        names = [part for part in (name, name + SCALE, name + ZERO) if part in stored]
        expected = {"I8": ("INT8", 1, 2), "U8": ("INT4", 2, 3)}.get(codes.dtype)
        if expected is None or len(codes.shape) != 2 or len(names) != expected[2]:
            continue
        dtype, per_byte, _ = expected
        size, width = codes.shape[0], codes.shape[1] * per_byte
        groups = width // GROUP
        shapes = [stored[part].shape for part in names[1:]]
        if shapes != ([(size,)] if dtype == "INT8" else [(size, groups), (size, -(-groups // 2))]):
            raise WeightsError(
                f"{codes.file} is damaged: {name} is {codes.shape} and its scales are {shapes}"
            )
        for part in names:
            whole.pop(part)
        parts = tuple((stored[part].file, part) for part in names)
        whole[name] = StoredTensor(codes.file, (size, width), dtype, parts)
    return whole


def file_tensors(path: Path) -> dict[str, StoredTensor]:
    """Read the header of one safetensors file: name -> file, shape, dtype."""
    tensors: dict[str, StoredTensor] = {}
    if path.exists() and not path.is_file():
        raise WeightsError(f"{path} is not a regular file: fetch it again")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                part = file.get_slice(name)
                tensors[name] = StoredTensor(path, tuple(part.get_shape()), part.get_dtype())
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return tensors


def shard_names(folder: Path) -> list[str]:
    """Return the names of a checkpoint's weight files, which may be missing; of an adapter's, if they exist.

    Raises:
        WeightsError: the folder has no weights, only pickles, or a damaged index.
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
    if present := [name for name in parts if (folder / name).is_file()]:
        return present
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise WeightsError(
            f"{folder} has only pickled weights ({', '.join(pickles[:3])}), which can run code when they are "
            "read. If you trust them, convert them to safetensors"
        )
    raise WeightsError(f"{folder} has no weights: expected {SINGLE}, or shards with {INDEX}")


def missing_files(folder: Path) -> list[str]:
    """Return the names of the files that a checkpoint needs and that ``folder`` lacks."""
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
    folder: Path, tensors: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]]
) -> None:
    """Raise WeightsError naming all tensors that are missing, unexpected, misshapen or not floats."""
    kinds = {
        "missing": sorted(expected.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - expected.keys()),
        "misshapen": [
            f"{name} is {tensors[name].shape}, expected {expected[name]}"
            for name in sorted(expected.keys() & tensors.keys())
            if tensors[name].shape != expected[name]
        ],
        "not floats": [
            f"{name} is {tensor.dtype}, expected {', '.join(ITEM_BYTES)}"
            for name, tensor in sorted(tensors.items())
            if tensor.dtype not in ITEM_BYTES
        ],
    }
    faults = [
        f"\n  {len(names)} {kind}: {'; '.join(names[:8])}{' ...' if len(names) > 8 else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if faults:
        raise WeightsError(f"the weights in {folder} do not fit its config.json:{''.join(faults)}")


def values_fingerprint(
    tensors: Mapping[str, StoredTensor], read: Callable[[str, int | None], Tensor], names: Iterable[str]
) -> str:
    """Return 32 hex digits that identify the values of tensors, as float32, whatever dtype they have."""
    digest = hashlib.sha256()
    for name in sorted(names):
        head = tensor_head(tensors[name], partial(read, name)).float().view(torch.uint8)
        digest.update(repr((name, tensors[name].shape)).encode() + head.numpy().tobytes())
    return digest.hexdigest()[:32]


def tensor_head(stored: StoredTensor, read: Callable[[int], Tensor]) -> Tensor:
    """Read the first numbers of a tensor, and not much more."""
    width = math.prod(stored.shape[1:])
    return read(-(-HEAD_NUMBERS // width)).flatten()[:HEAD_NUMBERS].contiguous()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from one of a model's files.

    Raises:
        ConfigError: the file is missing, unreadable, too large, or not a JSON object.
    """
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is not a regular file: copy it again")
        if path.stat().st_size > CONFIG_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size:,} bytes: it is not a model's config")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise incomplete(path) from error
    except PermissionError as error:
        raise ConfigError(f"{path} cannot be read: permission denied; check its owner and mode") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    return parse_json_object(content, str(path))


def parse_json_object(content: bytes, name: str) -> dict[str, Any]:
    """Parse a JSON object; ``name`` is the file's in messages.

    Raises:
        ConfigError: the content is not a JSON object.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not JSON ({error}): copy the file again") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} holds a {type(value).__name__}: expected a JSON object")
    return value


def token_text(roles: Mapping[str, Any], role: str) -> str | None:
    """Return a token of tokenizer_config.json, which is a string or an object with ``content``."""
    value = roles.get(role)
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def incomplete(path: Path) -> ConfigError:
    return ConfigError(f"{path.parent} has no {path.name}: it is not a complete model folder")


def _unreadable(path: Path, error: Exception) -> WeightsError:
    """Return the real reason: the library reports every file that it cannot open as missing."""
    if not path.exists():
        return WeightsError(f"{path} is missing: fetch it again")
    if not os.access(path, os.R_OK):
        return WeightsError(f"{path} cannot be read: permission denied; check its owner and mode")
    size = path.stat().st_size
    return WeightsError(f"{path} ({size:,} bytes) is truncated or corrupt ({error}): fetch it again")
