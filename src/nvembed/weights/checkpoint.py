"""Opens a model's folder as a checkpoint, loads its weights, and computes its fingerprint.

A folder has all weights, or an adapter and a pooler for the backbone that it names (`weights.backbone`).
"""

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

import torch
from torch import Tensor, nn

from nvembed.errors import ConfigError, WeightsError
from nvembed.files import file_digest
from nvembed.model.config import EmbeddingGemma2Config, ModelConfig, with_layers
from nvembed.model.nv_embed import NVEmbed
from nvembed.model.quantised import QUANTISED, Products, load_weight, prepare, replace_layers, replace_pooler
from nvembed.text.tokenize import TextSettings, TextTokenizer
from nvembed.weights.adapter import Adapter, check_fit, read_adapter
from nvembed.weights.backbone import Base, locate, package_file, read_base
from nvembed.weights.base import read_causal_lm
from nvembed.weights.causal_lm import PREFIX, CausalLM
from nvembed.weights.compression import default_dtype
from nvembed.weights.hub import model_folder
from nvembed.weights.model_config import read_config, read_truncate_dim
from nvembed.weights.sentence_transformers import MODULES, open_sentence_transformers
from nvembed.weights.tensors import (
    BACKBONE_TENSORS,
    POOLER_TENSORS,
    Checkpoint,
    compare_tensors,
    expected_tensors,
    file_tensors,
    incomplete,
    read_json,
    read_parts,
    stored_tensors,
    tensor_head,
    values_fingerprint,
)


def open_checkpoint(folder: str | os.PathLike[str], *, pooling: str | None = None) -> Checkpoint:
    """Read a checkpoint's configs and the headers of its safetensors files, without loading weights.

    The folder may also hold an adapter and name its backbone (`weights.backbone`), or have the layout of
    sentence-transformers (`weights.sentence_transformers`).

    Args:
        pooling: how to pool, for a transformers folder whose config does not name it.

    Raises:
        ConfigError: a config or tokenizer is missing, damaged, or of an unsupported model.
        WeightsError: there are no safetensors (pickles are refused); a file is damaged; tensors are missing,
            unexpected or misshapen; or the backbone is not the one that the model was trained on.
        MissingExtraError: the package with the backbone is not installed.
    """
    folder = Path(folder)
    # NV-Embed v2's folder has a modules.json too: its config.json decides
    plain = (folder / "config.json").is_file() or not (folder / MODULES).is_file()
    config_json = read_json(folder / "config.json") if plain else {}
    if config_json.get("model_type") != "nvembed":
        return open_sentence_transformers(folder, pooling=pooling)
    config, text = read_config(config_json, read_json(folder / "tokenizer_config.json"))
    if not (folder / "tokenizer.json").is_file():
        raise incomplete(folder / "tokenizer.json")
    if isinstance(config_json.get("nvembed"), dict) and "base" in config_json["nvembed"]:
        return _open_adapted(folder, read_base(config_json["nvembed"]["base"]), config, text)
    tensors = stored_tensors(folder)
    compare_tensors(folder, tensors, expected_tensors(config))
    return Checkpoint(
        folder,
        config,
        text,
        tensors,
        truncate_dim=read_truncate_dim(config_json, config),
        dtype=default_dtype(config_json),
    )


