"""EmbeddingGemma 2's text tower: an encoder whose layers end in a block that the token embeddings gate.

Shapes: N packed tokens, D hidden size, E head size, L layers, G gate size.
Module names are those of transformers' model, so that a state dict needs no translation. Its last projection
is not here: it is linear and follows pooling as a Dense layer (``weights.sentence_transformers``).
Differs from ``gemma.py``: norms multiply by ``weight``; values are normalised too, without a weight; scores
have no factor; global layers have heads of another size and number; a layer's output has a factor of its own.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.attention import Reach, Segments
from nvembed.model.config import EmbeddingGemma2Config
from nvembed.model.layers import (
    ACTIVATIONS,
    Backbone,
    GatedMLP,
    Pause,
    Rotary,
    SelfAttention,
    embedding,
    frequencies,
    rotary,
)


class ScaledNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class BareNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps)``, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.size, self.eps = size, eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (self.size,), None, self.eps).to(x.dtype)


class LayerGates(nn.Module):
    """``norm(W x / sqrt(D))`` of the token embeddings: what gates each layer's last block, (N, L, G)."""

    def __init__(self, config: EmbeddingGemma2Config) -> None:
        super().__init__()
        self.gate_size, self.scale = config.gate_size, config.hidden_size**-0.5
        width = config.num_layers * config.gate_size
        self.per_layer_model_projection = nn.Linear(config.hidden_size, width, bias=False)
        self.per_layer_projection_norm = ScaledNorm(config.gate_size, config.rms_norm_eps)

    def forward(self, x_ND: Tensor) -> Tensor:
        gates = self.per_layer_model_projection(x_ND) * self.scale
        out: Tensor = self.per_layer_projection_norm(gates.view(len(x_ND), -1, self.gate_size))
        return out


class GatedBlock(nn.Module):
    """``x + norm(up(act(down(x)) * gate))``."""

    def __init__(self, config: EmbeddingGemma2Config) -> None:
        super().__init__()
        self.per_layer_input_gate = nn.Linear(config.hidden_size, config.gate_size, bias=False)
        self.per_layer_projection = nn.Linear(config.gate_size, config.hidden_size, bias=False)
        self.post_per_layer_input_norm = ScaledNorm(config.hidden_size, config.rms_norm_eps)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x_ND: Tensor, gate_NG: Tensor) -> Tensor:
        hidden = self.act(self.per_layer_input_gate(x_ND)) * gate_NG
        out: Tensor = x_ND + self.post_per_layer_input_norm(self.per_layer_projection(hidden))
        return out


class GatedRotary(NamedTuple):
    """What a layer is told about the tokens: their rotary positions, and its gates (N, G)."""

    rotary: Rotary
    gate: Tensor


class EmbeddingGemma2Layer(nn.Module):
    def __init__(self, config: EmbeddingGemma2Config, window: int | None) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        if window is None:
            config = replace(config, num_kv_heads=config.global_kv_heads, head_dim=config.global_head_dim)
        self.input_layernorm = ScaledNorm(size, eps)
        self.self_attn = SelfAttention(
            config, Reach(window=window, scale=1.0), norm=ScaledNorm, value_norm=BareNorm
        )
        self.post_attention_layernorm = ScaledNorm(size, eps)
        self.pre_feedforward_layernorm = ScaledNorm(size, eps)
        self.mlp = GatedMLP(config, config.activation)
        self.post_feedforward_layernorm = ScaledNorm(size, eps)
        self.ple_block = GatedBlock(config)
        self.layer_scalar = nn.Parameter(torch.ones(1))

    def forward(self, x_ND: Tensor, place: GatedRotary, segments: Segments, pause: Pause) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x_ND), place.rotary, segments)
        x_ND = x_ND + self.post_attention_layernorm(attended)
        pause()
        x_ND = x_ND + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_ND)))
        out: Tensor = self.ple_block(x_ND, place.gate) * self.layer_scalar
        return out


class EmbeddingGemma2(Backbone):
    def __init__(self, config: EmbeddingGemma2Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.ple = LayerGates(config)
        self.layers = nn.ModuleList(EmbeddingGemma2Layer(config, window) for window in config.windows)
        self.norm = ScaledNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, input_ids_N: Tensor, segments: Segments) -> Tensor:
        x_ND = super().embed(input_ids_N, segments)
        return x_ND * torch.tensor(self.config.hidden_size**0.5, dtype=x_ND.dtype, device=x_ND.device)

    def positions(self, x_ND: Tensor, segments: Segments) -> list[GatedRotary]:
        """Return rotary positions and gates; ``x_ND`` are the token embeddings, the first layer's input."""
        config, positions = self.config, segments.positions()
        local, whole = (
            rotary(positions, frequencies(theta, size, x_ND.device), x_ND.dtype)
            for theta, size in (
                (config.local_theta, config.head_dim),
                (config.global_theta, config.global_head_dim),
            )
        )
        gates = self.ple(x_ND).unbind(1)
        return [
            GatedRotary(whole if window is None else local, gate)
            for window, gate in zip(config.windows, gates, strict=True)
        ]
