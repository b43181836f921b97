"""Configs and tensor names of all backbones, as transformers writes them.

Settings that would change the result and that our modules do not have are refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from nvembed.errors import ConfigError
from nvembed.model.config import (
    Activation,
    AnyBackbone,
    BackboneConfig,
    BertConfig,
    DecoderConfig,
    EmbeddingGemma2Config,
    GemmaConfig,
    ModernBertConfig,
)
from nvembed.weights.compression import read_compression
from nvembed.weights.hub_config import (
    ARCHITECTURES,
    backbone_config,
    hub_config_dict,
    number,
    refuse,
    size_of,
)

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

Config = Mapping[str, Any]

EMBEDDING_GEMMA_2 = ("embedding_gemma2", "embedding_gemma2_text")


def read_backbone_config(config: Config) -> AnyBackbone:
    """Read the ``config.json`` of a backbone.

    Raises:
        ConfigError: the architecture or a setting is not supported, or a value is out of range.
    """
    read_compression(config)
    kind = config.get("model_type")
    if kind in ARCHITECTURES:
        return _decoder(config)
    if kind in _READERS:
        return _READERS[str(kind)](config)
    known = ", ".join(sorted({*ARCHITECTURES, *_READERS} - {"bidir_mistral"}))
    raise ConfigError(f"config.json has model_type {kind!r}; expected one of {known}")


def decoder_config(config: Mapping[str, object]) -> DecoderConfig:
    """Read the config of a decoder that NV-Embed's layout can store, without the window of a Mistral.

    Raises:
        ConfigError: see `backbone_config`.
    """
    return _gemma(config) if config.get("model_type") == "gemma3_text" else backbone_config(config)


def decoder_config_dict(
    config: DecoderConfig, *, bos_token_id: int | None = None, eos_token_id: int | None = None
) -> dict[str, object]:
    """Return a decoder's config as transformers stores it; `decoder_config` reads it back."""
    if isinstance(config, BackboneConfig):
        return hub_config_dict(config, bos_token_id=bos_token_id, eos_token_id=eos_token_id)
    radius = next((radius for radius in config.windows if radius is not None), 0)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in config.windows]
    scaling = {} if config.global_factor == 1 else {"rope_type": "linear", "factor": config.global_factor}
    return {
        "architectures": ["Gemma3TextModel"],
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "head_dim": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_types": kinds,
        "max_position_embeddings": config.max_position,
        "model_type": "gemma3_text",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": None,
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.global_theta} | scaling,
            "sliding_attention": {"rope_type": "default", "rope_theta": config.local_theta},
        },
        "sliding_window": radius + 1 if config.causal else max(1, 2 * radius),
        "torch_dtype": "float32",
        "use_bidirectional_attention": not config.causal,
        "vocab_size": config.vocab_size,
    }


def tensor_name(kind: str, name: str) -> str | None:
    """Return our name of a stored tensor, or None if an embedding model does not use it."""
    prefixes = ("model.", "bert.", "roberta.", "mpnet.", "distilbert.", "transformer.", "language_model.")
    for prefix in prefixes:
        if name.startswith(prefix) and not name.startswith("transformer.layer."):
            name = name.removeprefix(prefix)
    if _UNUSED.search(name):
        return None
    for pattern, replacement in _NAMES.get(kind, ()):
        name = re.sub(pattern, replacement, name)
    return name


def _decoder(config: Config) -> BackboneConfig:
    backbone, causal = backbone_config(config), _causal(config)
    beta = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("llama_4_scaling_beta")
    return replace(
        backbone, causal=causal, window=_window(config, backbone, causal), temperature_beta=float(beta or 0.0)
    )


