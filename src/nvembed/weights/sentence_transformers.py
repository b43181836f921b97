"""Folders in the layout of sentence-transformers, and plain transformers folders whose pooling is known.

``modules.json`` lists Transformer and Pooling, or StaticEmbedding; then any number of Dense, and Normalize.
Modules of other types are refused: no code of a folder is ever run. Folders of model2vec open too.

Differs: vectors are always unit vectors. A folder without a Normalize module is refused if its similarity is
not the cosine.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.config import Activation, DenseConfig, ModelConfig, PoolerConfig, PoolingKind
from nvembed.text.model_prompts import ModelPrompts, takes_titles
from nvembed.weights.compression import default_dtype
from nvembed.weights.hub import repo_of, unknown_files
from nvembed.weights.hub_backbone import projection_size, read_backbone_config, tensor_name
from nvembed.weights.static import STATIC_TEXT, TABLE_NAME, read_static, static_tokenizer
from nvembed.weights.tensors import (
    Checkpoint,
    StoredTensor,
    compare_tensors,
    expected_tensors,
    incomplete,
    read_json,
    read_tensor,
    stored_tensors,
)
from nvembed.weights.tokenizer_config import read_text_settings

Module = tuple[str, str]  # its kind, and its path in the folder
MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"
_POOLING: dict[str, PoolingKind] = {
    "cls": "cls",
    "mean": "mean",
    "avg": "mean",
    "max": "max",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "eos",
    "last": "eos",
}
_OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_MODULE_TYPES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout", "StaticEmbedding")
_EMBEDDING = "sentence_embedding"
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}


def open_sentence_transformers(folder: Path, *, pooling: str | None = None) -> Checkpoint:
    """Read a folder's configs and the headers of its safetensors files, without loading weights.

    Args:
        pooling: how to pool, for a folder without ``modules.json`` whose config does not name it.

    Raises:
        ConfigError: a module, architecture or setting is not supported; the pooling is unknown; or the model
            needs code of its own.
        WeightsError: there are no safetensors, a file is damaged, or tensors do not fit the config.
    """
    modules = _modules(folder)
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    root = folder / modules[0][1] if modules else folder
    if modules and modules[0][0] == "StaticEmbedding":
        return _open_static(folder, root, modules[1:], settings)
    hub = read_json(root / "config.json")
    if hub.get("model_type") == "model2vec":
        return _open_static(folder, root, [], settings)
    _refuse_code(hub)
    backbone = read_backbone_config(hub)
    width = projection_size(hub) or backbone.hidden_size
    kind, include_prompt = _pooling(folder, modules, hub, pooling, {width, backbone.hidden_size})
    dense = _dense(folder, modules[2:], width)
    if modules:
        _check_similarity(folder, modules, settings)
    layers = [config for _, config in dense]
    if projection_size(hub) is not None:  # linear: pooled states are projected, which are fewer than tokens
        if kind == "max":
            raise ConfigError(f"{folder} pools projected states by their maximum, which is not supported")
        layers.insert(0, DenseConfig(backbone.hidden_size, width, bias=False, activation="identity"))
    config = ModelConfig(backbone, PoolerConfig(), kind, tuple(layers))
    prompts = _prompts(folder, settings, include_prompt)
    text = read_text_settings(root, hub, max_position=backbone.max_position, include_prompt=include_prompt)
    names, tensors = _tensors(folder, root, str(hub.get("model_type")), [path for path, _ in dense])
    compare_tensors(folder, tensors, expected_tensors(config))
    return Checkpoint(
        folder,
        config,
        text.settings,
        tensors,
        lambda name, rows: read_tensor(tensors[name], names[name], rows),
        root,
        text.tokenizer,
        text.tokenizer_json,
        prompts=prompts,
        truncate_dim=_truncate_dim(settings),
        notes=(*_not_fetched(folder), *text.notes, *_other_order(settings)),
        dtype=default_dtype(hub),
        stored_names=names,
    )


def _open_static(folder: Path, root: Path, modules: list[Module], settings: Mapping[str, Any]) -> Checkpoint:
    """Open a table of token vectors, with the Dense modules after it."""
    if not (root / "tokenizer.json").is_file():
        raise incomplete(root / "tokenizer.json")
    table = read_static(root)
    dense = _dense(folder, modules, table.config.hidden_size)
    _check_similarity(folder, modules, settings)
    config = ModelConfig(table.config, PoolerConfig(), "mean", tuple(layer for _, layer in dense))
    names, tensors = {TABLE_NAME: table.stored_name}, {TABLE_NAME: table.stored}
    _add_dense(names, tensors, [path for path, _ in dense])
    compare_tensors(folder, tensors, expected_tensors(config))

    def read(name: str, rows: int | None) -> Tensor:
        return table.read(rows) if name == TABLE_NAME else read_tensor(tensors[name], names[name], rows)

    return Checkpoint(
        folder,
        config,
        STATIC_TEXT,
        tensors,
        read,
        root,
        static_tokenizer((root / "tokenizer.json").read_bytes()),
        prompts=_prompts(folder, settings, include_prompt=True),
        truncate_dim=_truncate_dim(settings),
        notes=tuple(_other_order(settings)),
        stored_names=names,
    )


def _check_similarity(folder: Path, modules: list[Module], settings: Mapping[str, Any]) -> None:
    normalized = any(kind == "Normalize" for kind, _ in modules)
    if not normalized and settings.get("similarity_fn_name", "cosine") not in ("cosine", None):
        raise ConfigError(
            f"{folder}: vectors are not normalised and are compared by {settings['similarity_fn_name']!r}; "
            "expected a Normalize module or cosine similarity"
        )


def _truncate_dim(settings: Mapping[str, Any]) -> int | None:
    value = settings.get("truncate_dim")
    return None if value is None else int(value)


def _other_order(settings: Mapping[str, Any]) -> list[str]:
    """Return what to say about unit vectors whose similarity orders them otherwise than the cosine."""
    name = settings.get("similarity_fn_name")
    if name in ("cosine", "dot", "euclidean", None):
        return []
    return [f"{SETTINGS} has similarity_fn_name {name!r}; here vectors are compared by their cosine"]


def _not_fetched(folder: Path) -> list[str]:
    """Return what to say about a folder of the hub's cache that may lack files of this layout."""
    if not (names := unknown_files(folder)):
        return []
    return [
        f"no {' and no '.join(names)} in the hub's cache: if only a part of the model was fetched, its "
        f"pooling, prompts or dense layers are missing. To fetch the rest: hf download {repo_of(folder)}"
    ]


