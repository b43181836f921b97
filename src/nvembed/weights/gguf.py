"""A causal language model in one GGUF file (llama.cpp's format); tensors get their released names."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.config import BackboneConfig, GemmaConfig, RopeScaling
from nvembed.model.decoder import rope_frequencies
from nvembed.weights.causal_lm import CausalLM, check_backbone
from nvembed.weights.gguf_header import check_header
from nvembed.weights.gguf_tokenizer import tokenizer_files
from nvembed.weights.hub_backbone import read_backbone_config
from nvembed.weights.hub_config import backbone_config
from nvembed.weights.tensors import StoredTensor

if TYPE_CHECKING:
    from gguf.gguf_reader import GGUFReader, ReaderTensor

# GGUF writes Mistral as "llama" too
_ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")
_WHOLE = {"token_embd.weight": "embed_tokens.weight", "output_norm.weight": "norm.weight"}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Gemma 3 has a norm before and one after each block; "ffn_norm" is that before the gated layers.
_GEMMA = {
    **_PER_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA_27B_LAYERS = 62  # whose scores are divided by sqrt(hidden size / heads), as nothing in the file says
_ROPE_FACTORS = "rope_freqs.weight"
_IGNORED = {"output.weight", _ROPE_FACTORS}  # the output layer; factors that the config describes

# The settings of every published Llama 3.1 to 3.3; the file has only the factors computed from them
_LOW_FREQ, _HIGH_FREQ, _ORIGINAL_MAX_POSITION = 1.0, 4.0, 8192


def read_gguf(path: Path) -> CausalLM:
    """Read a GGUF file: sizes and tokenizer from its metadata, each tensor as float32 when it is read.

    llama.cpp's converter reorders the rows of q and k of the ``llama`` architecture from rotary halves to
    rotary pairs, and adds 1 to the norms of ``gemma3``; this is undone. The output layer is not read.

    Raises:
        ConfigError: an architecture or setting is not supported, or sizes are missing.
        WeightsError: the file is not GGUF or incomplete; the tokenizer or quantisation cannot be converted;
            tensors are missing, unexpected or misshapen.
    """
    reader, metadata = _open(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in stored:
        raise WeightsError(
            f"{path} has no token_embd.weight: it is not a language model, or one of several parts"
        )
    factors = None
    if _ROPE_FACTORS in stored:
        factors = np.array(stored[_ROPE_FACTORS].data, dtype=np.float64)
    config = _config(metadata, vocab_size=int(stored["token_embd.weight"].shape[1]), rope_factors=factors)
    gemma = isinstance(config, GemmaConfig)
    modules = _GEMMA if gemma else _PER_LAYER
    names = {_released_name(name, modules): name for name in stored if name not in _IGNORED}
    tensors = {
        # GGUF has shapes innermost first; all types become float32
        released: StoredTensor(path, tuple(int(size) for size in reversed(stored[name].shape)), "F32")
        for released, name in names.items()
    }
    check_backbone(path, tensors, config)
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > config.vocab_size:
        raise WeightsError(
            f"{path} has {len(tokens)} tokens and {config.vocab_size} embeddings: it is damaged"
        )

    def read(released: str, rows: int | None) -> torch.Tensor:
        name = names[released]
        llama = isinstance(config, BackboneConfig) and config.architecture == "llama"
        permuted = llama and re.search(r"\.attn_[qk]\.weight$", name)
        if rows is not None and permuted:  # whole heads
            array = _dequantised(path, stored[name], -(-rows // config.head_dim) * config.head_dim)
        else:
            array = _dequantised(path, stored[name], rows)
        if permuted:
            array = _rotary_halves(array, len(array) // config.head_dim)
        if gemma and name.endswith("norm.weight"):
            array = array - 1
        return torch.from_numpy(np.array(array[:rows], dtype=np.float32, order="C"))

    return CausalLM(config, tensors, read, tokenizer_files(metadata))


def _open(path: Path) -> tuple["GGUFReader", dict[str, Any]]:
    import gguf

    class Reader(gguf.GGUFReader):
        def __setattr__(self, name: str, value: object) -> None:
            # Slicing a memory map takes twice as long as all parsing; slicing a plain view is fast.
            super().__setattr__(name, value.view(np.ndarray) if isinstance(value, np.memmap) else value)

    try:
        check_header(path)
        reader = Reader(path)
        return reader, {key: field.contents() for key, field in reader.fields.items()}
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, IndexError, OverflowError, TypeError) as error:
        raise WeightsError(f"{path} is not a complete GGUF file ({error}): download it again") from error


def _config(
    metadata: Mapping[str, object], *, vocab_size: int, rope_factors: np.ndarray | None
) -> BackboneConfig | GemmaConfig:
    """Translate the metadata to the hub's keys, which `backbone_config` checks."""
    architecture = metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ConfigError(
            f"GGUF architecture {architecture!r} cannot be used; supported are llama (also Mistral and "
            "SmolLM2), qwen2, qwen3, gemma3"
        )
    scaling = metadata.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" and (architecture, scaling) != ("gemma3", "linear"):
        raise ConfigError(f"{architecture}.rope.scaling.type is {scaling!r}; only 'none' is supported")
    hub_keys = {
        "hidden_size": "embedding_length",
        "intermediate_size": "feed_forward_length",
        "num_hidden_layers": "block_count",
        "num_attention_heads": "attention.head_count",
        "max_position_embeddings": "context_length",
        "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    }
    hub_keys = {hub: f"{architecture}.{key}" for hub, key in hub_keys.items()}
    missing = [key for key in hub_keys.values() if key not in metadata]
    if missing:
        raise ConfigError(f"the GGUF metadata lacks {', '.join(missing)}: the file is damaged or too old")
    hub = {name: metadata[key] for name, key in hub_keys.items()}
    head_dim = metadata.get(f"{architecture}.attention.key_length")
    rotated = metadata.get(f"{architecture}.rope.dimension_count")
    if rotated is not None and head_dim is not None and rotated != head_dim:
        raise ConfigError(f"rope.dimension_count is {rotated} of {head_dim}; only whole heads are supported")
    if architecture == "gemma3":
        return _gemma_config(metadata, hub, vocab_size)
    config = backbone_config(
        hub
        | {
            "model_type": architecture,
            "vocab_size": vocab_size,
            "num_key_value_heads": metadata.get(f"{architecture}.attention.head_count_kv"),
            "head_dim": head_dim if head_dim is not None else rotated,
            "rms_norm_eps": _as_written(hub["rms_norm_eps"]),
            "rope_theta": _as_written(metadata.get(f"{architecture}.rope.freq_base", 10000.0)),
            "rope_scaling": None if rope_factors is None else _llama3_scaling(rope_factors),
        }
    )
    if rope_factors is not None and isinstance(config.rope_scaling, RopeScaling):
        plain = rope_frequencies(replace(config, rope_scaling=None), torch.device("cpu"))
        expected = plain / rope_frequencies(config, torch.device("cpu"))
        if expected.shape != rope_factors.shape or not np.allclose(expected, rope_factors, rtol=1e-4):
            raise ConfigError(
                f"{_ROPE_FACTORS} does not hold Llama 3's rotary scaling (low 1, high 4, original length "
                "8192); no other is supported"
            )
    return config


def _gemma_config(metadata: Mapping[str, object], hub: dict[str, object], vocab_size: int) -> GemmaConfig:
    """Read what is Gemma 3's own: the window of local layers, and two rotary bases."""

    def value(key: str, default: object) -> object:
        return _as_written(metadata.get(f"gemma3.{key}", default))

    layers, heads = hub["num_hidden_layers"], hub["num_attention_heads"]
    scalar = head_dim = value("attention.key_length", 256)
    if layers == _GEMMA_27B_LAYERS and isinstance(heads, int) and isinstance(hub["hidden_size"], int):
        scalar = hub["hidden_size"] // heads
    theta, local = value("rope.freq_base", 1_000_000.0), value("rope.freq_base_swa", 10_000.0)
    whole: dict[str, object] = {"rope_theta": theta}
    if value("rope.scaling.type", "none") == "linear":
        whole |= {"rope_type": "linear", "factor": value("rope.scaling.factor", 1.0)}
    config = read_backbone_config(
        hub
        | {
            "model_type": "gemma3_text",
            "vocab_size": vocab_size,
            "num_key_value_heads": metadata.get("gemma3.attention.head_count_kv"),
            "head_dim": head_dim,
            "query_pre_attn_scalar": scalar,
            "rms_norm_eps": _as_written(hub["rms_norm_eps"]),
            "sliding_window": value("attention.sliding_window", 512),
            "sliding_window_pattern": value("attention.sliding_window_pattern", 6),
            "rope_parameters": {"full_attention": whole, "sliding_attention": {"rope_theta": local}},
        }
    )
    assert isinstance(config, GemmaConfig)
    return config


def _as_written(value: object) -> object:
    """Return the decimal number that was stored as float32: 1e-05, not 9.99999974737875e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _llama3_scaling(factors: np.ndarray) -> dict[str, object] | None:
    if np.allclose(factors, 1.0):
        return None
    return {
        "rope_type": "llama3",
        "factor": _as_written(float(factors.max())),
        "low_freq_factor": _LOW_FREQ,
        "high_freq_factor": _HIGH_FREQ,
        "original_max_position_embeddings": _ORIGINAL_MAX_POSITION,
    }


def _released_name(name: str, modules: Mapping[str, str]) -> str:
    if name in _WHOLE:
        return _WHOLE[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match and match[2] in modules:
        return f"layers.{match[1]}.{modules[match[2]]}.{match[3]}"
    return name  # the comparison with the config reports it as unexpected


def _dequantised(path: Path, tensor: "ReaderTensor", rows: int | None) -> np.ndarray:
    import gguf.quants

    kind = tensor.tensor_type
    try:
        return np.asarray(gguf.quants.dequantize(tensor.data[:rows], kind))
    except NotImplementedError as error:
        raise WeightsError(
            f"{path} is quantised as {kind.name}, which the gguf package cannot dequantise: use another file"
        ) from error


def _rotary_halves(array: np.ndarray, num_heads: int) -> np.ndarray:
    """Undo llama.cpp's row order: per head, (pair, 2) back to (2, pair)."""
    rows, columns = array.shape
    return array.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)
