"""Decoder configs: from the hub's ``config.json`` to ours, and back."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from nvembed.errors import ConfigError
from nvembed.model.config import Architecture, BackboneConfig, RopeScaling, YarnScaling
from nvembed.weights.compression import read_compression

# "bidir_mistral" is NV-Embed v2's name of a Mistral without its causal mask
ARCHITECTURES: dict[str, Architecture] = {
    "mistral": "mistral",
    "bidir_mistral": "mistral",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "ministral3": "ministral3",
}
SUPPORTED = "mistral, llama (with SmolLM2 and Llama 3.x), qwen2, qwen3, ministral3, gemma3_text"

# The model is built before its weights are read; no real model is larger.
MAX_SIZE, MAX_LAYERS = 1 << 24, 1024


class _Defaults(NamedTuple):
    """The values that transformers uses for keys that a file lacks."""

    kv_heads: int | None  # None: the number of attention heads
    max_position: int
    head_dim: int | None = None  # None: hidden size / heads


_REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_DEFAULTS: dict[Architecture, _Defaults] = {
    "mistral": _Defaults(8, 131_072),
    "llama": _Defaults(None, 2048),
    "qwen2": _Defaults(32, 32_768),
    "qwen3": _Defaults(32, 32_768, head_dim=128),
    "ministral3": _Defaults(8, 262_144, head_dim=128),
}
_RMS_NORM_EPS = 1e-6
_ROPE_THETA = 10000.0


def backbone_config(config: Mapping[str, object]) -> BackboneConfig:
    """Read a transformers-style config of a decoder (a causal LM's, or NV-Embed's ``text_config``).

    Old and new places of the rotary settings are read (``rope_theta`` and ``rope_scaling``, or
    ``rope_parameters``). Optional keys have the defaults of transformers for their ``model_type``. Keys
    without an effect in inference without a causal mask (``sliding_window``, ``layer_types``, ``use_cache``,
    dropout) are ignored.

    Raises:
        ConfigError: an architecture or setting is not supported, required keys are missing, or a value is
            invalid.
    Released: ``model_type`` is ``bidir_mistral`` and ``sliding_window`` (4096) is never applied.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        raise ConfigError(f"unsupported backbone: got model_type {model_type!r}; expected {SUPPORTED}")
    architecture = ARCHITECTURES[model_type]
    defaults = _DEFAULTS[architecture]
    _refuse_unsupported(config)
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise ConfigError(f"a {architecture} config lacks {', '.join(missing)}: add them")
    hidden_size = size_of(config, "hidden_size")
    num_heads = size_of(config, "num_attention_heads")
    kv_default = defaults.kv_heads
    if "num_key_value_heads" in config or kv_default is None:
        kv_default = num_heads  # transformers reads an explicit null as "as many as heads"
    num_kv_heads = size_of(config, "num_key_value_heads", kv_default)
    if num_heads % num_kv_heads:
        raise ConfigError(
            f"num_attention_heads ({num_heads}) must be a multiple of num_key_value_heads ({num_kv_heads})"
        )
    max_position = size_of(config, "max_position_embeddings", defaults.max_position)
    rope_theta, rope_scaling = _rope(config, max_position)
    return BackboneConfig(
        architecture=architecture,
        vocab_size=size_of(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=size_of(config, "intermediate_size"),
        num_layers=size_of(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(config, defaults.head_dim, hidden_size, num_heads),
        max_position=max_position,
        rms_norm_eps=number(config, "rms_norm_eps", _RMS_NORM_EPS),
        rope_theta=rope_theta,
        rope_scaling=rope_scaling,
    )


def hub_config_dict(
    config: BackboneConfig, *, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> dict[str, object]:
    """Return a backbone in the form of the released ``text_config``; `backbone_config` reads it back.

    A Llama that computes the same as a Mistral (no rotary scaling, ``head_dim`` = hidden / heads) becomes
    ``bidir_mistral``, so that the published code can load it.

    Differs: ``sliding_window`` is null, in the released file 4096: the model does not apply it, and readers
        must not. The caller adds ``_name_or_path``.
    """
    plain_heads = config.head_dim * config.num_heads == config.hidden_size
    architecture = config.architecture
    if architecture == "llama" and config.rope_scaling is None and plain_heads:
        architecture = "mistral"
    class_name = architecture.capitalize()
    written: dict[str, object] = {
        "architectures": [f"{class_name}Model"],
        "attention_dropout": 0.0,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position,
        "model_type": "bidir_mistral" if architecture == "mistral" else architecture,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": None,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if not plain_heads or architecture == "qwen3":
        written["head_dim"] = config.head_dim
    if isinstance(config.rope_scaling, YarnScaling):
        raise ConfigError("NV-Embed's layout cannot store YaRN positions (Ministral 3)")
    if config.rope_scaling is not None:
        written["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_position,
        }
    return written


def _refuse_unsupported(config: Mapping[str, object]) -> None:
    """Refuse settings that would change the result and that our decoder does not have."""
    hidden_act = config.get("hidden_act", "silu")
    if hidden_act != "silu":
        raise ConfigError(f"hidden_act is {hidden_act!r}; only 'silu' is supported")
    refuse(config, "attention_bias", "mlp_bias")
    read_compression(config)


def refuse(config: Mapping[str, object], *keys: str) -> None:
    """Raise ConfigError if one of these settings is on."""
    for key in keys:
        if config.get(key):
            raise ConfigError(f"{key} is {config[key]!r}, which is not supported")


def _rope(config: Mapping[str, object], max_position: int) -> tuple[float, RopeScaling | YarnScaling | None]:
    """Return the base of the rotary frequencies, and Llama 3.1's or YaRN's scaling of them."""
    settings = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"rope_parameters (or rope_scaling) must be an object; got {settings!r}")
    partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ConfigError(f"partial_rotary_factor is {partial!r}; only whole heads (1.0) are supported")
    holder = settings if settings.get("rope_theta") is not None else config
    theta = number(holder, "rope_theta", _ROPE_THETA)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "yarn":
        return theta, _yarn(settings, max_position)
    if kind != "llama3":
        raise ConfigError(
            f"rotary scaling of type {kind!r} is not supported; expected 'default', 'llama3' or 'yarn'"
        )
    keys = ("factor", "low_freq_factor", "high_freq_factor")
    missing = [key for key in keys if settings.get(key) is None]
    if missing:
        raise ConfigError(f"rotary scaling of type 'llama3' lacks {', '.join(missing)}: add them")
    factor, low, high = (number(settings, key, None) for key in keys)
    if low >= high:
        raise ConfigError(f"low_freq_factor ({low}) must be below high_freq_factor ({high})")
    original = size_of(settings, "original_max_position_embeddings", max_position)
    return theta, RopeScaling(factor, low, high, original)


def _yarn(settings: Mapping[str, object], max_position: int) -> YarnScaling:
    original = size_of(settings, "original_max_position_embeddings", max_position)
    factor = number(settings, "factor", max_position / original)

    def magnitude(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    attention = settings.get("attention_factor")
    if attention is None:
        mscale, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
        both = isinstance(mscale, int | float) and isinstance(all_dim, int | float) and mscale and all_dim
        attention = magnitude(float(mscale)) / magnitude(float(all_dim)) if both else magnitude(1.0)  # type: ignore[arg-type]
    return YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=number(settings, "beta_fast", 32.0),
        beta_slow=number(settings, "beta_slow", 1.0),
        attention_factor=float(attention),  # type: ignore[arg-type]
        truncate=bool(settings.get("truncate", True)),
    )


def _head_dim(config: Mapping[str, object], default: int | None, hidden_size: int, num_heads: int) -> int:
    if config.get("head_dim") is None and (default is None or "head_dim" in config):
        if hidden_size % num_heads:
            raise ConfigError(
                f"hidden_size ({hidden_size}) is not a multiple of num_attention_heads ({num_heads}) and "
                "there is no head_dim"
            )
        head_dim = hidden_size // num_heads
    else:
        head_dim = size_of(config, "head_dim", default)
    if head_dim % 2:
        raise ConfigError(f"head_dim is {head_dim}; rotary embeddings need an even number")
    return head_dim


def size_of(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    """Return a whole number above 0, or ``default`` if the key is missing or null.

    Raises:
        ConfigError: the value is something else, or too large.
    """
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{key} must be a whole number above 0; got {value!r:.40}")
    limit = MAX_LAYERS if key == "num_hidden_layers" else MAX_SIZE
    if value > limit:
        raise ConfigError(f"{key} is {value:,}; expected at most {limit:,}: the config is damaged")
    return value


def number(config: Mapping[str, object], key: str, default: float | None) -> float:
    """Return a finite number above 0, or ``default`` if the key is missing or null."""
    value = config.get(key)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{key} must be a number above 0; got {value!r}")
    return float(value)
