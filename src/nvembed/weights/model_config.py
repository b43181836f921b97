"""``config.json`` and ``tokenizer_config.json`` of an NV-Embed checkpoint, both ways.

Settings that the released layout lacks (other poolings, the text mode) are under the key ``nvembed``, which
the published code ignores.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast, get_args

from nvembed.errors import ConfigError
from nvembed.model.config import BackboneConfig, DenseConfig, ModelConfig, PoolerConfig, PoolingKind
from nvembed.text.tokenize import Mode, TextSettings
from nvembed.weights.hub_backbone import decoder_config, decoder_config_dict
from nvembed.weights.hub_config import size_of
from nvembed.weights.tensors import token_text


def read_config(
    config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> tuple[ModelConfig, TextSettings]:
    """Read both files of a checkpoint.

    Raises:
        ConfigError: the model or a setting is not supported.
    Released: ``latent_attention_config`` holds no sizes; they are the published classes' defaults. The
        instruction is masked only if ``is_mask_instruction`` is true and padding is on the right.
    """
    kind = config.get("model_type")
    if kind != "nvembed":
        raise ConfigError(
            f"config.json has model_type {kind!r}: expected 'nvembed'. To make an untrained model from a "
            "causal LM: `nvembed init`"
        )
    text_config = config.get("text_config")
    if not isinstance(text_config, Mapping):
        raise ConfigError(f"config.json has text_config {text_config!r:.40}: expected the backbone's config")
    ours = _section(config, "nvembed")
    backbone = decoder_config(text_config)
    if isinstance(backbone, BackboneConfig):
        backbone = replace(backbone, causal=bool(ours.get("causal", False)))
    pooling = _choice(ours, "pooling", "latent", get_args(PoolingKind))
    model = ModelConfig(
        backbone=backbone,
        pooler=_pooler(_section(config, "latent_attention_config"), backbone.hidden_size),
        pooling=cast(PoolingKind, pooling),
        dense=_dense(ours, backbone.hidden_size),
    )
    bos = ours.get("bos_token_id", text_config.get("bos_token_id"))
    masked = bool(config.get("is_mask_instruction", True)) and config.get("padding_side", "right") == "right"
    return model, TextSettings(
        mode=cast(Mode, _choice(ours, "text_mode", "released", get_args(Mode))),
        max_length=size_of(ours, "max_length", backbone.max_position),
        eos_token=_token(tokenizer_config, "eos_token"),
        eos_id=_token_id({"eos_token_id": 2, **text_config, **ours}, "eos_token_id", backbone.vocab_size),
        bos_id=None if bos is None else _token_id({"bos_token_id": bos}, "bos_token_id", backbone.vocab_size),
        mask_instruction=masked,
    )


def read_truncate_dim(config: Mapping[str, Any], model: ModelConfig) -> int | None:
    """Return how many numbers of a vector are kept by default; None is all.

    Raises:
        ConfigError: more than the model makes.
    """
    ours = _section(config, "nvembed")
    if ours.get("truncate_dim") is None:
        return None
    value = size_of(ours, "truncate_dim")
    if value > model.dim:
        raise ConfigError(f"config.json has nvembed.truncate_dim {value}: expected at most {model.dim}")
    return value


def _dense(ours: Mapping[str, Any], size: int) -> tuple[DenseConfig, ...]:
    """Return the layers after pooling: a rotation to fewer dimensions."""
    layers = []
    for out in ours.get("rotations") or ():
        layers.append(DenseConfig(size, size_of({"rotations": out}, "rotations"), False, "identity"))
        size = layers[-1].out_size
    return tuple(layers)


def write_config(model: ModelConfig, text: TextSettings, dtype: str) -> dict[str, Any]:
    """Return ``config.json`` in the released layout; ``read_config`` reads it back to the same values.

    Differs: no ``auto_map``, because its code is not in the folder and other libraries would offer to run it.

    The published code reads its tokenizer from ``text_config._name_or_path``, which is ``.`` here: run that
    code in the checkpoint's folder.
    """
    size, pooler = model.backbone.hidden_size, model.pooler
    causal = {"causal": True} if model.decoder.causal else {}  # the published code has no such model
    backbone = decoder_config_dict(model.decoder, bos_token_id=text.bos_id, eos_token_id=text.eos_id)
    return {
        "_name_or_path": ".",
        "add_eos": True,
        "add_pad_token": True,
        "architectures": ["NVEmbedModel"],
        "hidden_size": size,
        "is_mask_instruction": text.mask_instruction,
        "latent_attention_config": {
            "model_type": "latent_attention",
            "num_latents_value": pooler.num_latents,
            "num_cross_heads": pooler.num_heads,
            "cross_dim_head": pooler.head_dim,
            "hidden_dim": size,
            "latent_dim": size,
            "output_normalize": True,
        },
        "mask_type": "b",
        "model_type": "nvembed",
        "nvembed": {
            **causal,
            **({"rotations": [layer.out_size for layer in model.dense]} if model.dense else {}),
            "bos_token_id": text.bos_id,
            "eos_token_id": text.eos_id,
            "max_length": text.max_length,
            "pooling": model.pooling,
            "text_mode": text.mode,
        },
        "padding_side": "right",
        "text_config": {"_name_or_path": ".", **backbone},
        "torch_dtype": dtype,
    }


def _pooler(config: Mapping[str, Any], hidden_size: int) -> PoolerConfig:
    for key in ("hidden_dim", "latent_dim"):
        if config.get(key, hidden_size) != hidden_size:
            raise ConfigError(
                f"latent_attention_config has {key} {config[key]}: expected the backbone's hidden size, "
                f"{hidden_size}"
            )
    if not config.get("output_normalize", True):
        raise ConfigError("latent_attention_config has output_normalize false: expected true")
    return PoolerConfig(
        num_latents=size_of(config, "num_latents_value", 512),
        num_heads=size_of(config, "num_cross_heads", 8),
        head_dim=size_of(config, "cross_dim_head", 4096),
    )


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if not isinstance(value, Mapping | None):
        raise ConfigError(f"config.json has {key} {value!r:.40}: expected an object")
    return value or {}


def _choice(config: Mapping[str, Any], key: str, default: str, allowed: tuple[str, ...]) -> str:
    value = config.get(key, default)
    if value not in allowed:
        raise ConfigError(f"config.json has nvembed.{key} {value!r}: expected one of {', '.join(allowed)}")
    return str(value)


def _token_id(config: Mapping[str, Any], key: str, vocab_size: int) -> int:
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size:
        raise ConfigError(f"config.json has {key} {value!r:.40}: expected a token's id, below {vocab_size:,}")
    return value


def _token(config: Mapping[str, Any], key: str) -> str:
    token = token_text(config, key)
    if token is None:
        raise ConfigError(f"tokenizer_config.json has {key} {config.get(key)!r}: expected the token's text")
    return token
