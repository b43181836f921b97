"""Writes GGUF files as llama.cpp's converter does."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_lm
from torch import Tensor

from nvembed.model.config import BackboneConfig, GemmaConfig

gguf = pytest.importorskip("gguf")

NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
QUANTS = {name: getattr(gguf.GGMLQuantizationType, name) for name in ("F32", "F16", "BF16", "Q8_0", "Q4_1")}


GEMMA_NAMES = {
    **NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def gguf_name(name: str, modules: Mapping[str, str] = NAMES) -> str:
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, index, rest = name.split(".", 2)
    module, _, leaf = rest.rpartition(".")
    return f"blk.{index}.{modules[module]}.{leaf}"


def paired_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's order, row by row: of each head, rows 0, E/2, 1, E/2 + 1, ... (the slow twin)."""
    size = len(weight) // num_heads
    order = [
        head * size + half * (size // 2) + pair
        for head in range(num_heads)
        for pair in range(size // 2)
        for half in range(2)
    ]
    return weight[order]


def write(
    path: Path,
    config: BackboneConfig,
    values: Mapping[str, Tensor],
    *,
    quant: str = "F32",
    extra: Mapping[str, np.ndarray] | None = None,
    leave_out: str = "",
) -> None:
    """Write what llama.cpp's converter writes for ``config``."""
    arch = config.architecture if config.architecture != "mistral" else "llama"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    if leave_out != "feed_forward_length":
        writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.head_dim * config.num_heads != config.hidden_size:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if leave_out != "tokenizer":
        _byte_level_tokenizer(writer, config.vocab_size)
    tensors = {gguf_name(name): value.numpy() for name, value in values.items()} | dict(extra or {})
    for name, array in tensors.items():
        if arch == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            array = paired_rows(array, config.num_heads if "attn_q" in name else config.num_kv_heads)
        kind = QUANTS[quant] if array.ndim == 2 else QUANTS["F32"]
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    _finish(writer)


def write_gemma(path: Path, config: GemmaConfig, values: Mapping[str, Tensor], pattern: int) -> None:
    """Write what llama.cpp's converter writes for Gemma 3: norms with 1 added, q and k as they are."""
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.global_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_sliding_window(8)
    if pattern != 6:
        writer.add_uint32("gemma3.attention.sliding_window_pattern", pattern)
    _byte_level_tokenizer(writer, config.vocab_size)
    for name, value in values.items():
        array = value.numpy() + 1 if name.endswith("norm.weight") else value.numpy()
        writer.add_tensor(gguf_name(name, GEMMA_NAMES), array, raw_dtype=QUANTS["F32"])
    _finish(writer)


def _byte_level_tokenizer(writer: Any, vocab_size: int) -> None:
    form = json.loads(tiny_lm.tokenizer(vocab_size).to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(sorted(form["vocab"], key=form["vocab"].__getitem__))
    writer.add_token_types([3, 3, 3] + [1] * (len(form["vocab"]) - 3))
    writer.add_token_merges([" ".join(merge) for merge in form["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