def _window(config: Config, backbone: BackboneConfig, causal: bool) -> int | None:
    """Return the inclusive radius of attention; in both directions it is the number in the config.

    Raises:
        ConfigError: some layers of a Qwen have a window, which is not supported.
    """
    if backbone.architecture.startswith("qwen"):
        layers = config.get("layer_types")
        if layers is None and config.get("use_sliding_window"):
            layers = ["full_attention"] * min(backbone.num_layers, size_of(config, "max_window_layers", 28))
        if config.get("use_sliding_window") and layers != ["full_attention"] * backbone.num_layers:
            raise ConfigError("use_sliding_window is true, which is not supported in Qwen")
        return None
    defaults = {"mistral": 4096, "bidir_mistral": None}
    window = config.get("sliding_window", defaults.get(str(config.get("model_type"))))
    if window is None or backbone.architecture == "llama":
        return None
    # where one direction is read, the number includes the token itself
    return size_of({"sliding_window": window}, "sliding_window") - causal


def _gemma(config: Config) -> GemmaConfig:
    refuse(config, "attention_bias", "attn_logit_softcapping", "final_logit_softcapping")
    both, causal = bool(config.get("use_bidirectional_attention")), config.get("is_causal") is not False
    window = size_of(config, "sliding_window", 4096)
    # The value is the width of the window in the first case, and its radius in the second one. If one
    # direction is read, it includes the token itself.
    radius = window // 2 if both else window - causal
    layers = size_of(config, "num_hidden_layers", 26)
    pattern = size_of(config, "_sliding_window_pattern", size_of(config, "sliding_window_pattern", 6))
    default = ["sliding_attention" if (n + 1) % pattern else "full_attention" for n in range(layers)]
    whole, local = (
        _rotary(config, "rope_theta", 1_000_000.0),
        _rotary(config, "rope_local_base_freq", 10_000.0),
    )
    return GemmaConfig(
        vocab_size=size_of(config, "vocab_size", 262_208),
        hidden_size=size_of(config, "hidden_size", 2304),
        intermediate_size=size_of(config, "intermediate_size", 9216),
        num_layers=layers,
        num_heads=size_of(config, "num_attention_heads", 8),
        num_kv_heads=size_of(config, "num_key_value_heads", 4),
        head_dim=size_of(config, "head_dim", 256),
        max_position=size_of(config, "max_position_embeddings", 131_072),
        windows=_windows(config, default, radius),
        query_scale=size_of(config, "query_pre_attn_scalar", 256) ** -0.5,
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
        global_theta=whole[0],
        local_theta=local[0],
        global_factor=whole[1],
        activation=_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        causal=causal and not both,
    )


def _embedding_gemma2(config: Config) -> EmbeddingGemma2Config:
    """Read the text tower's config; of one with towers of other media, ``text_config``."""
    config = text_tower(config)
    refuse(config, "attention_bias")
    layers = size_of(config, "num_hidden_layers", 24)
    default = ["full_attention" if (n + 1) % 6 == 0 else "sliding_attention" for n in range(layers)]
    windows = _windows(config, default, size_of(config, "sliding_window", 512))
    whole, local = _rotary(config, "rope_theta", 1_000_000.0), _rotary(config, "rope_local", 10_000.0)
    if whole[1] != 1 or local[1] != 1:
        raise ConfigError("rotary scaling is not supported in EmbeddingGemma 2")
    own = config.get("per_layer_config") or {}
    if not isinstance(own, Mapping) or not all(isinstance(sizes, Mapping) for sizes in own.values()):
        raise ConfigError(f"per_layer_config is {own!r:.60}; expected sizes by the number of a layer")
    local_heads = (size_of(config, "num_key_value_heads", 2), size_of(config, "head_dim", 256))
    if "per_layer_config" not in config:
        own = {
            str(n): {"num_key_value_heads": 1, "head_dim": 512} for n in range(layers) if windows[n] is None
        }
    heads = [
        tuple(map(partial(size_of, own.get(str(n), {})), ("num_key_value_heads", "head_dim"), local_heads))
        for n in range(layers)
    ]
    whole_heads = {pair for pair, window in zip(heads, windows, strict=True) if window is None}
    others = {pair for pair, window in zip(heads, windows, strict=True) if window is not None}
    if others - {local_heads} or len(whole_heads) != 1:
        raise ConfigError(
            "per_layer_config has several sizes of heads in local or in global layers; expected one of each"
        )
    [(global_kv_heads, global_head_dim)] = whole_heads
    return EmbeddingGemma2Config(
        vocab_size=size_of(config, "vocab_size", 262_144),
        hidden_size=size_of(config, "hidden_size", 512),
        intermediate_size=size_of(config, "intermediate_size", 2048),
        num_layers=layers,
        num_heads=size_of(config, "num_attention_heads", 4),
        num_kv_heads=local_heads[0],
        head_dim=local_heads[1],
        global_kv_heads=global_kv_heads,
        global_head_dim=global_head_dim,
        gate_size=size_of(config, "hidden_size_per_layer_input", 512),
        max_position=size_of(config, "max_position_embeddings", 262_144),
        windows=windows,
        rms_norm_eps=number(config, "rms_norm_eps", 1e-6),
        global_theta=whole[0],
        local_theta=local[0],
        activation=_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
    )


