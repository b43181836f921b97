"""One vector per text from packed token states: means, maximum, first or last token, and the
self-attention of the paper's ablation.

Shapes: N packed tokens, P pooled tokens, B texts, D hidden size, H heads, F feed-forward width.
All return (B, D) float32, summed in float32.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.attention import Segments, attention
from nvembed.model.device import to_device


def mean_pool(x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return the mean of each text's tokens. Released: sum, division and norm run in float32."""
    sizes = to_device(torch.tensor(lengths), x_PD.device)
    if x_PD.dtype != torch.float64:
        x_PD = x_PD.float()
    return torch.segment_reduce(x_PD, "mean", lengths=sizes, unsafe=True)


def eos_pool(x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return each text's last pooled token, the EOS. Paper: section 3.2, Tables 2 and 3."""
    last = to_device(torch.tensor(lengths), x_PD.device).cumsum(0) - 1
    return x_PD[last].float()


def cls_pool(x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return each text's first pooled token."""
    sizes = to_device(torch.tensor(lengths), x_PD.device)
    return x_PD[sizes.cumsum(0) - sizes].float()


def max_pool(x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return the maximum of each dimension over each text's tokens."""
    sizes = to_device(torch.tensor(lengths), x_PD.device)
    return torch.segment_reduce(x_PD.float(), "max", lengths=sizes, unsafe=True)


def mean_sqrt_len_pool(x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return each text's sum divided by the square root of its number of tokens."""
    sizes = to_device(torch.tensor(lengths, dtype=torch.float32), x_PD.device)
    return mean_pool(x_PD, lengths) * sizes.sqrt()[:, None]


def weighted_mean_pool(x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Return the mean of each text's tokens, weighted 1, 2, 3, ... from the first one (SGPT)."""
    weights_P = torch.cat([torch.arange(1, n + 1, device=x_PD.device, dtype=torch.float32) for n in lengths])
    totals_B = to_device(torch.tensor([n * (n + 1) / 2 for n in lengths]), x_PD.device)
    sizes = to_device(torch.tensor(lengths), x_PD.device)
    sums = torch.segment_reduce(x_PD.float() * weights_P[:, None], "sum", lengths=sizes, unsafe=True)
    return sums / totals_B[:, None]


# Poolings without weights of their own: (pooled tokens (P, D), tokens of each text) -> (B, D) float32.
POOLINGS: dict[str, Callable[[Tensor, tuple[int, ...]], Tensor]] = {
    "mean": mean_pool,
    "self": mean_pool,  # after the attention block
    "eos": eos_pool,
    "cls": cls_pool,
    "max": max_pool,
    "mean_sqrt_len": mean_sqrt_len_pool,
    "weighted_mean": weighted_mean_pool,
}


# Poolings of which a part of a text has one too: all its tokens count alike.
LATE_POOLINGS = ("mean", "mean_sqrt_len", "latent")


class GEGLU(nn.Module):
    """``a * gelu(g)`` of ``[a | g]``: the first half is the value, the second the gate; exact (erf) gelu."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, -1)
        return value * F.gelu(gate)


class GatedLinear(nn.Module):
    """``W2 geglu(W1 x + b1) + b2``."""

    def __init__(self, hidden_size: int, mult: int) -> None:
        super().__init__()
        width = mult * hidden_size
        self.net = nn.Sequential(nn.Linear(hidden_size, 2 * width), GEGLU(), nn.Linear(width, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class FeedForward(nn.Module):
    """Pre-norm and gated linear layers, without the residual."""

    def __init__(self, hidden_size: int, mult: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.fn = GatedLinear(hidden_size, mult)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fn(self.norm(x))
        return out


class SelfAttentionPooler(nn.Module):
    """One pre-norm self-attention block over each text's tokens, a feed-forward block, then the mean.

    Paper: the ablation against latent attention (section 3.2, Tables 2 and 3), which gives no sizes. Ours
        are full multi-head attention with the latent pooler's number of heads and its feed-forward block.
    """

    def __init__(self, hidden_size: int, num_heads: int, ffn_mult: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(hidden_size)
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.to_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.feed_forward = FeedForward(hidden_size, ffn_mult)

    def forward(self, x_ND: Tensor, segments: Segments) -> Tensor:
        """Return token states (N, D) in the input's dtype; a token attends to all tokens of its text."""
        q, k, v = (
            part.reshape(len(x_ND), self.num_heads, -1) for part in self.to_qkv(self.norm(x_ND)).chunk(3, -1)
        )
        y_ND = x_ND + self.to_out(attention(q, k, v, segments).flatten(1))
        out: Tensor = y_ND + self.feed_forward(y_ND)
        return out
