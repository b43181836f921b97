"""Writes a smaller model: fewer bits, tokens, layers, neurons or dimensions, in the layout of its source.

One tensor is held as floats at a time, and one shard of the result.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nvembed.compress.calibrate import calibrated_groups
from nvembed.compress.vocabulary import renumber_config, trim_tokenizer, trim_tokenizer_config
from nvembed.errors import InputError
from nvembed.model.config import DenseConfig, ModelConfig, StaticConfig, with_layers
from nvembed.weights.adapter import json_bytes
from nvembed.weights.compression import KEY, Compression
from nvembed.weights.model_config import write_config
from nvembed.weights.save import MODEL_FILES, SHARD_BYTES, safetensors_bytes, save_model
from nvembed.weights.sentence_transformers import MODULES, SETTINGS
from nvembed.weights.tensors import Checkpoint, int4_parts, quantised_parts, read_json

PREFIX = "embedding_model."
_EMBEDDINGS = ("embed_tokens.weight", "tok_embeddings.weight")
_SMALL = ("position_embeddings.weight", "token_types.weight", "relative_bias.weight")
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj", "mlp.Wi", "mlp.Wo")
# Written anew, or stale once the vocabulary is another.
_VOCABULARY_FILES = ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json")


@dataclass(frozen=True)
class Reduction:
    """What is made smaller; None leaves it as it is.

    Args:
        scheme: bits of the linear layers. Dense layers after pooling are int8 in both.
        embedding: bits of the token embedding.
        dtype: how the new model is computed by default; None is ``scheme``.
        tokens: ids of the tokens that are kept, ascending.
        layers: how many of the first layers are kept.
        mlp_width: how many neurons of each feed-forward block are kept: those with the largest weights.
        dims: how many numbers of a vector are kept.
        rotation: (dims, D) applied to the vector before.
        products: by the name of a matrix, what its inputs look like (`calibrate.input_products`), so that
            int4 rounds with less error.
    """

    scheme: Literal["int8", "int4"] | None = None
    embedding: Literal["int8", "int4"] | None = None
    dtype: Literal["float32", "bfloat16", "int8", "int4"] | None = None
    tokens: np.ndarray | None = None
    layers: int | None = None
    mlp_width: int | None = None
    dims: int | None = None
    rotation: np.ndarray | None = None
    products: Mapping[str, Tensor] | None = None


def compress(
    folder: str | os.PathLike[str],
    source: Checkpoint,
    reduction: Reduction,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``source`` with a reduction to a new folder, which opens like any other model.

    Raises:
        InputError: a size that the model does not have.
        OutputError: the folder exists, or the disk is full.
    """
    _check(source, reduction)
    root = {name: source.tensors[name] for name in source.tensors if not name.startswith("dense.")}
    names = [name for name in sorted(root) if _layer(name) < (reduction.layers or 1 << 30)]
    prefix = PREFIX if source.prompts is not None else ""  # layouts other than NV-Embed's name no prefix

    @lru_cache(1)  # the three matrices of a block stand one after another
    def neurons(block: str) -> Tensor:
        assert reduction.mlp_width is not None
        return _largest(source, block, reduction.mlp_width)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in names:
            tensor = _reduced(source, name, reduction, neurons)
            yield from _stored(name.removeprefix(prefix), tensor, reduction)
        if source.prompts is None:
            yield from (part for parts in _dense(source, reduction) for part in parts)
        elif _own_projection(source):
            name, tensor = "embedding_projection.weight", source.read("dense.0.linear.weight")
            yield from _stored(name, tensor, _in_8_bits(reduction))

    save_model(folder, tensors(), lambda dtype: _files(source, reduction, dtype), shard_bytes=shard_bytes)


def _check(source: Checkpoint, reduction: Reduction) -> None:
    backbone = source.config.backbone
    if isinstance(backbone, StaticConfig):
        raise InputError(f"{source.folder} is a static model: compress the model that it was made from")
    limits = {
        "layers": (reduction.layers, backbone.num_layers),
        "mlp_width": (reduction.mlp_width, backbone.intermediate_size),
        "dims": (reduction.dims, source.truncate_dim or source.config.dim),
    }
    for name, (value, limit) in limits.items():
        if value is not None and not 1 <= value <= limit:
            raise InputError(f"{name} is {value:,}: expected 1 to {limit:,}, what {source.folder} has")


def _layer(name: str) -> int:
    """Return the number of the layer that a tensor belongs to, -1 outside of the layers."""
    head, _, tail = name.removeprefix(PREFIX).partition(".")
    return int(tail.partition(".")[0]) if head == "layers" else -1


