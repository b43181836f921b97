"""The decoder of Mistral, Llama, Qwen and Ministral: RMSNorm, rotary positions, grouped queries, SwiGLU.

Shapes: N packed tokens, D hidden size, E head size.
Attention is bidirectional by default. Module names are the released checkpoint's own, so that a state dict
needs no translation.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.attention import Reach, Segments
from nvembed.model.config import BackboneConfig, RopeScaling, YarnScaling
from nvembed.model.layers import (
    Backbone,
    GatedMLP,
    Pause,
    Rotary,
    SelfAttention,
    embedding,
    frequencies,
    rotary,
)


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


def rope_frequencies(config: BackboneConfig, device: torch.device) -> Tensor:
    """Return the rotary frequencies ``theta^(-2i/E)``, (E/2,) float32, scaled as the config says."""
    plain = frequencies(config.rope_theta, config.head_dim, device)
    if isinstance(config.rope_scaling, YarnScaling):
        return _yarn(plain, config.rope_scaling, config.rope_theta)
    return plain if config.rope_scaling is None else _llama3(plain, config.rope_scaling)


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
        """Return the pair of dimensions that makes so many turns within the original context."""
        return pairs * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(scaling.beta_fast), pair_of(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    high = high + 0.001 if low == high else high
    order = torch.arange(pairs, dtype=torch.float32, device=frequencies.device)
    ramp = ((order - low) / (high - low)).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)


class DecoderLayer(nn.Module):
    """``h = x + attention(norm(x))``, then ``h + mlp(norm(h))``."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(
            config,
            Reach(causal=config.causal, window=config.window),
            bias=config.qkv_bias,
            norm=RMSNorm if config.qk_norm else None,
        )
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config, "silu")

    def forward(self, x_ND: Tensor, rotary: Rotary, segments: Segments, pause: Pause) -> Tensor:
        x_ND = x_ND + self.self_attn(self.input_layernorm(x_ND), rotary, segments)
        pause()
        out: Tensor = x_ND + self.mlp(self.post_attention_layernorm(x_ND))
        return out


class Decoder(Backbone):
    """Released: plain Mistral layers under a key-padding mask alone; ``sliding_window`` is never applied."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def positions(self, x_ND: Tensor, segments: Segments) -> list[Rotary]:
        scaling, positions = self.config.rope_scaling, segments.positions()
        factor = scaling.attention_factor if isinstance(scaling, YarnScaling) else 1.0
        turned = rotary(positions, rope_frequencies(self.config, x_ND.device), x_ND.dtype, factor)
        if isinstance(scaling, YarnScaling) and self.config.temperature_beta:
            turns = (positions // scaling.original_max_position).float()
            scale = (1 + self.config.temperature_beta * turns.log1p()).to(x_ND.dtype)
            turned = turned._replace(query_scale=scale[:, None, None])
        return [turned] * len(self.layers)