def _modules(folder: Path) -> list[Module]:
    """Return the modules' kinds and paths; an empty list without ``modules.json``."""
    if not (folder / MODULES).is_file():
        return []
    modules: list[Module] = []
    for entry in _json_list(folder / MODULES):
        kind, path = str(entry.get("type", "")), entry.get("path")
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or name not in _MODULE_TYPES:
            raise ConfigError(
                f"{folder / MODULES} has a module of type {kind!r}; expected Transformer, Pooling, Dense, "
                "Normalize or StaticEmbedding of sentence_transformers; other code is not run"
            )
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ConfigError(f"{folder / MODULES} has the path {path!r}; expected a folder inside the model")
        if name != "Dropout":  # trained with, and without effect on vectors
            modules.append((name, path))
    order = "".join(kind[0] for kind, _ in modules)
    if order.rstrip("N").rstrip("D") not in ("TP", "S"):
        raise ConfigError(
            f"{folder / MODULES} lists {', '.join(kind for kind, _ in modules)}; expected Transformer and "
            "Pooling, or StaticEmbedding, then Dense modules, then Normalize"
        )
    return modules


def _pooling(
    folder: Path, modules: list[Module], hub: Mapping[str, Any], pooling: str | None, sizes: set[int]
) -> tuple[PoolingKind, bool]:
    if not modules:
        mode = pooling or hub.get("pooling")
        if mode not in _POOLING:
            hint = "; ".join(["", *_not_fetched(folder)])
            raise ConfigError(
                f"{folder} has pooling {mode!r}; expected one of {', '.join(sorted(_POOLING))}: pass pooling"
                f"{hint}"
            )
        return _POOLING[str(mode)], True
    path = folder / modules[1][1] / "config.json"
    if not path.is_file():
        raise ConfigError(f"{path} is missing: it names the pooling; fetch the file")
    config = read_json(path)
    width = config.get("embedding_dimension", config.get("word_embedding_dimension"))
    if width is not None and width not in sizes:  # before a last projection, or behind it
        own = " or ".join(map(str, sorted(sizes)))
        raise ConfigError(f"{path} pools vectors of {width!r} numbers; those of the backbone have {own}")
    modes = config.get("pooling_mode") or [mode for key, mode in _OLD_POOLING.items() if config.get(key)]
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    if len(modes) != 1 or modes[0] not in _POOLING:
        raise ConfigError(
            f"{path} pools by {' and '.join(map(str, modes))}; expected one of {', '.join(sorted(_POOLING))}"
        )
    include_prompt = bool(config.get("include_prompt", True))
    if modes[0] == "weightedmean" and not include_prompt:
        raise ConfigError(f"{path} has weightedmean without include_prompt, which is not supported")
    return _POOLING[modes[0]], include_prompt


