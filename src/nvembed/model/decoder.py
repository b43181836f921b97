"""The decoder: RMSNorm, rotary positions, grouped-query attention (bidirectional unless told), SwiGLU.

Shapes: N packed tokens, D hidden size, H heads, K key-value heads, E head size.
Module names are the released checkpoint's own, so that a state dict needs no translation.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.attention import Reach, Segments, attention
from nvembed.model.config import BackboneConfig, RopeScaling, YarnScaling
from nvembed.model.device import randn


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``; the mean is taken in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x.float(), self.weight.shape, None, self.eps).to(x.dtype) * self.weight


def plain_frequencies(theta: float, head_dim: int, device: torch.device) -> Tensor:
    """Return ``theta^(-2i/E)``, (E/2,) float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponents


def rope_frequencies(config: BackboneConfig, device: torch.device) -> Tensor:
    """Return the rotary frequencies ``theta^(-2i/E)``, (E/2,) float32, scaled as the config says."""
    frequencies = plain_frequencies(config.rope_theta, config.head_dim, device)
    if isinstance(config.rope_scaling, YarnScaling):
        return _yarn(frequencies, config.rope_scaling, config.rope_theta)
    return frequencies if config.rope_scaling is None else _llama3(frequencies, config.rope_scaling)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow the low frequencies by ``factor``, keep the high ones, interpolate between (Llama 3.1)."""
    turns = scaling.original_max_position * frequencies / (2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return frequencies * (smooth + (1 - smooth) / scaling.factor)


def _yarn(frequencies: Tensor, scaling: YarnScaling, theta: float) -> Tensor:
    """Divide the low frequencies by ``factor``, keep the high ones, ramp linearly between (YaRN)."""
    pairs = len(frequencies)

    def pair_of(turns: float) -> float:
        """The pair of dimensions that turns so often within the original context."""
        return pairs * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    high = high + 0.001 if low == high else high
    ramp = ((torch.arange(pairs, dtype=torch.float32, device=frequencies.device) - low) / (high - low)).clamp(
        0, 1
    )
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


def cos_sin(positions_N: Tensor, frequencies: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of each token's angles, (N, 1, E) each; angles are computed in float32."""
    angles = positions_N.float()[:, None, None] * frequencies
    cos, sin = (torch.cat((half, half), -1).to(dtype) for half in (angles.cos(), angles.sin()))
    return cos, sin


def rotate(x_NHE: Tensor, cos_N1E: Tensor, sin_N1E: Tensor) -> Tensor:
    """Rotate the two halves of each head by its token's angle (half-split style, as in Mistral)."""
    low, high = x_NHE.chunk(2, -1)
    return x_NHE * cos_N1E + torch.cat((-high, low), -1) * sin_N1E


class SelfAttention(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads, bias=config.qkv_bias)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qk_norm = config.qk_norm
        self.attend = attention  # training puts one here that is not compiled with the layer
        self.reach = Reach(causal=config.causal, window=config.window)

    def forward(
        self,
        x_ND: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        segments: Segments,
        query_scale_N11: Tensor | None = None,
    ) -> Tensor:
        q, k, v = (
            proj(x_ND).view(len(x_ND), -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos_N1E, sin_N1E), rotate(k, cos_N1E, sin_N1E)
        if query_scale_N11 is not None:
            q = q * query_scale_N11
        out: Tensor = self.o_proj(self.attend(q, k, v, segments, self.reach).flatten(1))
        return out


class SwiGLU(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_ND: Tensor) -> Tensor:
        gate = self.gate_proj(x_ND)
        if torch.is_grad_enabled():
            hidden = F.silu(gate) * self.up_proj(x_ND)
        else:  # in place: fresh memory costs more than the arithmetic
            hidden = F.silu(gate, inplace=True).mul_(self.up_proj(x_ND))
        out: Tensor = self.down_proj(hidden)
        return out


def embedding(rows: int, size: int) -> nn.Embedding:
    """Return ``nn.Embedding(rows, size)`` with the same random values, fast on the meta device."""
    return nn.Embedding(rows, size, _weight=randn(rows, size))


class DecoderLayer(nn.Module):
    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x_ND: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        segments: Segments,
        pause: Callable[[], None] = lambda: None,
        query_scale_N11: Tensor | None = None,
    ) -> Tensor:
        x_ND = x_ND + self.self_attn(self.input_layernorm(x_ND), cos_N1E, sin_N1E, segments, query_scale_N11)
        pause()
        out: Tensor = x_ND + self.mlp(self.post_attention_layernorm(x_ND))
        return out


class Decoder(nn.Module):
    """Token ids to normalised hidden states.

    Released: plain Mistral layers under a key-padding mask alone; ``sliding_window`` is never applied.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, input_ids_N: Tensor, segments: Segments, pause: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return the last hidden states, (N, D) in the weights' dtype; angles are computed in float32.

        ``pause`` is called twice in each layer; what it does, a whole other batch perhaps, changes nothing
        here but the time.
        """
        x_ND = self.embed(input_ids_N, segments)
        out: Tensor = self.norm(self.run(x_ND, segments, range(len(self.layers)), pause))
        return out

    def embed(self, input_ids_N: Tensor, _segments: Segments) -> Tensor:
        """Return what the first layer reads, (N, D)."""
        out: Tensor = self.embed_tokens(input_ids_N)
        return out

    def run(
        self, x_ND: Tensor, segments: Segments, layers: range, pause: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return what these layers make of ``x_ND``, without the final norm."""
        scaling = self.config.rope_scaling
        positions = segments.positions()
        cos, sin = cos_sin(positions, rope_frequencies(self.config, x_ND.device), x_ND.dtype)
        query_scale = None
        if isinstance(scaling, YarnScaling):
            cos, sin = cos * scaling.attention_factor, sin * scaling.attention_factor
            if self.config.temperature_beta:
                turns = (positions // scaling.original_max_position).float()
                query_scale = (1 + self.config.temperature_beta * turns.log1p()).to(x_ND.dtype)[:, None, None]
        for number in layers:
            x_ND = self.layers[number](x_ND, cos, sin, segments, pause, query_scale)
            pause()
        return x_ND
