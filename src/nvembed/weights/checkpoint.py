"""A model's folder as a checkpoint: opening it, loading its weights, its fingerprint.

A folder holds all weights, or an adapter and a pooler for a backbone that it names (`weights.backbone`).
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvembed.errors import ConfigError, WeightsError
from nvembed.files import file_digest
from nvembed.model.config import ModelConfig
from nvembed.model.nv_embed import NVEmbed
from nvembed.text.model_prompts import ModelPrompts
from nvembed.text.tokenize import TextSettings, TextTokenizer
from nvembed.weights.adapter import Adapter, check_fit, read_adapter
from nvembed.weights.backbone import Base, locate, package_file, read_base, remedy
from nvembed.weights.base import read_causal_lm
from nvembed.weights.causal_lm import PREFIX, CausalLM
from nvembed.weights.hub import model_folder
from nvembed.weights.model_config import read_config
from nvembed.weights.sentence_transformers import MODULES, open_sentence_transformers
from nvembed.weights.tensors import (
    BACKBONE_TENSORS,
    POOLER_TENSORS,
    TOKENIZER_FILES,
    StoredTensor,
    compare_tensors,
    expected_tensors,
    file_tensors,
    incomplete,
    read_json,
    read_tensor,
    stored_tensors,
    tensor_head,
    values_fingerprint,
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config was understood and whose tensors have the right names and shapes.

    Args:
        source: (name, first rows or None) -> values, where they are not simply those of ``tensors``: a
            backbone from elsewhere with an adapter merged into it, or names of another layout.
        tokenizer_folder: where tokenizer.json lies; None is ``folder``.
        prompts: of a folder in the layout of sentence-transformers; None for NV-Embed's.
        truncate_dim: dimensions that are kept by default.
        notes: contradictions in the folder, and how they were resolved.
    """

    folder: Path
    config: ModelConfig
    text: TextSettings
    tensors: dict[str, StoredTensor]
    source: Callable[[str, int | None], Tensor] | None = None
    tokenizer_folder: Path | None = None
    prompts: ModelPrompts | None = None
    truncate_dim: int | None = None
    notes: tuple[str, ...] = ()

    def read(self, name: str, rows: int | None = None) -> Tensor:
        """Read one tensor, or its first ``rows`` rows, in the dtype it is stored in."""
        if self.source is not None:
            return self.source(name, rows)
        return read_tensor(self.tensors[name], name, rows)

    def tokenizer_files(self) -> dict[str, bytes]:
        paths = ((self.tokenizer_folder or self.folder) / name for name in TOKENIZER_FILES)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}


