"""Folders in the layout of sentence-transformers, and plain transformers folders whose pooling is known.

``modules.json`` lists Transformer, Pooling, any number of Dense, and Normalize. A module of another type is
refused by name: nothing of a folder is ever run as code.

Differs: vectors are always unit vectors, with or without a Normalize module; where one is missing and the
model's similarity is not the cosine, the folder is refused.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.config import Activation, DenseConfig, ModelConfig, PoolerConfig, PoolingKind
from nvembed.text.model_prompts import ModelPrompts, takes_titles
from nvembed.text.tokenize import TextSettings, last_token
from nvembed.weights.hub_backbone import read_backbone_config, tensor_name
from nvembed.weights.tensors import (
    StoredTensor,
    compare_tensors,
    expected_tensors,
    incomplete,
    read_json,
    read_tensor,
    stored_tensors,
)

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
_TRANSFORMER_SETTINGS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
_ACTIVATIONS: dict[str, Activation] = {
    "Identity": "identity",
    "Tanh": "tanh",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
}


@dataclass(frozen=True)
class SentenceModel:
    """What a folder says: sizes, text settings, tensors under our names, prompts.

    Args:
        read: (our name, first rows or None) -> the values of a tensor.
        tokenizer_folder: where tokenizer.json lies.
        prompts: strings put before texts, by name.
        truncate_dim: dimensions that are kept, or None for all.
        notes: contradictions in the folder, and how they were resolved.
    """

    config: ModelConfig
    text: TextSettings
    tensors: dict[str, StoredTensor]
    read: Callable[[str, int | None], Tensor]
    tokenizer_folder: Path
    prompts: ModelPrompts = field(default_factory=ModelPrompts)
    truncate_dim: int | None = None
    notes: tuple[str, ...] = ()


def open_sentence_transformers(folder: Path, *, pooling: str | None = None) -> SentenceModel:
    """Read a folder's configs and the headers of its safetensors files; load no weights.

    Args:
        pooling: how to pool, for a folder without ``modules.json`` whose config does not say.

    Raises:
        ConfigError: a module, architecture or setting this package does not have; a folder that does not
            say how to pool; remote code that would be needed.
        WeightsError: no safetensors, a corrupt file, or tensors that do not fit the config.
    """
    modules = _modules(folder)
    settings = read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    root = folder / (modules[0] or "") if modules else folder
    hub = read_json(root / "config.json")
    _refuse_code(hub)
    backbone = read_backbone_config(hub)
    kind, include_prompt = _pooling(folder, modules, hub, pooling, backbone.hidden_size)
    dense = _dense(folder, modules[2:], backbone.hidden_size)
    normalized = not modules or any(path is None for path in modules[2:])
    if not normalized and settings.get("similarity_fn_name", "cosine") not in ("cosine", None):
        raise ConfigError(
            f"{folder}: vectors are not normalised and are compared by {settings['similarity_fn_name']!r}; "
            "expected a Normalize module or cosine similarity: only unit vectors are made here"
        )
    config = ModelConfig(backbone, PoolerConfig(), kind, tuple(config for _, config in dense))
    prompts = _prompts(folder, settings)
    if not include_prompt and any(map(takes_titles, prompts.texts.values())):
        raise ConfigError(f"{folder} has a prompt with a title that is not pooled, which is not supported")
    text, notes = _text(root, hub, config, include_prompt)
    names, tensors = _tensors(folder, root, str(hub.get("model_type")), dense)
    compare_tensors(folder, tensors, expected_tensors(config))
    truncate_dim = settings.get("truncate_dim")
    return SentenceModel(
        config,
        text,
        tensors,
        lambda name, rows: read_tensor(tensors[name], names[name], rows),
        root,
        prompts=prompts,
        truncate_dim=None if truncate_dim is None else int(truncate_dim),
        notes=notes,
    )


def _modules(folder: Path) -> list[str | None]:
    """Return the paths of the modules; of Normalize, None. An empty list without ``modules.json``."""
    if not (folder / MODULES).is_file():
        return []
    listed = _json_list(folder / MODULES)
    kinds = []
    paths: list[str | None] = []
    for entry in listed:
        kind, path = str(entry.get("type", "")), entry.get("path")
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or name not in (
            "Transformer",
            "Pooling",
            "Dense",
            "Normalize",
        ):
            raise ConfigError(
                f"{folder / MODULES} has a module of type {kind!r}; expected Transformer, Pooling, Dense or "
                "Normalize of sentence_transformers: no other code is run"
            )
        if not isinstance(path, str) or Path(path).is_absolute() or ".." in Path(path).parts:
            raise ConfigError(f"{folder / MODULES} has the path {path!r}; expected a folder inside the model")
        kinds.append(name)
        paths.append(None if name == "Normalize" else path)
    order = "".join(kind[0] for kind in kinds)
    if order.rstrip("N").rstrip("D") != "TP" or order.count("N") > 1:
        raise ConfigError(
            f"{folder / MODULES} lists {', '.join(kinds)}; expected Transformer, Pooling, then Dense "
            "modules, then Normalize"
        )
    return paths


def _pooling(
    folder: Path, modules: list[str | None], hub: Mapping[str, Any], pooling: str | None, size: int
) -> tuple[PoolingKind, bool]:
    if not modules:
        mode = pooling or hub.get("pooling")
        if mode not in _POOLING:
            raise ConfigError(
                f"{folder} does not say how to pool ({mode!r}), and it is not guessed: pass pooling as one "
                f"of {', '.join(sorted(_POOLING))}"
            )
        return _POOLING[str(mode)], True
    path = folder / str(modules[1]) / "config.json"
    if not path.is_file():
        raise ConfigError(f"{path} is missing: it says how to pool, which is not guessed; fetch the file")
    config = read_json(path)
    width = config.get("embedding_dimension", config.get("word_embedding_dimension", size))
    if width != size:
        raise ConfigError(f"{path} pools vectors of {width} numbers; the backbone makes {size}")
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


def _dense(folder: Path, modules: list[str | None], size: int) -> list[tuple[Path, DenseConfig]]:
    found = []
    for module in modules:
        if module is None:
            continue
        path = folder / module / "config.json"
        config = read_json(path)
        if config.get("in_features") != size:
            raise ConfigError(
                f"{path} takes {config.get('in_features')!r} numbers; the module before it makes {size}"
            )
        name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
        if name not in _ACTIVATIONS:
            raise ConfigError(f"{path} has activation {name!r}; expected one of {', '.join(_ACTIVATIONS)}")
        if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") not in (
            "sentence_embedding",
        ):
            raise ConfigError(f"{path} has a residual or another input, which are not supported")
        out = config.get("out_features")
        if isinstance(out, bool) or not isinstance(out, int) or out < 1:
            raise ConfigError(f"{path} has out_features {out!r}; expected a whole number above 0")
        found.append(
            (folder / module, DenseConfig(size, out, bool(config.get("bias", True)), _ACTIVATIONS[name]))
        )
        size = out
    return found


def _text(
    root: Path, hub: Mapping[str, Any], config: ModelConfig, include_prompt: bool
) -> tuple[TextSettings, tuple[str, ...]]:
    """Return how the tokenizer reads text, and notes about files that contradict one another."""
    if not (root / "tokenizer.json").is_file():
        raise incomplete(root / "tokenizer.json")
    names = [f"sentence_{kind}_config.json" for kind in _TRANSFORMER_SETTINGS]
    own: dict[str, Any] = next((read_json(root / name) for name in names if (root / name).is_file()), {})
    path = root / "tokenizer_config.json"
    tokenizer_config = read_json(path) if path.is_file() else {}
    limits = [config.backbone.max_position]
    limit = own.get("max_seq_length") or tokenizer_config.get("model_max_length")
    if isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < 1e9:
        limits.append(int(limit))
    eos_id = -1
    notes: tuple[str, ...] = ()
    if tokenizer_config.get("add_eos_token"):
        eos_id, notes = _missing_eos(root, hub, tokenizer_config)
    return TextSettings(
        mode="template",
        max_length=min(limits),
        eos_token="",
        eos_id=eos_id,
        mask_instruction=not include_prompt,
        lowercase=bool(own.get("do_lower_case", False)),
        split_special=bool(tokenizer_config.get("split_special_tokens", False)),
    ), notes


def _missing_eos(
    root: Path, hub: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> tuple[int, tuple[str, ...]]:
    """Return the EOS token that tokenizer_config.json asks for and tokenizer.json does not add, or -1.

    The model was trained with what tokenizer_config.json says: the tokenizer of that time read it.
    """
    token = tokenizer_config.get("eos_token")
    token = token.get("content") if isinstance(token, Mapping) else token
    last, number = last_token((root / "tokenizer.json").read_bytes(), str(token))
    number = hub.get("eos_token_id") if number is None else number
    if not isinstance(number, int):
        raise ConfigError(
            f"{root}: tokenizer_config.json says add_eos_token, and there is no token {token!r} to add"
        )
    if last == number:
        return -1, ()
    note = f"tokenizer_config.json says add_eos_token, tokenizer.json does not add it: {token} is appended"
    return number, (note,)


def _tensors(
    folder: Path, root: Path, kind: str, dense: list[tuple[Path, DenseConfig]]
) -> tuple[dict[str, str], dict[str, StoredTensor]]:
    """Return our name -> name in the file, and our name -> stored tensor."""
    names: dict[str, str] = {}
    tensors: dict[str, StoredTensor] = {}
    for name, stored in stored_tensors(root).items():
        ours = tensor_name(kind, name)
        if ours is None:
            continue
        ours = f"embedding_model.{ours}"
        if ours in tensors:
            raise WeightsError(f"{folder}: {name} and {names[ours]} are the same tensor of the model: {ours}")
        names[ours], tensors[ours] = name, stored
    for number, (path, _) in enumerate(dense):
        for name, stored in stored_tensors(path).items():
            ours = f"dense.{number}.{name}"
            names[ours], tensors[ours] = name, stored
    return names, tensors


def _prompts(folder: Path, settings: Mapping[str, Any]) -> ModelPrompts:
    prompts = settings.get("prompts") or {}
    if not isinstance(prompts, Mapping) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ConfigError(f"{folder / SETTINGS} has prompts {prompts!r:.60}; expected names with texts")
    default = settings.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ConfigError(
            f"{folder / SETTINGS} has default_prompt_name {default!r}; expected one of {', '.join(prompts)}"
        )
    return ModelPrompts({str(name): text or "" for name, text in prompts.items()}, default)


def _refuse_code(hub: Mapping[str, Any]) -> None:
    """Refuse a config that asks for code of its own, unless it says what that code changes."""
    code = hub.get("auto_map")
    if code and "is_causal" not in hub and "use_bidirectional_attention" not in hub:
        names = ", ".join(sorted(map(str, code.values()))) if isinstance(code, Mapping) else str(code)
        raise ConfigError(
            f"config.json asks to run code of its own ({names}), which is never done; where that code only "
            "changes the direction of attention, add is_causal (true or false) to config.json"
        )


def _json_list(path: Path) -> list[dict[str, Any]]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): fetch the file again") from error
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value) or not value:
        raise ConfigError(f"{path} holds {value!r:.60}; expected a list of modules")
    return value