def _open_adapted(folder: Path, base: Base, config: ModelConfig, text: TextSettings) -> Checkpoint:
    """Open a folder whose ``config.json`` names a base: the backbone with the adapter merged into it.

    Merged weights are float32, so that they are rounded only once, when the model loads; others are as
    stored. If the base has more layers than the model, the first ones are used.
    """
    backbone = find_backbone(base, folder)
    expected = expected_tensors(config)
    names = [name.removeprefix(PREFIX) for name in expected if name.startswith(PREFIX)]
    layers, base_layers = config.backbone.num_layers, backbone.config.num_layers
    if base_layers < layers:
        raise WeightsError(
            f"{folder} needs a backbone of at least {layers} layers, but {base.label} has {base_layers}: "
            "use the base that it was trained on"
        )
    tensors = {PREFIX + name: backbone.stored[name] for name in names if name in backbone.stored}
    if (folder / POOLER_TENSORS).is_file():
        tensors |= file_tensors(folder / POOLER_TENSORS)
    compare_tensors(folder, tensors, expected)
    got = values_fingerprint(backbone.stored, backbone.read, names)
    if got != base.fingerprint:
        raise WeightsError(
            f"{folder} was trained on another backbone: expected fingerprint {base.fingerprint}, got {got} "
            f"from {base.source} {base.name}: {base.remedy}"
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


def first_layers(checkpoint: Checkpoint, count: int | None) -> Checkpoint:
    """Return a checkpoint in the layout of sentence-transformers with its first layers; None keeps all.

    Raises:
        ConfigError: it has fewer layers.
    """
    backbone = checkpoint.config.backbone
    if count is None or count == backbone.num_layers or checkpoint.prompts is None:
        return checkpoint
    if count > backbone.num_layers:
        raise ConfigError(
            f"{checkpoint.folder} has {backbone.num_layers} layers: expected at least {count}, the recipe's "
            "model.num_layers"
        )
    if isinstance(backbone, EmbeddingGemma2Config):
        raise ConfigError(
            f"{checkpoint.folder} has gates for {backbone.num_layers} layers: expected all of them"
        )
    config = replace(checkpoint.config, backbone=with_layers(backbone, count))
    tensors = {name: checkpoint.tensors[name] for name in expected_tensors(config)}
    return replace(checkpoint, config=config, tensors=tensors)


def load_tokenizer(checkpoint: Checkpoint) -> TextTokenizer:
    """Return a checkpoint's tokenizer.

    Raises:
        ConfigError: it cannot be read, or has tokens without an embedding in the model.
    """
    rows = checkpoint.config.backbone.vocab_size
    content = checkpoint.tokenizer or checkpoint.tokenizer_files()["tokenizer.json"]
    tokenizer = TextTokenizer(content, checkpoint.text, rows=rows)
    if tokenizer.vocab_size > rows and checkpoint.text.mode != "template":
        raise ConfigError(
            f"tokenizer.json has {tokenizer.vocab_size:,} tokens, but the model has {rows:,} embeddings: it "
            "belongs to another model"
        )
    if checkpoint.text.mode == "template":
        _check_pooled_token(checkpoint, tokenizer)
    return tokenizer


def _check_pooled_token(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> None:
    """Check that the tokenizer adds the token whose state is the vector."""
    where = f"tokenizer.json of {checkpoint.folder}"
    if checkpoint.config.pooling == "cls" and not tokenizer.special_before:
        raise ConfigError(
            f"{where} puts no special token before a text, but the model pools the first token: it is of "
            "another model, or its post_processor is missing; fetch the file again"
        )
    if checkpoint.config.pooling == "eos" and not tokenizer.special_after:
        warnings.warn(
            f"{where} puts no special token after a text: the state of the last word is the vector. If the "
            "model was trained with an end token, set add_eos_token in tokenizer_config.json",
            stacklevel=3,
        )


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    fold: bool = True,
    scheme: Products | None = None,
) -> NVEmbed:
    """Load a checkpoint's weights.

    The pooler is loaded and folded first, so that its plain form is freed before the backbone is loaded.

    Args:
        fold: fold latent attention for inference (exact; smaller and faster) and freeze the weights.
            ``False`` keeps the plain, trainable form.
        scheme: hold the weights of linear layers and of the token embedding in 8 or 4 bits, or those of
            linear layers in FP8; ``dtype`` is that of the rest.
    """
    with torch.device("meta"):
        model = NVEmbed(checkpoint.config)
        if scheme is not None:
            replace_layers(model, scheme, dtype)
    names = sorted(checkpoint.tensors, key=lambda name: name.startswith("embedding_model."))
    folded = not fold
    for name in names:
        if not folded and name.startswith("embedding_model."):
            model.fold_pooler()
            folded = True
            if scheme is not None:
                replace_pooler(model, scheme, dtype)
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(parent)
        if leaf == "weight" and isinstance(module, QUANTISED):
            stored = checkpoint.tensors[name]
            if stored.dtype == module.stored:
                module.load(*(part.to(device) for part in read_parts(stored)))
            else:
                load_weight(module, checkpoint.read(name).to(device))
            continue
        tensor = checkpoint.read(name).to(device=device, dtype=dtype, copy=True)
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=not fold))
    if scheme is not None:
        prepare(model, torch.device(device))
    return model.eval() if fold else model.train()


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return 32 hex digits that identify a checkpoint by its configs, tokenizer and tensors.

    The name, shape, dtype and first 2,048 numbers of each tensor distinguish trained models without reading
    15 GB.
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

    Args:
        dtype: of all tensors; None keeps each tensor's stored dtype.

    Raises:
        WeightsError: the adapter belongs to another base: a name or shape does not fit.
    """
    check_fit(adapter, checkpoint.tensors, str(checkpoint.folder))
    for name in checkpoint.tensors:
        yield name, adapter.merged(name, checkpoint.read(name), dtype)


def content_digest(checkpoint: Checkpoint, *, cache: Path | None) -> str:
    """Return 32 hex digits of all bytes that decide a checkpoint's vectors; `fingerprint` samples them.

    Args:
        cache: a folder that keeps the digests of files, so that each is read once (`files.file_digest`).
    """
    files = {stored.file for stored in checkpoint.tensors.values()}
    files |= {path for end in ("json", "safetensors") for path in checkpoint.folder.rglob(f"*.{end}")}
    digests = sorted((_name_in(checkpoint.folder, path), file_digest(path, cache=cache)) for path in files)
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:32]


def _name_in(folder: Path, path: Path) -> str:
    """Return a file's path in the folder, or the name of a backbone's file outside it."""
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def merged_before(checkpoint: Checkpoint) -> list[str]:
    """Return the digests of the adapters that are merged into a checkpoint."""
    ours = read_json(checkpoint.folder / "config.json").get("nvembed")
    merged = ours.get("merged") if isinstance(ours, dict) else None
    return [digest for digest in merged if isinstance(digest, str)] if isinstance(merged, list) else []


def find_backbone(base: Base, folder: Path) -> CausalLM:
    """Open the backbone that a model in ``folder`` names.

    Raises:
        MissingExtraError: its package is not installed; the message says how to install it.
        WeightsError: its file or folder does not exist.
        DownloadError: it is on the hub and could not be downloaded.
    """
    if base.source == "package":
        return read_causal_lm(package_file(base.name, base.file, base.version))
    if base.source == "hub":
        return read_backbone(model_folder(base.name, revision=base.version))
    path = Path(os.path.normpath(folder.resolve() / base.name))
    if not path.exists():
        raise WeightsError(
            f"the backbone of {folder} is not at {path}: copy it there, or change nvembed.base in the "
            "model's config.json"
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
    """Return the source of the backbone of ``model``, to be stored in a new model's folder.

    Args:
        spec: see `locate`.
        model: the checkpoint that was trained.
        folder: of the new model; a path is stored relative to it.
        same: require the values of the model's backbone, not only its names and shapes.

    Raises:
        WeightsError: the base is not the model's, or lacks a part of it.
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
                f"{base.label} has no {name} of shape {stored.shape}, but {model.folder} has: pass the base "
                "that was trained"
            )
    got = values_fingerprint(backbone.stored, backbone.read, own.stored)
    expected = values_fingerprint(own.stored, own.read, own.stored)
    if same and got != expected:
        raise WeightsError(
            f"{base.label} is not the backbone of {model.folder}: expected values {expected}, got {got}: "
            "pass the base that was trained, or pass a rank to write the difference as an adapter"
        )
    return base.model_copy(update={"fingerprint": got})