def text_tower(config: Config) -> Config:
    """Return the config of the text tower where a model has towers of other media too."""
    tower = config.get("text_config")
    return {"model_type": "embedding_gemma2_text", **tower} if isinstance(tower, Mapping) else config


def projection_size(config: Config) -> int | None:
    """Return the width of a last projection of the token states, or None where the model has none."""
    if config.get("model_type") not in EMBEDDING_GEMMA_2:
        return None
    return size_of(text_tower(config), "embedding_dim", 768)


def _bert(config: Config) -> BertConfig:
    kind = str(config.get("model_type"))
    refuse(config, "is_decoder", "add_cross_attention")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ConfigError(
            f"position_embedding_type is {config['position_embedding_type']!r}; expected absolute"
        )
    shifted = kind in ("roberta", "xlm-roberta", "camembert", "mpnet")
    pad = 1 if kind == "mpnet" else config.get("pad_token_id")  # MPNet's code has it as a constant
    pad = 1 if pad is None else pad
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise ConfigError(f"pad_token_id is {pad!r}; expected a token's id")
    distilled = kind == "distilbert"
    buckets = size_of(config, "relative_attention_num_buckets", 32) if kind == "mpnet" else 0
    if buckets not in (0, 32):  # MPNet's code reads 32, whatever the config says
        raise ConfigError(f"relative_attention_num_buckets is {buckets}; expected 32")
    return BertConfig(
        vocab_size=size_of(config, "vocab_size", 30_522),
        hidden_size=size_of(config, "dim" if distilled else "hidden_size", 768),
        intermediate_size=size_of(config, "hidden_dim" if distilled else "intermediate_size", 3072),
        num_layers=size_of(config, "n_layers" if distilled else "num_hidden_layers", 6 if distilled else 12),
        num_heads=size_of(config, "n_heads" if distilled else "num_attention_heads", 12),
        position_rows=size_of(config, "max_position_embeddings", 512),
        first_position=pad + 1 if shifted else 0,
        token_types=0 if distilled or kind == "mpnet" else size_of(config, "type_vocab_size", 2),
        relative_buckets=buckets,
        layer_norm_eps=number(config, "layer_norm_eps", 1e-12),
        activation=_activation(config, "activation" if distilled else "hidden_act", "gelu"),
    )


