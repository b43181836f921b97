"""Statistics of a whole task: correlations, average precision, classification and clustering quality.

Plain numpy, float64; each has a slow oracle in the tests and is checked against scipy or scikit-learn.
Shapes: N items.
"""

import numpy as np


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Pearson's r; 0 where one side is constant and r is undefined."""
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    scale = float(np.sqrt((x_N @ x_N) * (y_N @ y_N)))
    return float(x_N @ y_N) / scale if scale > 0 else 0.0


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Spearman's rho: Pearson's r of the ranks, ties given their mean rank."""
    return pearson(mean_ranks(x_N), mean_ranks(y_N))


def mean_ranks(x_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(x_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse])


def average_precision(gold_N: np.ndarray, score_N: np.ndarray) -> float:
    """Area under the curve: ``sum (R_n - R_n-1) P_n`` over falling thresholds; a tie is one step."""
    hits, taken = _curve(gold_N, score_N)
    steps = np.diff(hits, prepend=0)
    return float(np.sum(steps * hits / taken)) / float(hits[-1]) if hits[-1] else 0.0


def best_accuracy(gold_N: np.ndarray, score_N: np.ndarray) -> float:
    """The best accuracy of any threshold that takes at least one item and leaves at least one out."""
    hits, taken = _curve(gold_N, score_N)
    inner = taken < len(gold_N)
    negatives_left = (len(gold_N) - hits[-1]) - (taken - hits)
    right = (hits + negatives_left)[inner]
    return float(right.max()) / len(gold_N) if right.size else 0.0


def best_f1(gold_N: np.ndarray, score_N: np.ndarray) -> tuple[float, float, float]:
    """(F1, precision, recall) at the threshold with the best F1, under the same condition."""
    hits, taken = _curve(gold_N, score_N)
    inner = (taken < len(gold_N)) & (hits > 0)
    if not inner.any():
        return 0.0, 0.0, 0.0
    precision, recall = hits[inner] / taken[inner], hits[inner] / hits[-1]
    f1 = 2 * precision * recall / (precision + recall)
    best = int(np.argmax(f1))
    return float(f1[best]), float(precision[best]), float(recall[best])


def _curve(gold_N: np.ndarray, score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every distinct score, falling: how many positives, and how many items, score at least that."""
    order = np.argsort(-score_N, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(score_N[order]) != 0, True))
    return np.cumsum(gold_N[order] == 1)[ends], ends + 1


def classification_scores(gold_N: np.ndarray, guess_N: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over classes: evenly, and weighted by gold counts.

    A class without a guess has precision 0, one without gold recall 0, as scikit-learn warns and counts.
    """
    table = contingency(gold_N, guess_N)
    right = np.diag(table).astype(np.float64)
    gold, guessed = table.sum(axis=1), table.sum(axis=0)
    present = (gold + guessed) > 0
    right, gold, guessed = right[present], gold[present], guessed[present]
    precision = right / np.maximum(guessed, 1)
    recall = right / np.maximum(gold, 1)
    f1 = 2 * right / (gold + guessed)
    weight = gold / gold.sum()
    scores = {"accuracy": float(right.sum() / gold.sum())}
    for name, values in (("f1", f1), ("precision", precision), ("recall", recall)):
        scores[name] = float(values.mean())
        scores[f"{name}_weighted"] = float(weight @ values)
    return scores


def contingency(gold_N: np.ndarray, guess_N: np.ndarray) -> np.ndarray:
    """Count (gold, guess) pairs in a square table over labels from 0."""
    size = int(max(gold_N.max(), guess_N.max())) + 1
    return np.bincount(gold_N * size + guess_N, minlength=size * size).reshape(size, size)


def v_measure(gold_N: np.ndarray, cluster_N: np.ndarray) -> float:
    """Harmonic mean of homogeneity, ``1 - H(gold|cluster) / H(gold)``, and completeness, the reverse."""
    joint = contingency(gold_N, cluster_N) / len(gold_N)
    gold, cluster = _entropy(joint.sum(axis=1)), _entropy(joint.sum(axis=0))
    both = _entropy(joint.ravel())
    homogeneity = 1 - (both - cluster) / gold if gold > 0 else 1.0
    completeness = 1 - (both - gold) / cluster if cluster > 0 else 1.0
    total = homogeneity + completeness
    return max(0.0, 2 * homogeneity * completeness / total) if total > 1e-12 else 0.0


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-np.sum(p * np.log(p)))
