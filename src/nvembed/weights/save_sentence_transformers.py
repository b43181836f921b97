"""Writes models in the layout of sentence-transformers, so that other libraries open them.

Where that library's own modules compute the same vectors, the folder has them: Transformer, Pooling and
Normalize around a model of transformers. Otherwise (latent attention, the released text mode) it has the
module ``nvembed.integrations.sentence_transformers.EncoderModule`` around a checkpoint in NV-Embed's layout.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from nvembed.model.config import BackboneConfig, PoolingKind
from nvembed.text.tokenize import TextTokenizer
from nvembed.weights.adapter import BACKBONE_PREFIX, json_bytes
from nvembed.weights.hub_backbone import decoder_config_dict
from nvembed.weights.model_config import write_config
from nvembed.weights.save import copy_model, save_model
from nvembed.weights.sentence_transformers import MODULES, SETTINGS
from nvembed.weights.tensors import INDEX, Checkpoint, file_tensors, read_json, read_tensor, shard_names

_MODULE = "nvembed.integrations.sentence_transformers.EncoderModule"
_POOLING: dict[PoolingKind, str] = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weighted_mean": "pooling_mode_weightedmean_tokens",
    "eos": "pooling_mode_lasttoken",
}


def save_sentence_transformers(
    folder: str | os.PathLike[str], model: Checkpoint, *, prompts: Mapping[str, str] | None = None
) -> str | None:
    """Write a model to a new folder that ``SentenceTransformer(folder)`` opens, with the same vectors.

    Tensors keep their stored dtype.

    Args:
        prompts: strings that are prepended to texts, by name, such as ``query`` and ``document``. None keeps
            those that the model brings itself.

    Returns:
        Why the folder needs this package and ``trust_remote_code=True``; None if sentence-transformers is
        enough.

    Raises:
        OutputError: the folder exists, or the disk is full.
    """
    if model.prompts is not None:
        files = {} if (model.folder / MODULES).is_file() else _files_of_plain(model)
        if prompts is not None or files:
            own = model.folder / SETTINGS
            settings = read_json(own) if own.is_file() else {}
            files[SETTINGS] = json_bytes(settings | {"prompts": dict(prompts or model.prompts.texts)})
        copy_model(model.folder, Path(folder), files)
        return None
    reason = module_reason(model, prompts or {})
    tensors = ((name, model.read(name)) for name in model.tensors)
    if reason is None:
        stock = ((name.removeprefix(BACKBONE_PREFIX), value) for name, value in tensors)
        save_model(folder, stock, lambda dtype: _stock_files(model, prompts or {}, dtype))
        return None
    save_model(
        folder,
        tensors,
        lambda dtype: {
            **model.tokenizer_files(),
            "config.json": json_bytes(write_config(model.config, model.text, dtype)),
            **module_files(prompts or {}),
        },
    )
    return reason


def save_trained(
    folder: str | os.PathLike[str], model: Checkpoint, tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Write a model in the layout of sentence-transformers with other weights, to a new folder.

    Its files are those of ``model.folder``: names in the files, shards and configs stay. Tensors of layers
    that ``model`` lacks are left out. The weights of one file are in memory at a time, and their bytes.

    Raises:
        OutputError: the folder exists, or the disk is full.
    """
    values = dict(tensors)
    root = model.tokenizer_folder or model.folder
    dropped = model.stored_names.keys() - values.keys()
    dropped_names = {model.stored_names[name] for name in dropped}
    by_file: dict[Path, dict[str, Tensor]] = {}
    for name in values:
        by_file.setdefault(model.tensors[name].file, {})[model.stored_names[name]] = values[name]
    files: dict[str, bytes] = {}
    for path in (root / name for name in shard_names(root)):
        by_file.setdefault(path, {})
    for path, stored in by_file.items():
        others = file_tensors(path).keys() - stored.keys() - dropped_names  # a head that is not used here
        if path.parent == root:
            stored |= {name: read_tensor(file_tensors(path)[name], name) for name in others}
        whole = {name: value.detach().cpu().contiguous() for name, value in sorted(stored.items())}
        files[path.relative_to(model.folder).as_posix()] = safetensors_bytes(whole, {"format": "pt"})
    if dropped:
        files |= _fewer_layers(model, root, dropped_names)
    copy_model(model.folder, Path(folder), files)