def _reduced(source: Checkpoint, name: str, reduction: Reduction, neurons: Callable[[str], Tensor]) -> Tensor:
    """Read a tensor without the rows and columns that are dropped.

    ``neurons``: of a feed-forward block, by its name, those that are kept.
    """
    tensor = source.read(name)
    if reduction.tokens is not None and name.endswith(_EMBEDDINGS):
        return tensor[torch.from_numpy(reduction.tokens)]
    block, _, leaf = name.rpartition(".")[0].rpartition(".")
    if reduction.mlp_width is None or not f"{block}.{leaf}".endswith(_FEED_FORWARD):
        return tensor
    if leaf in ("down_proj", "Wo"):
        return tensor[:, neurons(block)] if tensor.ndim == 2 else tensor
    rows = neurons(block)
    return tensor[torch.cat((rows, rows + len(tensor) // 2)) if leaf == "Wi" else rows]


def _largest(source: Checkpoint, block: str, width: int) -> Tensor:
    """Return the neurons of a feed-forward block with the largest product of the norms of their weights."""
    size = torch.ones(())
    for leaf, dim in (("gate_proj", 1), ("up_proj", 1), ("Wi", 1), ("down_proj", 0), ("Wo", 0)):
        if f"{block}.{leaf}.weight" in source.tensors:
            norms = source.read(f"{block}.{leaf}.weight").float().norm(dim=dim)
            size = size * (norms.view(2, -1).prod(0) if leaf == "Wi" else norms)  # values and gates
    return size.topk(width).indices.sort().values


def _stored(name: str, tensor: Tensor, reduction: Reduction) -> list[tuple[str, Tensor]]:
    """Return what is stored of a tensor: itself, or its parts in 8 or 4 bits."""
    scheme = reduction.embedding if name.endswith(_EMBEDDINGS) else reduction.scheme
    product = (reduction.products or {}).get(name.removeprefix(PREFIX))
    if scheme == "int4" and product is not None:
        return int4_parts(name, *calibrated_groups(tensor, product))
    matrix = tensor.ndim == 2 and name.endswith(".weight") and not name.endswith(_SMALL)
    return quantised_parts(name, tensor, scheme) if scheme is not None and matrix else [(name, tensor)]


def _own_projection(source: Checkpoint) -> bool:
    """Whether the first layer after pooling is part of the backbone's files (EmbeddingGemma 2)."""
    stored = source.tensors.get("dense.0.linear.weight")
    root = source.tokenizer_folder or source.folder
    return source.prompts is not None and stored is not None and stored.file.parent == root


def _in_8_bits(reduction: Reduction) -> Reduction:
    return replace(reduction, scheme="int8" if reduction.scheme is not None else None)


def _dense_configs(source: Checkpoint, reduction: Reduction) -> tuple[DenseConfig, ...]:
    configs = source.config.dense
    if reduction.rotation is not None:
        size, inputs = reduction.rotation.shape
        configs = (*configs, DenseConfig(inputs, size, False, "identity"))
    return configs


def _dense(source: Checkpoint, reduction: Reduction) -> Iterator[list[tuple[str, Tensor]]]:
    """Yield the tensors of each layer after pooling, the rotation last."""
    eight = _in_8_bits(reduction)
    for number in range(len(source.config.dense)):
        start = f"dense.{number}."
        layer = [name for name in sorted(source.tensors) if name.startswith(start)]
        yield [part for name in layer for part in _stored(name, source.read(name), eight)]
    if reduction.rotation is not None:
        rotation = torch.from_numpy(reduction.rotation).float().contiguous()
        yield [(f"dense.{len(source.config.dense)}.linear.weight", rotation)]


def _files(source: Checkpoint, reduction: Reduction, dtype: str) -> dict[str, bytes]:
    """Return everything but the tensors of the root."""
    files = tokenizer_files(source, reduction)
    scheme = {} if reduction.scheme is None else _scheme(reduction)
    if source.prompts is not None:
        return _sentence_files(source, reduction, scheme) | files
    backbone = source.config.decoder
    text = source.text
    if reduction.tokens is not None:
        new = {int(old): number for number, old in enumerate(reduction.tokens)}
        bos = None if text.bos_id is None else new[text.bos_id]
        text = replace(text, eos_id=new[text.eos_id], bos_id=bos)
        backbone = replace(backbone, vocab_size=len(reduction.tokens))
    backbone = replace(
        with_layers(backbone, reduction.layers or backbone.num_layers),
        intermediate_size=reduction.mlp_width or backbone.intermediate_size,
    )
    model = ModelConfig(
        backbone, source.config.pooler, source.config.pooling, _dense_configs(source, reduction)
    )
    config = write_config(model, text, dtype) | scheme
    if reduction.dims is not None and reduction.rotation is None:
        config["nvembed"]["truncate_dim"] = reduction.dims
    return files | {"config.json": json_bytes(config)}


def _scheme(reduction: Reduction) -> dict[str, Any]:
    assert reduction.scheme is not None
    made = Compression(scheme=reduction.scheme, dtype=reduction.dtype or reduction.scheme)
    return {KEY: made.model_dump()}


def tokenizer_files(source: Checkpoint, reduction: Reduction) -> dict[str, bytes]:
    """Return the tokenizer's files with the tokens that are kept, ``tokenizer.json`` without white space."""
    files = source.tokenizer_files()
    form = json.loads(files["tokenizer.json"])
    if reduction.tokens is not None:
        form = trim_tokenizer(form, reduction.tokens)
    files["tokenizer.json"] = json.dumps(form, ensure_ascii=False, separators=(",", ":")).encode()
    if reduction.tokens is not None and "tokenizer_config.json" in files:
        config = trim_tokenizer_config(json.loads(files["tokenizer_config.json"]), reduction.tokens)
        files["tokenizer_config.json"] = json_bytes(config)
    return files


def _sentence_files(source: Checkpoint, reduction: Reduction, scheme: dict[str, Any]) -> dict[str, bytes]:
    """Return the files of a folder in the layout of sentence-transformers, its dense layers included."""
    folder, root = source.folder, source.tokenizer_folder or source.folder
    stale = _VOCABULARY_FILES if reduction.tokens is not None else ()
    files = {  # those of the backbone come to the top
        path.relative_to(root if path.is_relative_to(root) else folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (path.suffix in MODEL_FILES or path.name.startswith(("LICEN", "NOTICE")))
        if path.suffix != ".safetensors" and not path.name.endswith(".index.json")
        if path.suffix != ".model" and path.name not in (*stale, "README.md", "SHA256SUMS")
    }
    files["config.json"] = json_bytes(_backbone_config(read_json(root / "config.json"), reduction) | scheme)
    modules = json.loads(files[MODULES]) if MODULES in files else []
    if modules:
        modules[0]["path"] = ""
    if reduction.rotation is not None:
        modules = _with_rotation(modules, files, source, reduction.rotation)
    if modules:
        files[MODULES] = json_bytes(modules)
    places = [entry["path"] for entry in modules if str(entry["type"]).endswith(".Dense")]
    layers = islice(_dense(source, reduction), _own_projection(source), None)
    for where, parts in zip(places, layers, strict=True):
        stored = {name.split(".", 2)[2]: tensor for name, tensor in parts}
        files[f"{where}/model.safetensors"] = safetensors_bytes(stored)
    if reduction.dims is not None:
        settings = json.loads(files.get(SETTINGS, b"{}"))
        kept = reduction.dims if reduction.rotation is None else None
        files[SETTINGS] = json_bytes({**settings, "truncate_dim": kept})
    return files


def _backbone_config(config: dict[str, Any], reduction: Reduction) -> dict[str, Any]:
    changed = (reduction.tokens, reduction.layers, reduction.mlp_width)
    if "text_config" in config and any(value is not None for value in changed):
        raise InputError(
            "tokens, layers and neurons of a model with towers for other media cannot be dropped"
        )
    if reduction.tokens is not None:
        config = renumber_config(config, reduction.tokens)
    changes = {
        "num_hidden_layers": reduction.layers,
        "n_layers": reduction.layers,
        "intermediate_size": reduction.mlp_width,
        "hidden_dim": reduction.mlp_width,
    }
    config |= {key: value for key, value in changes.items() if value is not None and key in config}
    if reduction.layers is not None and isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][: reduction.layers]
    config.pop("auto_map", None)
    return config


def _with_rotation(
    modules: list[dict[str, Any]], files: dict[str, bytes], source: Checkpoint, rotation: np.ndarray
) -> list[dict[str, Any]]:
    """Put a Dense module before Normalize, or at the end."""
    if not modules:
        raise InputError(f"{source.folder} has no {MODULES}: write one with `nvembed export` first")
    last = [entry for entry in modules if str(entry["type"]).endswith(".Normalize")]
    others = [entry for entry in modules if entry not in last]
    path = f"{len(others)}_Rotation"
    dense = {"path": path, "type": "sentence_transformers.models.Dense"}
    files[f"{path}/config.json"] = json_bytes(
        {
            "in_features": rotation.shape[1],
            "out_features": rotation.shape[0],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
    )
    return [{**entry, "idx": n, "name": str(n)} for n, entry in enumerate([*others, dense, *last])]


def principal_rotation(vectors: np.ndarray, dims: int) -> np.ndarray:
    """Return the (dims, D) directions in which unit vectors are largest; not centred, so that cosines stay.

    Raises:
        InputError: fewer vectors than dimensions.
    """
    if len(vectors) < dims:
        raise InputError(f"{len(vectors):,} texts to fit {dims:,} dimensions: expected at least as many")
    products = vectors.T.astype(np.float64) @ vectors
    _, directions = np.linalg.eigh(products)
    return np.ascontiguousarray(directions[:, ::-1][:, :dims].T, dtype=np.float32)


def size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
