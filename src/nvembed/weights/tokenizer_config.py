"""How a transformers folder reads its text: ``tokenizer.json``, and the settings beside it that change it.

A folder may contradict itself. What the model was trained with wins, which is what ``tokenizer_config.json``
says: the classes of transformers followed it when the model was trained. Every contradiction is a note.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from nvembed.errors import ConfigError
from nvembed.text.tokenize import TextSettings
from nvembed.text.tokenizer_json import Tokenizer, read_tokenizer
from nvembed.weights.tensors import incomplete, read_json, token_text

_TRANSFORMER_SETTINGS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
# Tokenizers that build their normalizer from tokenizer_config.json, and the models whose tokenizers they are.
_WORDPIECE = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer")
_WORDPIECE_MODELS = ("bert", "distilbert", "mpnet")
_NORMALIZER = {  # key of tokenizer_config.json -> key of the normalizer, default of the class
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
# Settings of the Transformer module that change nothing here, with the values that they may have.
_DEFAULTS: dict[str, tuple[object, ...]] = {
    "transformer_task": ("feature-extraction", None),
    "module_output_name": ("token_embeddings", None),
    "query_expansion": (None, False),
    "tokenizer_name_or_path": (None,),
}
_TEXT_OUTPUT = {"method": "forward", "method_output_name": "last_hidden_state"}
_ARGUMENTS = (
    "model_args",
    "model_kwargs",
    "config_args",
    "config_kwargs",
    "tokenizer_args",
    "processor_kwargs",
)
_HARMLESS = {
    "attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "use_cache",
    "use_safetensors", "padding_side", "padding", "truncation", "return_tensors", "use_fast", "revision",
    "token", "cache_dir", "local_files_only", "subfolder", "unpad_inputs", "clean_up_tokenization_spaces",
}  # fmt: skip


class TextReading(NamedTuple):
    """Text settings, the tokenizer if it was parsed for them, its JSON if that was changed, and notes."""

    settings: TextSettings
    tokenizer: Tokenizer | None
    tokenizer_json: bytes | None
    notes: tuple[str, ...]


def read_text_settings(
    root: Path, hub: Mapping[str, Any], *, max_position: int, include_prompt: bool
) -> TextReading:
    """Read a folder's tokenizer settings; ``hub`` is its ``config.json``.

    Raises:
        ConfigError: a file is missing or damaged, or a setting is not supported.
    """
    path = root / "tokenizer.json"
    if not path.is_file():
        error = incomplete(path)
        raise ConfigError(
            f"{error}. If it has another tokenizer file, write this one with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    config = read_json(root / "tokenizer_config.json") if (root / "tokenizer_config.json").is_file() else {}
    own, limit = _transformer_settings(root)
    limits = [max_position]
    limit = limit or config.get("model_max_length")
    if isinstance(limit, int | float) and not isinstance(limit, bool) and 0 < limit < 1e9:
        limits.append(int(limit))
    notes: list[str] = []
    changed = _changed_normalizer(path.read_bytes(), config, str(hub.get("model_type")), notes)
    tokenizer: Tokenizer | None = None
    bos: int | None = None
    eos: int | None = None
    if config.get("add_bos_token") or config.get("add_eos_token"):
        tokenizer = read_tokenizer(changed or path.read_bytes())
        bos = _missing_token(root, hub, config, tokenizer, "bos", notes)
        eos = _missing_token(root, hub, config, tokenizer, "eos", notes)
    settings = TextSettings(
        mode="template",
        max_length=min(limits),
        eos_token="",
        eos_id=-1 if eos is None else eos,
        bos_id=bos,
        mask_instruction=not include_prompt,
        lowercase=bool(own.get("do_lower_case", False)),
        split_special=bool(config.get("split_special_tokens", False)),
    )
    return TextReading(settings, tokenizer, changed, tuple(notes))


def _transformer_settings(root: Path) -> tuple[dict[str, Any], object]:
    """Read the settings of the Transformer module, and the most tokens of a text if they say it.

    Raises:
        ConfigError: a setting changes the vectors in a way that is not supported.
    """
    names = [f"sentence_{kind}_config.json" for kind in _TRANSFORMER_SETTINGS]
    path = next((root / name for name in names if (root / name).is_file()), None)
    own = {} if path is None else read_json(path)
    for key, allowed in _DEFAULTS.items():
        if key in own and own[key] not in allowed:
            raise ConfigError(f"{path} has {key} {own[key]!r:.60}, which is not supported")
    text = (own.get("modality_config") or {"text": _TEXT_OUTPUT}).get("text")
    if not isinstance(text, Mapping) or not _TEXT_OUTPUT.items() <= {**_TEXT_OUTPUT, **text}.items():
        raise ConfigError(
            f"{path} reads text by {text!r:.80}, which is not supported: expected {_TEXT_OUTPUT}"
        )
    limit = own.get("max_seq_length")
    places = {key: own.get(key) or {} for key in _ARGUMENTS}
    processing = own.get("processing_kwargs") or {}
    for key in ("text", "common") if isinstance(processing, Mapping) else ():
        places[f"processing_kwargs.{key}"] = processing.get(key) or {}
    for key, arguments in places.items():
        if not isinstance(arguments, Mapping):
            raise ConfigError(f"{path} has {key} {arguments!r:.60}; expected an object")
        limit = arguments.get("max_length", arguments.get("model_max_length", limit))
        unknown = sorted(arguments.keys() - _HARMLESS - {"max_length", "model_max_length"})
        if unknown:
            raise ConfigError(
                f"{path} has {key} with {', '.join(unknown)}, which is not supported: write the settings "
                "into config.json or tokenizer_config.json, and remove them here"
            )
    return own, limit


def _changed_normalizer(
    tokenizer_json: bytes, config: Mapping[str, Any], model_type: str, notes: list[str]
) -> bytes | None:
    """Return tokenizer.json with the normalizer that tokenizer_config.json describes; None if it has it."""
    name = str(config.get("tokenizer_class") or "").removesuffix("Fast")
    if name not in _WORDPIECE and (name or not config or model_type not in _WORDPIECE_MODELS):
        return None
    try:
        form = json.loads(tokenizer_json)
    except (ValueError, RecursionError):
        return None  # the reader of the file says what is wrong
    normalizer = form.get("normalizer") if isinstance(form, dict) else None
    if not isinstance(normalizer, dict) or normalizer.get("type") != "BertNormalizer":
        return None
    differences = []
    for key, (place, default) in _NORMALIZER.items():
        value = config.get(key, default)
        if normalizer.get(place, value) != value:
            differences.append(f"{key} {value} ({place} is {normalizer[place]} in tokenizer.json)")
            normalizer[place] = value
    if not differences:
        return None
    notes.append(f"tokenizer_config.json is followed: {', '.join(differences)}")
    return json.dumps(form, ensure_ascii=False).encode()


def _missing_token(
    root: Path,
    hub: Mapping[str, Any],
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    role: str,
    notes: list[str],
) -> int | None:
    """Return the id of a token that tokenizer_config.json adds and tokenizer.json does not; None without."""
    if not config.get(f"add_{role}_token"):
        return None
    token = token_text(config, f"{role}_token")
    number = tokenizer.token_to_id(str(token))
    number = hub.get(f"{role}_token_id") if number is None else number
    if not isinstance(number, int):
        raise ConfigError(
            f"{root}: tokenizer_config.json sets add_{role}_token, but there is no token {token!r} to add"
        )
    if tokenizer.encode("a").ids[0 if role == "bos" else -1] == number:
        return None
    notes.append(
        f"tokenizer_config.json sets add_{role}_token, tokenizer.json does not: token {number} is added"
    )
    return number
