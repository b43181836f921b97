"""Exact top-k over more passages than fit in memory.

Shapes: Q queries, C passages of one block, D hidden size.
"""

from collections.abc import Iterable

import numpy as np

from nvembed.errors import InputError, NumericsError

Hits = tuple[np.ndarray, np.ndarray]  # scores (Q, k) float32 descending, ids (Q, k) int64

QUERIES_AT_ONCE = 256  # the scores of one block take QUERIES_AT_ONCE * C * 12 bytes


def top_k(queries_QD: np.ndarray, blocks: Iterable[np.ndarray], k: int) -> Hits:
    """The ``k`` passages with the largest dot product for each query, exactly.

    For unit vectors the score is the cosine.

    Args:
        blocks: successive slices ``(C, D)`` of one corpus, whose rows are numbered from 0. One block at a
            time is in memory.

    Returns: scores ``(Q, k)`` float32, largest first, and ids ``(Q, k)`` int64; equal scores by lower id. If
    the corpus is smaller than ``k``, there are as many columns as passages.

    Raises:
        InputError: ``k`` is below 1, or an array's shape is not ``(rows, D)`` with one ``D``.
        NumericsError: a score is not finite.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected 1 or more")
    if queries_QD.ndim != 2:
        raise InputError(f"queries have shape {queries_QD.shape}; expected (queries, dimensions)")
    queries_QD = np.asarray(queries_QD, dtype=np.float32)
    best_Qk = np.empty((len(queries_QD), 0), dtype=np.uint64)
    first = 0
    for block_CD in blocks:
        if block_CD.ndim != 2 or block_CD.shape[1] != queries_QD.shape[1]:
            raise InputError(
                f"a block has shape {block_CD.shape}; expected (passages, {queries_QD.shape[1]}), as the "
                "queries: embed both with the same model and truncate_dim"
            )
        if not len(block_CD):
            continue
        block_CD = np.asarray(block_CD, dtype=np.float32)
        ids_C = np.arange(first, first + len(block_CD), dtype=np.int64)
        parts = [
            _keep(np.hstack([best_Qk[q : q + QUERIES_AT_ONCE], _keys(chunk_QD @ block_CD.T, ids_C)]), k)
            for q, chunk_QD in _chunks(queries_QD)
        ]
        best_Qk = np.vstack(parts) if parts else best_Qk
        first += len(block_CD)
    return _hits(best_Qk)


# A score and an id become one 64-bit key, ordered by larger score, then lower id. So the k largest keys are
# exact with ties, unlike the k largest scores.
_LOW = np.uint64(0xFFFFFFFF)
_SIGN = np.uint32(0x80000000)


def _keys(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    if not np.isfinite(scores).all():
        raise NumericsError("a similarity is not finite: check the vectors for NaN, infinity or overflow")
    if ids.size and int(ids.max()) > int(_LOW):
        raise InputError(f"id {int(ids.max()):,} does not fit in 32 bits: search the corpus in parts")
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    rising = np.where(bits & _SIGN, ~bits, bits | _SIGN)  # the unsigned order is the float order
    return np.asarray((rising.astype(np.uint64) << np.uint64(32)) | (_LOW - ids.astype(np.uint64)))


def _hits(keys_Qk: np.ndarray) -> Hits:
    rising = (keys_Qk >> np.uint64(32)).astype(np.uint32)
    bits = np.where(rising & _SIGN, rising ^ _SIGN, ~rising)
    return bits.view(np.float32), (_LOW - (keys_Qk & _LOW)).astype(np.int64)


def _keep(keys: np.ndarray, k: int) -> np.ndarray:
    """Return the ``k`` largest keys of every row, largest first."""
    if keys.shape[1] > k:
        keys = np.partition(keys, keys.shape[1] - k, axis=1)[:, -k:]
    return np.asarray(np.sort(keys, axis=1)[:, ::-1])


def _chunks(queries_QD: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    for start in range(0, len(queries_QD), QUERIES_AT_ONCE):
        yield start, queries_QD[start : start + QUERIES_AT_ONCE]