def _modernbert(config: Config) -> ModernBertConfig:
    layers = size_of(config, "num_hidden_layers", 22)
    every = size_of(config, "global_attn_every_n_layers", 3)
    default = ["sliding_attention" if n % every else "full_attention" for n in range(layers)]
    whole, local = (
        _rotary(config, "global_rope_theta", 160_000.0),
        _rotary(config, "local_rope_theta", 10_000.0),
    )
    if whole[1] != 1 or local[1] != 1:
        raise ConfigError("rotary scaling is not supported in ModernBERT")
    return ModernBertConfig(
        vocab_size=size_of(config, "vocab_size", 50_368),
        hidden_size=size_of(config, "hidden_size", 768),
        intermediate_size=size_of(config, "intermediate_size", 1152),
        num_layers=layers,
        num_heads=size_of(config, "num_attention_heads", 12),
        max_position=size_of(config, "max_position_embeddings", 8192),
        windows=_windows(config, default, size_of(config, "local_attention", 128) // 2),
        layer_norm_eps=number(config, "norm_eps", 1e-5),
        global_theta=whole[0],
        local_theta=local[0],
        activation=_activation(config, "hidden_activation", "gelu"),
        norm_bias=bool(config.get("norm_bias", False)),
        attention_bias=bool(config.get("attention_bias", False)),
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


_READERS: dict[str, Callable[[Config], AnyBackbone]] = {
    "gemma3_text": _gemma,
    **dict.fromkeys(EMBEDDING_GEMMA_2, _embedding_gemma2),
    "bert": _bert,
    "roberta": _bert,
    "xlm-roberta": _bert,
    "camembert": _bert,
    "mpnet": _bert,
    "distilbert": _bert,
    "modernbert": _modernbert,
}

# Heads of other tasks, towers of other media, computed buffers, and BERT's pooler, which embedding models do
# not use.
_UNUSED = re.compile(
    r"^(pooler|lm_head|cls|head|decoder|vocab_\w+|(vision|audio)_tower|embed_(vision|audio))\.|position_ids$"
    r"|rotary_emb|inv_freq$"
)
_BERT_NAMES = (
    (r"^embeddings\.word_embeddings\.", "embed_tokens."),
    (r"^embeddings\.position_embeddings\.", "position_embeddings."),
    (r"^embeddings\.token_type_embeddings\.", "token_types."),
    (r"^embeddings\.LayerNorm\.", "embedding_norm."),
    (r"^encoder\.relative_attention_bias\.", "relative_bias."),
    (r"^(encoder|transformer)\.layer\.", "layers."),
    (r"attention\.(self\.query|attn\.q|q_lin)\.", "q_proj."),
    (r"attention\.(self\.key|attn\.k|k_lin)\.", "k_proj."),
    (r"attention\.(self\.value|attn\.v|v_lin)\.", "v_proj."),
    (r"attention\.(output\.dense|attn\.o|out_lin)\.", "o_proj."),
    (r"(attention\.output\.LayerNorm|attention\.LayerNorm|sa_layer_norm)\.", "attention_norm."),
    (r"(intermediate\.dense|ffn\.lin1)\.", "up_proj."),
    (r"(output\.dense|ffn\.lin2)\.", "down_proj."),
    (r"(output\.LayerNorm|output_layer_norm)\.", "mlp_norm."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
_NAMES = dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "mpnet", "distilbert"), _BERT_NAMES)


def _causal(config: Config) -> bool:
    """Return whether attention is causal; the default of decoders."""
    for key, opposite in (("is_causal", False), ("use_bidirectional_attention", True)):
        value = config.get(key)
        if not isinstance(value, bool | None):
            raise ConfigError(f"{key} is {value!r}; expected true or false")
        if value is not None:
            return value is not opposite
    return config.get("model_type") != "bidir_mistral"


def _windows(config: Config, default: list[str], radius: int) -> tuple[int | None, ...]:
    kinds = config.get("layer_types") or default
    if not isinstance(kinds, list) or len(kinds) != len(default):
        raise ConfigError(f"layer_types has {kinds!r:.60}; expected {len(default)} entries, one per layer")
    radii = {"sliding_attention": radius, "full_attention": None}
    unknown = sorted({str(kind) for kind in kinds if kind not in radii})
    if unknown:
        raise ConfigError(
            f"layer_types has {', '.join(unknown)}; expected sliding_attention or full_attention"
        )
    return tuple(radii[kind] for kind in kinds)


def _rotary(config: Config, key: str, default: float) -> tuple[float, float]:
    """Return base and linear factor of the rotary positions, from their old or new keys."""
    local = "local" in key
    settings = config.get("rope_parameters") or {}
    settings = settings.get("sliding_attention" if local else "full_attention") or {}
    scaling = settings or (config.get("rope_scaling") if not local else None) or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "linear"):
        raise ConfigError(f"rotary scaling of type {kind!r} is not supported; expected default or linear")
    factor = number(scaling, "factor", 1.0) if kind == "linear" else 1.0
    holder = settings if settings.get("rope_theta") is not None else {"rope_theta": config.get(key)}
    return number(holder, "rope_theta", default), factor


def _activation(config: Config, key: str, default: str) -> Activation:
    name = config.get(key) or default
    if name not in ACTIVATIONS:
        raise ConfigError(f"{key} is {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
