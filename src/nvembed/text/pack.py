"""Packs tokenised texts into batches: sorted by length, up to a token budget, end to end.

Shapes: N packed tokens, P pooled tokens, B texts.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nvembed.text.tokenize import Tokens


@dataclass(frozen=True)
class Batch:
    """Texts end to end, without padding. ``rows`` has each one's number among the caller's texts."""

    input_ids: np.ndarray  # (N,) int64
    lengths: tuple[int, ...]  # B, in tokens
    pool_index: np.ndarray  # (P,) int64, indices into the N tokens
    pool_lengths: tuple[int, ...]  # B, each at least 1
    rows: np.ndarray  # (B,) int64: writing result i to row rows[i] restores the caller's order


def pack(tokens: Sequence[Tokens], rows: Sequence[int]) -> Batch:
    """Return the texts of ``rows`` end to end, in that order."""
    items = [tokens[row] for row in rows]
    lengths = tuple(len(item.input_ids) for item in items)
    ends = np.cumsum(lengths)
    starts = ends - lengths + [item.pool_start for item in items]
    return Batch(
        input_ids=np.concatenate([item.input_ids for item in items]).astype(np.int64),
        lengths=lengths,
        pool_index=np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)]),
        pool_lengths=tuple(int(n) for n in ends - starts),
        rows=np.asarray(rows, dtype=np.int64),
    )


def batches(tokens: Sequence[Tokens], max_tokens: int) -> list[Batch]:
    """Pack all texts, longest first, into batches of at most ``max_tokens`` tokens.

    A text longer than ``max_tokens`` is a batch of its own. Equally long texts keep their order.
    """
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row].input_ids))
    groups: list[list[int]] = []
    used = max_tokens
    for row in order:
        length = len(tokens[row].input_ids)
        if used + length > max_tokens:
            groups.append([])
            used = 0
        groups[-1].append(row)
        used += length
    return [pack(tokens, group) for group in groups]


def windows(texts: Iterable[str], max_texts: int, max_characters: int) -> Iterator[list[str]]:
    """Yield the texts in lists of at most ``max_texts``; a list also ends when it has ``max_characters``."""
    window: list[str] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(window) == max_texts or characters >= max_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window
