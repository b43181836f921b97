"""Statistics of a whole task, by scipy and scikit-learn, with defined values for degenerate input.

Shapes: N items.
"""

from typing import Any

import numpy as np

from nvembed.errors import needs_extra


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Pearson's r; 0 if one side is constant, where r is undefined."""
    return float(scipy_stats().pearsonr(x_N, y_N).statistic) if _vary(x_N, y_N) else 0.0


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Spearman's rho, ties at their mean rank; 0 if one side is constant."""
    return float(scipy_stats().spearmanr(x_N, y_N).statistic) if _vary(x_N, y_N) else 0.0


def spearman_p_value(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Two-sided p-value of Spearman's rho; 1 if rho is undefined."""
    if len(x_N) < 3 or not _vary(x_N, y_N):
        return 1.0
    return float(scipy_stats().spearmanr(x_N, y_N).pvalue)


def average_precision(gold_N: np.ndarray, score_N: np.ndarray) -> float:
    """Area under the precision-recall curve; 0 without a positive."""
    positive_N = gold_N == 1
    return float(_metrics().average_precision_score(positive_N, score_N)) if positive_N.any() else 0.0


def best_accuracy(gold_N: np.ndarray, score_N: np.ndarray) -> float:
    """The best accuracy of any threshold with at least one item on each side."""
    hits, items_above = _curve(gold_N, score_N)
    negatives_left = np.count_nonzero(gold_N != 1) - (items_above - hits)
    return float((hits + negatives_left).max()) / len(gold_N) if len(hits) else 0.0


def best_f1(gold_N: np.ndarray, score_N: np.ndarray) -> tuple[float, float, float]:
    """(F1, precision, recall) at the threshold with the best F1, with at least one item on each side."""
    hits, items_above = _curve(gold_N, score_N)
    if not hits.any():
        return 0.0, 0.0, 0.0
    precision, recall = hits / items_above, hits / np.count_nonzero(gold_N == 1)
    f1 = 2 * hits / (items_above + np.count_nonzero(gold_N == 1))
    best = int(np.argmax(f1))
    return float(f1[best]), float(precision[best]), float(recall[best])


def _curve(gold_N: np.ndarray, score_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of positives and of items above each threshold between two scores, from the top."""
    positive_N = gold_N == 1
    thresholds = np.unique(score_N)[:0:-1]  # all but the lowest
    above = np.searchsorted(np.sort(score_N), thresholds)
    above_positive = np.searchsorted(np.sort(score_N[positive_N]), thresholds)
    return np.count_nonzero(positive_N) - above_positive, len(score_N) - above


def classification_scores(gold_N: np.ndarray, guess_N: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 averaged over classes: evenly, and weighted by gold counts.

    A class that is never guessed has precision 0, one that never occurs has recall 0.
    """
    scores = {"accuracy": float(_metrics().accuracy_score(gold_N, guess_N))}
    for average, suffix in (("macro", ""), ("weighted", "_weighted")):
        values = _metrics().precision_recall_fscore_support(gold_N, guess_N, average=average, zero_division=0)
        pairs = zip(("precision", "recall", "f1"), values, strict=False)
        scores |= {f"{name}{suffix}": float(value) for name, value in pairs}
    return scores


def v_measure(gold_N: np.ndarray, cluster_N: np.ndarray) -> float:
    """Harmonic mean of homogeneity, ``1 - H(gold|cluster) / H(gold)``, and completeness, the reverse."""
    return float(_metrics().v_measure_score(gold_N, cluster_N))


def _vary(*arrays: np.ndarray) -> bool:
    return all(len(x_N) > 1 and np.ptp(x_N) > 0 for x_N in arrays)


def scipy_stats() -> Any:
    """Return the module scipy.stats."""
    with needs_extra("eval", "the evaluation"):
        import scipy.stats
    return scipy.stats


def _metrics() -> Any:
    with needs_extra("eval", "the evaluation"):
        import sklearn.metrics
    return sklearn.metrics
