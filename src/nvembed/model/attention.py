"""Attention over packed texts: one signature, three ways to compute it.

Shapes: B texts, N packed tokens, T tokens of one text, H heads, K key-value heads, E head size, R texts of
one run.
Every token attends to every token of its own text and to no other, without a sliding window; ``causal``, for
the paper's ablation alone, takes away the tokens behind it.

- ``attention_oracle``: float64, one text and one head at a time; what the others are tested against.
- ``_attention_sdpa``: torch's fused kernel per run of equally long texts (CPU; CUDA in float32).
- ``_products``: two matrix products per run (CPU, half precision, where a gradient is wanted).
- ``_attention_varlen``: ``torch.nn.attention.varlen.varlen_attn``, FlashAttention over all texts at once
  (CUDA, half precision). Memory is linear in the length in all but the oracle and the products.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Segments:
    """Where each text lies in a packed batch: lengths on the host, offsets on the tokens' device."""

    lengths: tuple[int, ...]
    cu_seqlens: Tensor  # (B + 1,) int32

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> "Segments":
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        offsets[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
        return cls(lengths, offsets.to(device, non_blocking=True))

    def positions(self) -> Tensor:
        """Return each token's position within its own text, (N,) int64 on the offsets' device."""
        starts = self.cu_seqlens[:-1].long()
        lengths = self.cu_seqlens.diff().long()
        total = sum(self.lengths)
        index = torch.arange(total, device=starts.device)
        return index - torch.repeat_interleave(starts, lengths, output_size=total)


def attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, segments: Segments, *, causal: bool = False
) -> Tensor:
    """Return ``softmax(q k^T / sqrt(E)) v`` within each text, (N, H, E) in the inputs' dtype.

    Head ``h`` reads key-value head ``h // (H / K)``. Softmax is accumulated in float32 by the kernels.
    """
    if q_NHE.is_cuda and q_NHE.dtype in (torch.float16, torch.bfloat16):
        return _attention_varlen(q_NHE, k_NKE, v_NKE, segments, causal)
    return _attention_sdpa(q_NHE, k_NKE, v_NKE, segments, causal)


def _attention_varlen(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, segments: Segments, causal: bool
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(segments.lengths)
    offsets = segments.cu_seqlens
    out = varlen_attn(
        q_NHE,
        k_NKE,
        v_NKE,
        offsets,
        offsets,
        longest,
        longest,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=q_NHE.shape[1] != k_NKE.shape[1],
    )
    assert isinstance(out, Tensor)
    return out


def _attention_sdpa(q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, segments: Segments, causal: bool) -> Tensor:
    """Equally long neighbours share one call: sorted batches keep the number of calls small."""
    group = q_NHE.shape[1] // k_NKE.shape[1]
    if group > 1:  # repeating the heads is faster on CPU than SDPA's own enable_gqa
        k_NKE, v_NKE = k_NKE.repeat_interleave(group, 1), v_NKE.repeat_interleave(group, 1)
    # On CPU the fused kernel's backward pass is slow in half precision: 24 against 4 ms (docs/log.md).
    half = q_NHE.dtype in (torch.bfloat16, torch.float16)
    by_products = half and q_NHE.requires_grad and q_NHE.device.type == "cpu"
    runs = [(len(list(run)), length) for length, run in groupby(segments.lengths)]
    # Split, not sliced: the gradient of a slice is as large as what it was cut from.
    sizes = [count * length for count, length in runs]
    splits = (torch.split(x, sizes) for x in (q_NHE, k_NKE, v_NKE))
    parts = []
    for (count, length), *run in zip(runs, *splits, strict=True):
        q, k, v = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in run)
        attend = _products if by_products else F.scaled_dot_product_attention
        out = attend(q, k, v, is_causal=causal)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _products(q_RHTE: Tensor, k_RHTE: Tensor, v_RHTE: Tensor, *, is_causal: bool) -> Tensor:
    """Attention as two matrix products, which keep the weights (T x T) for the backward pass."""
    scores = q_RHTE.contiguous() @ k_RHTE.contiguous().transpose(-1, -2)
    if is_causal:
        scores = scores.masked_fill(_behind(scores.shape[-1], scores.device), float("-inf"))
    weights: Tensor = (scores * q_RHTE.shape[-1] ** -0.5).softmax(-1)
    return weights @ v_RHTE.contiguous()


def _behind(length: int, device: torch.device) -> Tensor:
    """(T, T) bool: true where the column's token comes after the row's."""
    return torch.ones(length, length, dtype=torch.bool, device=device).triu(1)


def attention_oracle(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, segments: Segments, *, causal: bool = False
) -> Tensor:
    """The same in float64, one text and one head at a time; returns (N, H, E) float64."""
    out = torch.empty_like(q_NHE, dtype=torch.float64)
    group = q_NHE.shape[1] // k_NKE.shape[1]
    start = 0
    for length in segments.lengths:
        text = slice(start, start + length)
        for head in range(q_NHE.shape[1]):
            q_TE = q_NHE[text, head].double()
            k_TE, v_TE = k_NKE[text, head // group].double(), v_NKE[text, head // group].double()
            scores_TT = q_TE @ k_TE.T / q_TE.shape[-1] ** 0.5
            if causal:
                scores_TT = scores_TT.masked_fill(_behind(length, q_TE.device), float("-inf"))
            out[text, head] = scores_TT.softmax(-1) @ v_TE
        start += length
    return out
