"""Gemma 3's text model: norms before and after each block, a gated GELU, local and global layers.

Shapes: N packed tokens, D hidden size, H heads, K key-value heads, E head size.
Module names are the published checkpoints' own, so that a state dict needs no translation.
Differs from the decoder of ``decoder.py``: RMSNorm multiplies by ``1 + weight`` in float32; embeddings are
multiplied by ``sqrt(D)``, rounded to the weights' dtype; queries and keys are normalised per head; local and
global layers have their own rotary base. Activations reach 800,000: float16 overflows.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.activation import FUNCTIONS
from nvembed.model.attention import Reach, Segments, attention
from nvembed.model.config import GemmaConfig
from nvembed.model.decoder import cos_sin, embedding, plain_frequencies, rotate


class GemmaNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)``, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, 1 + self.weight.float(), self.eps).to(x.dtype)


class GemmaAttention(nn.Module):
    def __init__(self, config: GemmaConfig, window: int | None) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads, bias=False)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)
        self.q_norm = GemmaNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = GemmaNorm(config.head_dim, config.rms_norm_eps)
        self.attend = attention  # training replaces it by one that is not compiled with the layer
        self.reach = Reach(config.causal, window, config.query_scale)

    def forward(self, x_ND: Tensor, cos_N1E: Tensor, sin_N1E: Tensor, segments: Segments) -> Tensor:
        q, k, v = (
            proj(x_ND).view(len(x_ND), -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = (rotate(norm(x), cos_N1E, sin_N1E) for norm, x in ((self.q_norm, q), (self.k_norm, k)))
        out: Tensor = self.o_proj(self.attend(q, k, v, segments, self.reach).flatten(1))
        return out


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = FUNCTIONS[config.activation]

    def forward(self, x_ND: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act(self.gate_proj(x_ND)) * self.up_proj(x_ND))
        return out


class GemmaLayer(nn.Module):
    def __init__(self, config: GemmaConfig, window: int | None) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = GemmaNorm(size, eps)
        self.self_attn = GemmaAttention(config, window)
        self.post_attention_layernorm = GemmaNorm(size, eps)
        self.pre_feedforward_layernorm = GemmaNorm(size, eps)
        self.mlp = GatedMLP(config)
        self.post_feedforward_layernorm = GemmaNorm(size, eps)

    def forward(
        self,
        x_ND: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        segments: Segments,
        pause: Callable[[], None] = lambda: None,
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x_ND), cos_N1E, sin_N1E, segments)
        x_ND = x_ND + self.post_attention_layernorm(attended)
        pause()
        out: Tensor = x_ND + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_ND)))
        return out


class Gemma(nn.Module):
    """Token ids to normalised hidden states."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GemmaLayer(config, window) for window in config.windows)
        self.norm = GemmaNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids_N: Tensor, segments: Segments, pause: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return the last hidden states, (N, D); ``pause`` is called twice per layer."""
        x_ND = self.embed(input_ids_N, segments)
        out: Tensor = self.norm(self.run(x_ND, segments, range(len(self.layers)), pause))
        return out

    def embed(self, input_ids_N: Tensor, _segments: Segments) -> Tensor:
        """Return what the first layer reads, (N, D)."""
        x_ND: Tensor = self.embed_tokens(input_ids_N)
        return x_ND * torch.tensor(self.config.hidden_size**0.5, dtype=x_ND.dtype, device=x_ND.device)

    def run(
        self, x_ND: Tensor, segments: Segments, layers: range, pause: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return what these layers make of ``x_ND``, without the final norm."""
        config, positions = self.config, segments.positions()
        size, device = config.head_dim, x_ND.device
        frequencies = plain_frequencies(config.global_theta, size, device) / config.global_factor
        whole = cos_sin(positions, frequencies, x_ND.dtype)
        local = cos_sin(positions, plain_frequencies(config.local_theta, size, device), x_ND.dtype)
        for number in layers:
            cos, sin = whole if config.windows[number] is None else local
            x_ND = self.layers[number](x_ND, cos, sin, segments, pause)
            pause()
        return x_ND