def open_checkpoint(folder: str | os.PathLike[str], *, pooling: str | None = None) -> Checkpoint:
    """Read a checkpoint's configs and the headers of its safetensors files; load no weights.

    A folder that holds an adapter and names its backbone (`weights.backbone`) is a checkpoint too, and so is
    a folder in the layout of sentence-transformers (`weights.sentence_transformers`).

    Args:
        pooling: how to pool, for a transformers folder that does not say.

    Raises:
        ConfigError: configs or a tokenizer that are missing, configs that are no JSON, or of a model this
            package does not have.
        WeightsError: no safetensors (pickles are refused), a corrupt file, or tensors that are missing,
            unexpected or misshapen: all of them are named; or a backbone that is not the one it was made for.
        MissingExtraError: the package that the backbone comes from is not installed.
    """
    folder = Path(folder)
    # NV-Embed v2's folder has a modules.json too: its config.json decides
    plain = (folder / "config.json").is_file() or not (folder / MODULES).is_file()
    told = read_json(folder / "config.json") if plain else {}
    if told.get("model_type") != "nvembed":
        found = open_sentence_transformers(folder, pooling=pooling)
        return Checkpoint(
            folder,
            found.config,
            found.text,
            found.tensors,
            found.read,
            found.tokenizer_folder,
            found.prompts,
            found.truncate_dim,
            found.notes,
        )
    config, text = read_config(told, read_json(folder / "tokenizer_config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise incomplete(folder / "tokenizer.json")
    if isinstance(told.get("nvembed"), dict) and "base" in told["nvembed"]:
        return _open_adapted(folder, told, config, text)
    tensors = stored_tensors(folder)
    compare_tensors(folder, tensors, expected_tensors(config))
    return Checkpoint(folder, config, text, tensors)


def _open_adapted(
    folder: Path, told: Mapping[str, Any], config: ModelConfig, text: TextSettings
) -> Checkpoint:
    """Open a folder whose ``config.json`` names a base: its backbone with its adapter merged into it.

    Merged weights are float32, so that they are rounded once, when the model loads; others are as stored. Of
    a base with more layers than the model, the first ones are used.

    Raises:
        ConfigError: ``nvembed.base`` is malformed.
        MissingExtraError: the base's package is not installed.
        WeightsError: the base is not there or is another one; an adapter or pooler that does not fit.
    """
    base = read_base(told["nvembed"]["base"])
    backbone = find_backbone(base, folder)
    expected = expected_tensors(config)
    names = [name.removeprefix(PREFIX) for name in expected if name.startswith(PREFIX)]
    layers, has = config.backbone.num_layers, backbone.config.num_layers
    if has < layers:
        raise WeightsError(
            f"{folder} is for a backbone of {layers} layers or more, {base.label} has {has}: it needs another"
        )
    tensors = {PREFIX + name: backbone.stored[name] for name in names if name in backbone.stored}
    if (folder / POOLER_TENSORS).is_file():
        tensors |= file_tensors(folder / POOLER_TENSORS)
    compare_tensors(folder, tensors, expected)
    got = values_fingerprint(backbone.stored, backbone.read, names)
    if got != base.fingerprint:
        raise WeightsError(
            f"{folder} was made for another backbone: expected values with fingerprint {base.fingerprint}, "
            f"got {got} from {base.source} {base.name}: {remedy(base)}"
        )
    adapter = read_adapter(folder)
    check_fit(adapter, tensors, str(folder))

    def read(name: str, rows: int | None) -> Tensor:
        if name in adapter.replaced:
            return adapter.replaced[name][:rows]
        dtype = torch.float32 if name in adapter.pairs else None
        return adapter.merged(name, backbone.read(name.removeprefix(PREFIX), rows), dtype)

    tensors |= {name: replace(tensors[name], dtype="F32") for name in adapter.pairs}
    if (folder / BACKBONE_TENSORS).is_file():
        tensors |= file_tensors(folder / BACKBONE_TENSORS)
    return Checkpoint(folder, config, text, tensors, read)


def load_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """Return a checkpoint's tokenizer.

    Raises:
        ConfigError: it cannot be read, or knows tokens that the model has no embedding of.
    """
    rows = checkpoint.config.backbone.vocab_size
    tokenizer = TextTokenizer(checkpoint.tokenizer_files()["tokenizer.json"], checkpoint.text, rows=rows)
    if tokenizer.vocab_size > rows and checkpoint.text.mode != "template":
        raise ConfigError(
            f"tokenizer.json has {tokenizer.vocab_size:,} tokens, but the model embeds {rows:,}: it belongs "
            "to another model"
        )
    return tokenizer


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    fold: bool = True,
) -> NVEmbed:
    """Load the weights into a model that was built without memory of its own.

    Args:
        fold: fold latent attention for inference (exact; smaller and faster) and freeze the weights.
            ``False`` keeps the plain, trainable form.

    The pooler is loaded and folded first, so that its plain form is gone before the backbone comes.
    """
    with torch.device("meta"):
        model = NVEmbed(checkpoint.config)
    names = sorted(checkpoint.tensors, key=lambda name: name.startswith("embedding_model."))
    folded = not fold
    for name in names:
        if not folded and name.startswith("embedding_model."):
            model.fold_pooler()
            folded = True
        tensor = checkpoint.read(name).to(device=device, dtype=dtype, copy=True)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Parameter(tensor, requires_grad=not fold))
    return model.eval() if fold else model.train()


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return 32 hex digits that name what a checkpoint computes: of its configs, tokenizer and tensors.

    Of each tensor the name, shape, dtype and first 2,048 numbers are read: enough to tell trained models
    apart without reading 15 GB.
    """
    digest = hashlib.sha256()
    digest.update(repr((checkpoint.config, checkpoint.text)).encode())
    if checkpoint.prompts is not None:
        text = asdict(checkpoint.text)
        if not text["split_special"]:  # models without it keep their fingerprints
            del text["split_special"]
        digest.update(repr((asdict(checkpoint.config), text)).encode())
    elif checkpoint.config.decoder.causal:
        digest.update(b"causal")
    digest.update(checkpoint.tokenizer_files()["tokenizer.json"])
    for name in sorted(checkpoint.tensors):
        stored = checkpoint.tensors[name]
        head = tensor_head(stored, partial(checkpoint.read, name)).view(torch.uint8)
        digest.update(repr((name, stored.shape, stored.dtype)).encode() + head.numpy().tobytes())
    return digest.hexdigest()[:32]


def merged_tensors(
    checkpoint: Checkpoint, adapter: Adapter, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield a checkpoint's tensors with an adapter merged into them, one at a time.

    They are in ``dtype``, or else in the dtype that each is stored in.

    Raises:
        WeightsError: the adapter is of another base: a name or shape that does not fit.
    """
    check_fit(adapter, checkpoint.tensors, str(checkpoint.folder))
    for name in checkpoint.tensors:
        yield name, adapter.merged(name, checkpoint.read(name), dtype)


