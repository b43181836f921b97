"""Attention over packed texts: one signature, three ways to compute it.

Shapes: B texts, N packed tokens, T tokens of one text, H heads, K key-value heads, E head size, R texts of
one run.
Every token attends to the tokens of its own text and to no other. ``causal`` leaves out the tokens that
follow; ``window`` is an inclusive radius: token ``i`` attends to ``j`` where ``|i - j| <= window``.

- ``_attention_sdpa``: torch's fused kernel per run of equally long texts (CPU; CUDA in float32, with wide
  heads, and for a batch of equally long texts of ``DENSE_TOKENS`` or more, where cuDNN's kernel is faster).
- ``_Products``: plain matrix products, forward and backward, over texts padded to similar lengths (CPU, half
  precision, with a gradient).
- ``_attention_varlen``: ``torch.nn.attention.varlen.varlen_attn``, FlashAttention over all texts at once
  (CUDA, half precision). A text's result does not depend on the texts beside it, to the last bit.

Memory is linear in the length, except in ``_Products``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nvembed.errors import InputError, MissingExtraError
from nvembed.model.device import to_device


@dataclass(frozen=True)
class Segments:
    """The place of each text in a packed batch: lengths on the host, offsets on the tokens' device."""

    lengths: tuple[int, ...]
    cu_seqlens: Tensor  # (B + 1,) int32

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> "Segments":
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        offsets[1:] = torch.tensor(lengths, dtype=torch.int32).cumsum(0)
        return cls(lengths, to_device(offsets, device))

    def positions(self) -> Tensor:
        """Return each token's position within its own text, (N,) int64 on the offsets' device."""
        starts = self.cu_seqlens[:-1].long()
        lengths = self.cu_seqlens.diff().long()
        total = sum(self.lengths)
        index = torch.arange(total, device=starts.device)
        return index - torch.repeat_interleave(starts, lengths, output_size=total)


@dataclass(frozen=True)
class Reach:
    """Which tokens of its text a token attends to, and the factor of the scores."""

    causal: bool = False  # leave out the tokens that follow
    window: int | None = None  # inclusive radius; None is the whole text
    scale: float | None = None  # None is ``1 / sqrt(E)``


WHOLE = Reach()

# From this length on, equally long texts go to SDPA on CUDA. Below, attention takes less than 4 % of a layer
# of NV-Embed v2, and one kernel for all batches keeps a text's vector independent of its batch.
DENSE_TOKENS = 1024
VARLEN_HEAD_DIM = 256  # the widest heads of FlashAttention; EmbeddingGemma 2 has wider ones


def attention(
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    segments: Segments,
    reach: Reach = WHOLE,
    *,
    bias_HTT: Tensor | None = None,
) -> Tensor:
    """Return ``softmax(scale q k^T + bias) v`` within each text, (N, H, E) in the inputs' dtype.

    Head ``h`` reads key-value head ``h // (H / K)``. Softmax is accumulated in float32 by the kernels.

    Args:
        bias_HTT: is added to the scores of each text; T is the length of the longest one.
    """
    half = q_NHE.dtype in (torch.float16, torch.bfloat16)
    narrow = q_NHE.shape[-1] <= VARLEN_HEAD_DIM
    if q_NHE.is_cuda and half and narrow and bias_HTT is None and not is_dense(segments, reach):
        return _attention_varlen(q_NHE, k_NKE, v_NKE, segments, reach)
    plain = bias_HTT is None and reach.window is None
    if half and plain and q_NHE.requires_grad and q_NHE.device.type == "cpu":
        out: Tensor = _Products.apply(q_NHE, k_NKE, v_NKE, segments, reach)  # type: ignore[no-untyped-call]
        return out
    return _attention_sdpa(q_NHE, k_NKE, v_NKE, segments, reach, bias_HTT)


def is_dense(segments: Segments, reach: Reach) -> bool:
    """Whether a batch on CUDA is equally long texts, long enough for SDPA, each read whole."""
    shortest, longest = min(segments.lengths), max(segments.lengths)
    return shortest == longest >= DENSE_TOKENS and (reach.window is None or reach.window >= longest - 1)


