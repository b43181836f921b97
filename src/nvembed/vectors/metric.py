"""Similarity of vectors, and the quality of a ranking as trec_eval defines it.

Shapes: Q queries, C passages, D hidden size.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nvembed.errors import InputError, NumericsError

Run = Mapping[str, Mapping[str, float]]  # query id -> passage id -> score
Qrels = Mapping[str, Mapping[str, int]]  # query id -> passage id -> grade


def unit(x_ND: np.ndarray) -> np.ndarray:
    """Scale every row to length 1: ``x / |x|``.

    Computed in float64 where ``x`` is float64, else in float32.

    Raises:
        NumericsError: a row is zero or not finite.
    """
    x_ND = np.asarray(x_ND)
    x_ND = x_ND if x_ND.dtype == np.float64 else x_ND.astype(np.float32)
    norm_N1 = np.linalg.norm(x_ND, axis=-1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norm_N1.ravel()) | (norm_N1.ravel() == 0))
    if bad.size:
        raise NumericsError(
            f"{bad.size} of {norm_N1.size} vectors are zero or not finite (first: row {bad[0]}): look for "
            "empty texts or an overflow in half precision"
        )
    return np.asarray(x_ND / norm_N1)


def cosine(a_QD: np.ndarray, b_CD: np.ndarray) -> np.ndarray:
    """Cosine of every row of ``a`` with every row of ``b``: ``(Q, C)``.

    Float32 in and out (float64 if either is).

    Raises:
        InputError: the rows of ``a`` and ``b`` differ in length.
        NumericsError: a row is zero or not finite.
    """
    a_QD, b_CD = unit(a_QD), unit(b_CD)
    if a_QD.shape[-1] != b_CD.shape[-1]:
        raise InputError(
            f"vectors have {a_QD.shape[-1]:,} and {b_CD.shape[-1]:,} dimensions; expected as many: embed "
            "both with the same model and truncate_dim"
        )
    return np.asarray(a_QD @ b_CD.T)


def paired_cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> np.ndarray:
    """Cosine of row i of ``a`` with row i of ``b``: ``(N,)``, accumulated and returned in float64.

    Computed as ``1 - |a - b|^2 / 2`` of the unit rows: equal rows have exactly 1. The rounding error of a sum
    of products would sort equal pairs at random.
    """
    difference_ND = (unit(a_ND) - unit(b_ND)).astype(np.float64)
    return np.asarray(1 - np.sum(np.square(difference_ND), axis=-1) / 2)


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Passage ids from best to worst, as trec_eval sorts: float32 score, then id, both descending."""
    return sorted(scores, key=lambda pid: (float(np.float32(scores[pid])), pid.encode()), reverse=True)


def score_run(run: Run, qrels: Qrels, cutoffs: Sequence[int]) -> dict[str, dict[str, float]]:
    """Score each query of a run with trec_eval's definitions.

    For every cutoff k: ``ndcg@k`` (linear gain, discount ``1 / log2(rank + 1)``, ideal ranking of all judged
    passages), ``map@k`` (divided by all relevant passages), ``recall@k``, ``precision@k`` and ``mrr@k``. A
    passage is relevant if its grade is 1 or more. Only queries in both ``run`` and ``qrels`` are scored.
    Computed in float64.

    Returns: metric name -> query id -> value in [0, 1].

    Raises:
        InputError: there is no cutoff, a cutoff is below 1, or a score is not finite.
    """
    if not cutoffs or min(cutoffs) < 1:
        raise InputError(f"expected cutoffs of 1 or more, got {list(cutoffs)}")
    table: dict[str, dict[str, float]] = {f"{name}@{k}": {} for name in _METRICS for k in cutoffs}
    for qid in (q for q in run if q in qrels):
        if not all(np.isfinite(score) for score in run[qid].values()):
            raise InputError(f"query {qid!r}: expected finite scores, got NaN or infinity")
        grades = np.array([max(0, qrels[qid].get(pid, 0)) for pid in ranked(run[qid])], dtype=np.float64)
        judged = np.array(sorted((g for g in qrels[qid].values() if g > 0), reverse=True), dtype=np.float64)
        for name, metric in _METRICS.items():
            for k in cutoffs:
                table[f"{name}@{k}"][qid] = metric(grades[:k], judged, k) if judged.size else 0.0
    return table


# Arguments: the grades of the first k ranked passages; the grades of all relevant ones, best first; k.
def _ndcg(grades: np.ndarray, judged: np.ndarray, k: int) -> float:
    return _dcg(grades) / _dcg(judged[:k])


def _dcg(grades: np.ndarray) -> float:
    return float(np.sum(grades / np.log2(np.arange(2, grades.size + 2))))


def _average_precision(grades: np.ndarray, judged: np.ndarray, _k: int) -> float:
    hit = grades > 0
    return float(np.sum(np.cumsum(hit)[hit] / (np.flatnonzero(hit) + 1))) / judged.size


def _recall(grades: np.ndarray, judged: np.ndarray, _k: int) -> float:
    return np.count_nonzero(grades) / judged.size


def _precision(grades: np.ndarray, _judged: np.ndarray, k: int) -> float:
    return np.count_nonzero(grades) / k


def _reciprocal_rank(grades: np.ndarray, _judged: np.ndarray, _k: int) -> float:
    hits = np.flatnonzero(grades)
    return 1.0 / float(hits[0] + 1) if hits.size else 0.0


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "ndcg": _ndcg,
    "map": _average_precision,
    "recall": _recall,
    "precision": _precision,
    "mrr": _reciprocal_rank,
}