def _dense(folder: Path, modules: list[Module], size: int) -> list[tuple[Path, DenseConfig]]:
    layers = []
    for kind, module in modules:
        if kind == "Normalize":
            continue
        path = folder / module / "config.json"
        config = read_json(path)
        if config.get("in_features") != size:
            raise ConfigError(
                f"{path} has in_features {config.get('in_features')!r}; expected {size}, as the module before"
            )
        name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise ConfigError(f"{path} has activation {name!r}; expected one of {', '.join(_ACTIVATIONS)}")
        names = [config.get(f"module_{side}_name") or _EMBEDDING for side in ("input", "output")]
        if config.get("use_residual") or names != [_EMBEDDING, _EMBEDDING]:
            raise ConfigError(
                f"{path} has use_residual {config.get('use_residual', False)!r}, reads {names[0]} and writes "
                f"{names[1]}; expected a layer of the pooled vector without a residual"
            )
        out = config.get("out_features")
        if isinstance(out, bool) or not isinstance(out, int) or out < 1:
            raise ConfigError(f"{path} has out_features {out!r}; expected a whole number above 0")
        layers.append(
            (folder / module, DenseConfig(size, out, bool(config.get("bias", True)), _ACTIVATIONS[name]))
        )
        size = out
    return layers


def _tensors(
    folder: Path, root: Path, kind: str, dense: list[Path]
) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Return our name -> name in the file, and our name -> stored tensor."""
    names: dict[str, str] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, stored in stored_tensors(root).items():
        ours = tensor_name(kind, name)
        if ours is None:
            continue
        projection = ours == "embedding_projection.weight"
        ours = "dense.0.linear.weight" if projection else f"embedding_model.{ours}"
        if ours in tensors:
            raise WeightsError(f"{folder}: {name} and {names[ours]} are the same tensor of the model: {ours}")
        names[ours], tensors[ours] = name, stored
    _add_dense(names, tensors, dense)
    return names, tensors


def _add_dense(names: dict[str, str], tensors: dict[str, StoredTensor], dense: list[Path]) -> None:
    for number, path in enumerate(dense, 1 if "dense.0.linear.weight" in tensors else 0):
        for name, stored in stored_tensors(path).items():
            ours = f"dense.{number}.{name}"
            names[ours], tensors[ours] = name, stored


def _prompts(folder: Path, settings: Mapping[str, Any], include_prompt: bool) -> ModelPrompts:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ConfigError(f"{folder / SETTINGS} has prompts {prompts!r:.60}; expected names with texts")
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ConfigError(
            f"{folder / SETTINGS} has default_prompt_name {default!r}; expected one of {', '.join(prompts)}"
        )
    texts = {str(name): text or "" for name, text in prompts.items()}
    if not include_prompt and any(map(takes_titles, texts.values())):
        raise ConfigError(f"{folder} has a prompt with a title that is not pooled, which is not supported")
    return ModelPrompts(texts, default)


def _refuse_code(hub: Mapping[str, Any]) -> None:
    """Refuse a config that needs code of its own, except code that only sets the direction of attention."""
    code = hub.get("auto_map")
    if code and "is_causal" not in hub and "use_bidirectional_attention" not in hub:
        names = ", ".join(sorted(map(str, code.values()))) if isinstance(code, Mapping) else str(code)
        raise ConfigError(
            f"config.json needs code of its own ({names}), which is never run. If that code only changes the "
            "direction of attention, add is_causal (true or false) to config.json"
        )


def _json_list(path: Path) -> list[dict[str, Any]]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): fetch the file again") from error
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value) or not value:
        raise ConfigError(f"{path} holds {value!r:.60}; expected a list of modules")
    return value