def _attention_varlen(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, segments: Segments, reach: Reach
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(segments.lengths)
    offsets = segments.cu_seqlens
    # The kernel reads grouped heads in every release; its wrapper requires a flag from torch 2.12 on. From
    # then on it also splits texts by the longest one of the batch, unless one split is asked for.
    options: dict[str, Any] = {"enable_gqa": True, "num_splits": 1}
    options = {name: value for name, value in options.items() if name in _parameters(varlen_attn)}
    radius = -1 if reach.window is None else reach.window
    out = varlen_attn(
        q_NHE,
        k_NKE,
        v_NKE,
        offsets,
        offsets,
        longest,
        longest,
        scale=reach.scale,
        window_size=(radius, 0 if reach.causal else radius),
        **options,
    )
    assert isinstance(out, Tensor)
    return out


def use_flash_attention(version: str) -> None:
    """Let all attention of this process run on an installed FlashAttention, ``"FA3"`` or ``"FA4"``.

    Raises:
        MissingExtraError: it is not installed, or this torch cannot use it.
        InputError: another version.
    """
    packages = {"FA3": "flash_attn_interface", "FA4": "flash_attn"}
    if version not in packages:
        raise InputError(f"FlashAttention is {version!r}: expected one of {', '.join(packages)}")
    activate = getattr(torch.nn.attention, "activate_flash_attention_impl", None)
    if activate is None:
        raise MissingExtraError(
            f"torch {torch.__version__} cannot use {version}: expected torch 2.11 or later"
        )
    try:
        activate(version)
    except (ImportError, RuntimeError, ValueError) as error:
        raise MissingExtraError(
            f"{version} is not available ({error}): install {packages[version]} for this GPU, or leave it out"
        ) from error


@cache
def _parameters(function: Callable[..., object]) -> frozenset[str]:
    return frozenset(signature(function).parameters)


def _attention_sdpa(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, segments: Segments, reach: Reach, bias_HTT: Tensor | None
) -> Tensor:
    """Call the kernel once for each run of texts of equal length; batches are sorted, so there are few."""
    group = q_NHE.shape[1] // k_NKE.shape[1]
    if group > 1:  # repeating the heads is faster on CPU than SDPA's own enable_gqa
        k_NKE, v_NKE = k_NKE.repeat_interleave(group, 1), v_NKE.repeat_interleave(group, 1)
    runs = [(len(list(run)), length) for length, run in groupby(segments.lengths)]
    # Split, not sliced: the gradient of a slice is as large as the whole tensor.
    sizes = [count * length for count, length in runs]
    splits = (torch.split(x, sizes) for x in (q_NHE, k_NKE, v_NKE))
    parts = []
    for (count, length), *run in zip(runs, *splits, strict=True):
        q, k, v = (x.view(count, length, *x.shape[1:]).transpose(1, 2) for x in run)
        if bias_HTT is not None:
            bias = bias_HTT[None, :, :length, :length]  # with four dimensions the fused kernel takes it
            hidden = _hidden(range(length), range(length), reach, q.device)
            bias = bias if hidden is None else bias.masked_fill(hidden, -torch.inf)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=reach.scale)
        elif reach.window is None or reach.window >= length - 1:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=reach.causal, scale=reach.scale)
        else:
            out = _windowed(q, k, v, reach)
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _windowed(q_RHTE: Tensor, k_RHTE: Tensor, v_RHTE: Tensor, reach: Reach) -> Tensor:
    """Compute blocks of queries with the keys within their reach: memory is linear in the length."""
    assert reach.window is not None
    length, radius = q_RHTE.shape[2], reach.window
    step = max(2 * radius, 128)
    parts = []
    for first in range(0, length, step):
        rows = range(first, min(first + step, length))
        columns = range(max(0, first - radius), min(length, rows.stop + (0 if reach.causal else radius)))
        hidden = _hidden(rows, columns, reach, q_RHTE.device)
        k, v = (x[:, :, columns.start : columns.stop] for x in (k_RHTE, v_RHTE))
        mask = None if hidden is None else ~hidden
        q = q_RHTE[:, :, rows.start : rows.stop]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=reach.scale))
    return torch.cat(parts, 2)


def _hidden(rows: range, columns: range, reach: Reach, device: torch.device) -> Tensor | None:
    """Return which keys (columns) are hidden from which queries (rows) of a text; None if no key is."""
    if not reach.causal and reach.window is None:
        return None
    distance = (
        torch.arange(columns.start, columns.stop, device=device)[None]
        - torch.arange(rows.start, rows.stop, device=device)[:, None]
    )
    hidden = distance > 0 if reach.causal else torch.zeros_like(distance, dtype=torch.bool)
    if reach.window is not None:
        hidden = hidden | (distance.abs() > reach.window)
    return hidden if bool(hidden.any()) else None