def content_digest(checkpoint: Checkpoint, *, cache: Path | None) -> str:
    """Return 32 hex digits of all bytes that a checkpoint's vectors follow from; `fingerprint` samples them.

    Args:
        cache: a folder that keeps the digests of files, so that each is read once (`files.file_digest`).
    """
    files = {stored.file for stored in checkpoint.tensors.values()}
    files |= {path for end in ("json", "safetensors") for path in checkpoint.folder.rglob(f"*.{end}")}
    digests = sorted((_name_in(checkpoint.folder, path), file_digest(path, cache=cache)) for path in files)
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:32]


def _name_in(folder: Path, path: Path) -> str:
    """Return a file's path in the folder, or the name of a file of a backbone elsewhere."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def merged_before(checkpoint: Checkpoint) -> list[str]:
    """Return the digests of the adapters that are merged into a checkpoint."""
    ours = read_json(checkpoint.folder / "config.json").get("nvembed")
    merged = ours.get("merged") if isinstance(ours, dict) else None
    return [digest for digest in merged if isinstance(digest, str)] if isinstance(merged, list) else []


def find_backbone(base: Base, folder: Path) -> CausalLM:
    """Find the backbone that a model in ``folder`` names.

    Raises:
        MissingExtraError: its package is not installed; the message says how to install it.
        WeightsError: it is not where the model says.
        DownloadError: it is on the hub, and could not be fetched.
    """
    if base.source == "package":
        return read_causal_lm(package_file(base.name, base.file, base.version))
    if base.source == "hub":
        return read_backbone(model_folder(base.name, revision=base.version))
    path = Path(os.path.normpath(folder.resolve() / base.name))
    if not path.exists():
        raise WeightsError(
            f"the backbone of {folder} is not at {path}: put it there, or change nvembed.base in the model's "
            "config.json"
        )
    return read_backbone(path)


def read_backbone(path: Path) -> CausalLM:
    """Read the backbone of a causal LM (a folder or a GGUF file) or of an NV-Embed checkpoint."""
    if not (path / "config.json").is_file() or read_json(path / "config.json").get("model_type") != "nvembed":
        return read_causal_lm(path)
    return backbone_of(open_checkpoint(path))


def backbone_of(checkpoint: Checkpoint) -> CausalLM:
    """Return the backbone of an NV-Embed checkpoint."""
    stored = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(PREFIX)
    }
    return CausalLM(
        checkpoint.config.decoder,
        stored,
        lambda name, rows: checkpoint.read(PREFIX + name, rows),
        checkpoint.tokenizer_files(),
    )


def name_base(spec: str, model: Checkpoint, folder: Path, *, same: bool = True) -> Base:
    """Say where the backbone of ``model`` comes from, for a model's folder to be written.

    Args:
        spec: see `locate`.
        model: the checkpoint that was trained.
        same: whether the base must have the values of its backbone, or only its names and shapes.
        folder: where the new model will lie; a path is kept relative to it.

    Raises:
        WeightsError: the base is another one than the model's, or lacks a part of it.
    """
    path = locate(spec)
    if Path(spec).expanduser().exists():
        base = Base(source="path", name=os.path.relpath(path.resolve(), folder.resolve()), fingerprint="")
    elif "/" in spec:
        commit = path.name if path.parent.name == "snapshots" else None  # as the hub's cache lays it out
        base = Base(source="hub", name=spec, version=commit, fingerprint="")
    else:
        version = distribution(spec).version
        base = Base(source="package", name=spec, file=path.name, version=version, fingerprint="")
    backbone, own = read_backbone(path), backbone_of(model)
    for name, stored in own.stored.items():
        if name not in backbone.stored or backbone.stored[name].shape != stored.shape:
            raise WeightsError(
                f"{base.label} has no {name} of shape {stored.shape}, as {model.folder} has: name the base "
                "that was trained"
            )
    got = values_fingerprint(backbone.stored, backbone.read, own.stored)
    wanted = values_fingerprint(own.stored, own.read, own.stored)
    if same and got != wanted:
        raise WeightsError(
            f"{base.label} is not the backbone of {model.folder}: expected values with fingerprint {wanted}, "
            f"got {got}: name the base that was trained, or pass a rank to write the difference as an adapter"
        )
    return base.model_copy(update={"fingerprint": got})
