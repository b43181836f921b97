"""Attention in float64, one text, head and query at a time: the oracle of every other way to compute it."""

import torch
from torch import Tensor

from nvembed.model.attention import WHOLE, Reach, Segments


def attention_oracle(
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    segments: Segments,
    reach: Reach = WHOLE,
    *,
    bias_HTT: Tensor | None = None,
) -> Tensor:
    """Return what ``attention`` computes, (N, H, E) float64."""
    out = torch.empty_like(q_NHE, dtype=torch.float64)
    group = q_NHE.shape[1] // k_NKE.shape[1]
    scale = q_NHE.shape[-1] ** -0.5 if reach.scale is None else reach.scale
    start = 0
    for length in segments.lengths:
        for head in range(q_NHE.shape[1]):
            for row in range(length):
                first = 0 if reach.window is None else max(0, row - reach.window)
                last = length - 1 if reach.window is None else min(length - 1, row + reach.window)
                last = min(last, row) if reach.causal else last
                seen = slice(start + first, start + last + 1)
                scores_T = scale * (k_NKE[seen, head // group].double() @ q_NHE[start + row, head].double())
                if bias_HTT is not None:
                    scores_T = scores_T + bias_HTT[head, row, first : last + 1].double()
                out[start + row, head] = scores_T.softmax(-1) @ v_NKE[seen, head // group].double()
        start += length
    return out
