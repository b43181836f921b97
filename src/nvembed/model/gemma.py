"""Gemma 3's text model: norms before and after each block, a gated GELU, local and global layers.

Shapes: N packed tokens, D hidden size.
Module names are the published checkpoints' own, so that a state dict needs no translation.
Differs from ``decoder.py``: RMSNorm multiplies by ``1 + weight`` in float32; embeddings are multiplied by
``sqrt(D)``, rounded to the weights' dtype; queries and keys are normalised per head; local and global layers
have their own rotary base. Activations reach 800,000: float16 overflows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.attention import Reach, Segments
from nvembed.model.config import GemmaConfig
from nvembed.model.layers import Backbone, GatedMLP, Pause, Rotary, SelfAttention, embedding, windowed_rotary


class GemmaNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * (1 + weight)``, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32, weight = x.float(), 1 + self.weight.float()
        if torch.is_grad_enabled() or x.is_cuda:
            return F.rms_norm(x32, weight.shape, weight, self.eps).to(x.dtype)
        # two passes over x; torch's function writes the squares and each product to fresh memory
        squares = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_()
        out: Tensor = (x32 * squares.div_(x.shape[-1]).add_(self.eps).rsqrt_()).mul_(weight).to(x.dtype)
        return out


class GemmaLayer(nn.Module):
    """``h = x + norm(attention(norm(x)))``, then ``h + norm(mlp(norm(h)))``."""

    def __init__(self, config: GemmaConfig, window: int | None) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = GemmaNorm(size, eps)
        self.self_attn = SelfAttention(
            config, Reach(config.causal, window, config.query_scale), norm=GemmaNorm
        )
        self.post_attention_layernorm = GemmaNorm(size, eps)
        self.pre_feedforward_layernorm = GemmaNorm(size, eps)
        self.mlp = GatedMLP(config, config.activation)
        self.post_feedforward_layernorm = GemmaNorm(size, eps)

    def forward(self, x_ND: Tensor, rotary: Rotary, segments: Segments, pause: Pause) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x_ND), rotary, segments)
        x_ND = x_ND + self.post_attention_layernorm(attended)
        pause()
        out: Tensor = x_ND + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x_ND)))
        return out


class Gemma(Backbone):
    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(GemmaLayer(config, window) for window in config.windows)
        self.norm = GemmaNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, input_ids_N: Tensor, segments: Segments) -> Tensor:
        x_ND = super().embed(input_ids_N, segments)
        return x_ND * torch.tensor(self.config.hidden_size**0.5, dtype=x_ND.dtype, device=x_ND.device)

    def positions(self, x_ND: Tensor, segments: Segments) -> list[Rotary]:
        return windowed_rotary(self.config, x_ND, segments, self.config.global_factor)