def _fewer_layers(model: Checkpoint, root: Path, dropped: set[str]) -> dict[str, bytes]:
    """Return the configs of a model whose last layers are left out."""
    count = model.config.backbone.num_layers
    config = read_json(root / "config.json")
    for key in ("num_hidden_layers", "n_layers"):
        if key in config:
            config[key] = count
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:count]
    files = {root / "config.json": config}
    if (root / INDEX).is_file():
        index = read_json(root / INDEX)
        index["weight_map"] = {
            name: file for name, file in index["weight_map"].items() if name not in dropped
        }
        files[root / INDEX] = index
    return {path.relative_to(model.folder).as_posix(): json_bytes(form) for path, form in files.items()}


def module_reason(model: Checkpoint, prompts: Mapping[str, str]) -> str | None:
    """Return why the library's own modules would compute other vectors; None if they would not."""
    text, pooling = model.text, model.config.pooling
    if pooling not in _POOLING:
        return f"{pooling} attention pooling is not a module of sentence-transformers"
    if text.mode == "released":
        return "the released text mode loses the EOS of truncated texts, as no setting of transformers does"
    if pooling != "eos" and text.mask_instruction and any(prompts.values()):
        return (
            "the tokens of a prompt are not pooled, and sentence-transformers counts them without the text: "
            "where the end of the prompt and the first word share a token, it would leave that one out too"
        )
    return None


def module_files(prompts: Mapping[str, str]) -> dict[str, bytes]:
    """Return what makes a folder in NV-Embed's layout a model of sentence-transformers with our module."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": _MODULE}]
    return {MODULES: json_bytes(modules), SETTINGS: _settings(prompts)}


def _settings(prompts: Mapping[str, str]) -> bytes:
    return json_bytes({"prompts": dict(prompts), "default_prompt_name": None, "similarity_fn_name": "cosine"})


def _stock_files(model: Checkpoint, prompts: Mapping[str, str], dtype: str) -> dict[str, bytes]:
    """Return everything but the weights of a folder with stock modules, of a decoder in NV-Embed's layout.

    ``is_causal`` false makes transformers compute attention in both directions.
    """
    backbone, text = model.config.decoder, model.text
    config = decoder_config_dict(backbone, bos_token_id=text.bos_id, eos_token_id=text.eos_id)
    [class_name] = config["architectures"]  # type: ignore[misc]
    if isinstance(backbone, BackboneConfig):
        kind = class_name.removesuffix("Model").lower()  # type: ignore[has-type]
        config |= {"model_type": kind, "is_causal": backbone.causal}
    config |= {"use_cache": False, "torch_dtype": dtype}
    return {
        "config.json": json_bytes(config),
        SETTINGS: _settings(prompts),
        **_tokenizer_files(model),
        **_module_configs(model),
    }


def _files_of_plain(model: Checkpoint) -> dict[str, bytes]:
    """Return what a transformers folder lacks to be a model of sentence-transformers."""
    tokenizer = _tokenizer_files(model) if model.text.eos_id >= 0 else {}
    return {**tokenizer, **_module_configs(model)}


def _module_configs(model: Checkpoint) -> dict[str, bytes]:
    pooling = model.config.pooling
    pool = {
        # the names of version 2, which all later versions read
        "word_embedding_dimension": model.config.dim,
        **{key: kind == pooling for kind, key in _POOLING.items()},
        "include_prompt": pooling == "eos" or not model.text.mask_instruction,
    }
    places = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(places.items())
    ]
    transformer = {"max_seq_length": model.text.max_length, "do_lower_case": model.text.lowercase}
    return {
        MODULES: json_bytes(modules),
        "1_Pooling/config.json": json_bytes(pool),
        "sentence_bert_config.json": json_bytes(transformer),
    }


def _tokenizer_files(model: Checkpoint) -> dict[str, bytes]:
    """Return the tokenizer's files with BOS and EOS in the template, for any class of transformers."""
    files = model.tokenizer_files()
    tokenizer = TextTokenizer(files["tokenizer.json"], model.text)
    form: dict[str, Any] = json.loads(files["tokenizer.json"])
    form["post_processor"] = tokenizer.template()
    own = json.loads(files.get("tokenizer_config.json", b"{}"))
    obsolete = ("auto_map", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "use_fast")
    config = {key: value for key, value in own.items() if key not in obsolete}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.text.max_length,
        "padding_side": "right",
        "split_special_tokens": tokenizer.splits_special,
        "eos_token": tokenizer.token(model.text.eos_id),
    }
    config.setdefault("pad_token", config["eos_token"])
    return {"tokenizer.json": json_bytes(form), "tokenizer_config.json": json_bytes(config)}