@dataclass(frozen=True)
class _Padded:
    """Neighbouring texts of similar length, as R rows of T tokens."""

    tokens: slice  # in the packed batch
    shape: tuple[int, int]  # R, T
    take: Tensor  # (R * T,) the packed token of each place; for padding, the text's first token
    keep: Tensor  # the places that hold a token, in packed order
    empty: Tensor | None  # (R, T), True where there is padding; None without padding

    def pad(self, x_NKE: Tensor, groups: int = 1) -> Tensor:
        """Return (R * K, groups * T, E) of (N, K * groups, E)."""
        rows, width = self.shape
        x = x_NKE[self.tokens].index_select(0, self.take).view(rows, width, -1, groups, x_NKE.shape[-1])
        return x.permute(0, 2, 3, 1, 4).reshape(-1, groups * width, x_NKE.shape[-1])

    def unpad(self, x: Tensor, groups: int = 1) -> Tensor:
        """Undo ``pad``: return (n, K * groups, E) of this group's n tokens."""
        rows, width = self.shape
        x = x.view(rows, -1, groups, width, x.shape[-1]).permute(0, 3, 1, 2, 4)
        return x.reshape(rows * width, -1, x.shape[-1]).index_select(0, self.keep)

    def hidden(self, groups: int, causal: bool) -> Tensor | None:
        """Return the hidden keys, which broadcast over (R, K, groups * T, T); None if no key is hidden."""
        masks = [] if self.empty is None else [self.empty[:, None, None, :]]
        if causal:
            later_TT = self.take.new_ones(self.shape[1], self.shape[1], dtype=torch.bool).triu(1)
            masks.append(later_TT.repeat(groups, 1)[None, None])
        return None if not masks else masks[0] if len(masks) == 1 else masks[0] | masks[1]

    @classmethod
    def of(cls, start: int, lengths: list[int]) -> "_Padded":
        sizes, width = torch.tensor(lengths), max(lengths)
        place_RT = torch.arange(width).expand(len(lengths), width)
        empty = place_RT >= sizes[:, None]
        first_R1 = (sizes.cumsum(0) - sizes)[:, None]
        take = (first_R1 + place_RT.masked_fill(empty, 0)).flatten()
        keep = (~empty).flatten().nonzero().flatten()
        tokens = slice(start, start + sum(lengths))
        return cls(tokens, (len(lengths), width), take, keep, empty if empty.any() else None)


class _Products(torch.autograd.Function):
    """``softmax(q k^T / sqrt(E)) v`` as matrix products, and its gradient from the saved weights.

    Texts whose lengths are equal when rounded up to 16 share a product. On CPU, in half precision, the fused
    kernel's backward pass is slow, and so are many small products (docs/log.md).
    """

    @staticmethod
    def forward(
        ctx: Any, q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, segments: Segments, reach: Reach
    ) -> Tensor:
        ctx.scale = q_NHE.shape[-1] ** -0.5 if reach.scale is None else reach.scale
        ctx.groups = q_NHE.shape[1] // k_NKE.shape[1]
        ctx.layout, saved = [], []
        out_NHE, start = torch.empty_like(q_NHE, memory_format=torch.contiguous_format), 0
        for _, run in groupby(segments.lengths, key=lambda length: -(-length // 16)):
            layout = _Padded.of(start, list(run))
            start = layout.tokens.stop
            q, k, v = layout.pad(q_NHE, ctx.groups), layout.pad(k_NKE), layout.pad(v_NKE)
            scores = torch.bmm(q, k.transpose(1, 2)).mul_(ctx.scale)
            hidden = layout.hidden(ctx.groups, reach.causal)
            if hidden is not None:
                rows, width = layout.shape
                scores.view(rows, -1, scores.shape[1], width).masked_fill_(hidden, -torch.inf)
            weights = scores.softmax(-1)
            out_NHE[layout.tokens] = layout.unpad(torch.bmm(weights, v), ctx.groups)
            ctx.layout.append(layout)
            saved += [q, k, v, weights]
        ctx.save_for_backward(*saved)
        return out_NHE

    @staticmethod
    def backward(ctx: Any, gradient_NHE: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        saved = iter(ctx.saved_tensors)
        parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for layout in ctx.layout:
            q, k, v, weights = (next(saved) for _ in range(4))
            gradient = layout.pad(gradient_NHE, ctx.groups)
            if layout.empty is not None:
                rows, width = layout.shape
                gradient.view(rows, -1, width, gradient.shape[-1]).masked_fill_(
                    layout.empty[:, None, :, None], 0
                )
            by_weights = torch.bmm(gradient, v.transpose(1, 2))
            by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype)
            by_scores.mul_(ctx.scale)
            parts[0].append(layout.unpad(torch.bmm(by_scores, k), ctx.groups))
            parts[1].append(layout.unpad(torch.bmm(by_scores.transpose(1, 2), q)))
            parts[2].append(layout.unpad(torch.bmm(weights.transpose(1, 2), gradient)))
        by_q, by_k, by_v = (torch.cat(part) for part in parts)
        return by_q, by_k, by_v, None, None
