"""Small codes of unit vectors, and exact rescoring: a scan finds candidates, float16 rows score them.

Shapes: Q queries, N rows, C candidates of one query, D numbers of a vector, W 64-bit words of D bits.

========  ==========  ================================================================
code      bytes/row   one number
========  ==========  ================================================================
int8      D + 4       ``round(x / scale)``, ``scale = max|x| / 127`` of the row
binary    D / 8       whether ``x > 0``
========  ==========  ================================================================
"""

from dataclasses import dataclass

import numpy as np

from nvembed.errors import InputError, NumericsError
from nvembed.vectors.search import Hits, top_k

WORD_BITS = 64
# The rows scored at a time: their float32 copy (int8) or their distances (binary) stay in the cache.
INT8_ROWS, BINARY_ROWS = 64, 2048


@dataclass(frozen=True)
class Int8:
    """Rows ``codes[i] * scales[i]``. ``codes``: int8 (N, D); ``scales``: float32 (N,)."""

    codes: np.ndarray
    scales: np.ndarray


def to_int8(x_ND: np.ndarray) -> Int8:
    """Quantise rows to 8 bits, symmetrically: an element is off by half a step, ``max|x| / 254``, at most.

    Raises:
        NumericsError: a value is not finite.
    """
    x_ND = np.asarray(_rows(x_ND), dtype=np.float32)
    scales_N = np.abs(x_ND).max(axis=1, initial=0) / np.float32(127)
    safe_N = np.where(scales_N > 0, scales_N, np.float32(1))
    return Int8(np.rint(x_ND / safe_N[:, None]).astype(np.int8), scales_N)


def from_int8(codes: Int8) -> np.ndarray:
    """Return the float32 ``(N, D)`` rows that 8-bit codes stand for."""
    return np.asarray(codes.codes.astype(np.float32) * codes.scales[:, None])


def to_binary(x_ND: np.ndarray) -> np.ndarray:
    """Pack the sign of every number into one bit: uint64 ``(N, W)``, ``W = ceil(D / 64)``, the rest zero.

    Raises:
        NumericsError: a value is not finite.
    """
    x_ND = _rows(x_ND)
    packed = np.packbits(x_ND > 0, axis=1)
    spare = -packed.shape[1] % (WORD_BITS // 8)
    return np.ascontiguousarray(np.pad(packed, ((0, 0), (0, spare)))).view(np.uint64)


def int8_scores(queries_QD: np.ndarray, codes: Int8) -> np.ndarray:
    """Dot products of float32 queries with 8-bit rows: float32 ``(Q, N)``, accumulated in float32."""
    queries_QD = np.asarray(queries_QD, dtype=np.float32)
    _same_width(queries_QD.shape[1], codes.codes.shape[1])
    out_QN = np.empty((len(queries_QD), len(codes.codes)), dtype=np.float32)
    for i in range(0, len(codes.codes), INT8_ROWS):
        rows = slice(i, i + INT8_ROWS)
        out_QN[:, rows] = (queries_QD @ codes.codes[rows].astype(np.float32).T) * codes.scales[rows]
    return out_QN


def binary_scores(queries_QD: np.ndarray, bits_NW: np.ndarray) -> np.ndarray:
    """How many signs agree, less how many differ: int32 ``(Q, N)``, in ``[-D, D]``.

    That is the dot product of the sign vectors (zero counts as negative), ``D - 2 * hamming``.
    """
    queries_QD = np.asarray(queries_QD)
    dim = queries_QD.shape[1]
    query_QW = to_binary(queries_QD)
    _same_width(query_QW.shape[1] * WORD_BITS, bits_NW.shape[1] * WORD_BITS)
    out_QN = np.empty((len(query_QW), len(bits_NW)), dtype=np.int32)
    for i in range(0, len(bits_NW), BINARY_ROWS):
        rows = slice(i, i + BINARY_ROWS)
        for q, word_W in enumerate(query_QW):
            differ = np.bitwise_count(bits_NW[rows] ^ word_W).sum(axis=1, dtype=np.int32)
            out_QN[q, rows] = dim - 2 * differ
    return out_QN


def candidates(scores_N: np.ndarray, count: int) -> np.ndarray:
    """Row numbers (int64, rising) of the ``count`` largest scores; ties at the edge fall either way."""
    if count < 1:
        raise InputError(f"count is {count}; expected 1 or more")
    if count >= len(scores_N):
        return np.arange(len(scores_N), dtype=np.int64)
    return np.sort(np.argpartition(scores_N, len(scores_N) - count)[-count:]).astype(np.int64)


def rescore(query_D: np.ndarray, rows_CD: np.ndarray, ids_C: np.ndarray, k: int) -> Hits:
    """The ``k`` best of a query's candidates by their exact dot product, computed in float32.

    Args:
        rows_CD: the candidates' own vectors, float16 or float32.
        ids_C: their row numbers, in the order in which equal scores come.

    Returns: scores ``(1, k)`` and ids ``(1, k)``, as ``top_k`` returns them.
    """
    scores, places = top_k(np.asarray(query_D)[None], [rows_CD], k)
    return scores, np.asarray(ids_C, dtype=np.int64)[places]


def _rows(x_ND: np.ndarray) -> np.ndarray:
    x_ND = np.asarray(x_ND)
    if x_ND.ndim != 2:
        raise InputError(f"vectors have shape {x_ND.shape}; expected (rows, dimensions)")
    if not np.isfinite(x_ND).all():
        raise NumericsError("expected finite vectors, got NaN or infinity: embed the texts again")
    return x_ND


def _same_width(query: int, rows: int) -> None:
    if query != rows:
        raise InputError(f"queries have {query} dimensions, the codes {rows}: embed both with the same model")
