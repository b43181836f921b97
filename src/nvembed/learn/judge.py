"""How good a classifier is: accuracy, F1, calibration, with 95% intervals.  n examples, K classes."""

from dataclasses import dataclass

import numpy as np

BINS = 15
RESAMPLES = 1000
Z = 1.959964  # of a two-sided 95% interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassScores:
    examples: int
    precision: float
    recall: float
    f1: float
    f1_interval: Interval


@dataclass(frozen=True)
class Judgement:
    """Scores in [0, 1]. ``confusion``: int64 (K, K), true classes in rows, predicted ones in columns."""

    accuracy: float
    accuracy_interval: Interval
    macro_f1: float
    macro_f1_interval: Interval
    per_class: list[ClassScores]
    confusion: np.ndarray


def judge(truth: np.ndarray, guess: np.ndarray, count: int, *, seed: int = 0) -> Judgement:
    """Judge decisions by the truth.

    The interval of the accuracy is Wilson's; those of F1 are percentiles of ``RESAMPLES`` bootstrap resamples
    of the examples. A class that is neither there nor predicted has F1 0, as in scikit-learn, and counts in
    the macro average only where it occurs in ``truth`` or ``guess``.

    Args:
        truth: int (n,), n at least 1.
        guess: int (n,).
        count: K.
        seed: of the resampling.
    """
    cells = truth.astype(np.int64) * count + guess
    confusion = np.bincount(cells, minlength=count * count).reshape(count, count)
    present = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    rng = np.random.default_rng(seed)
    resampled = np.full((RESAMPLES, count), np.nan)  # a class that a resample lacks says nothing there
    for i in range(RESAMPLES):
        drawn = np.bincount(cells[rng.integers(len(cells), size=len(cells))], minlength=count * count)
        matrix = drawn.reshape(count, count)
        there = (matrix.sum(axis=0) + matrix.sum(axis=1)) > 0
        resampled[i, there] = _f1(matrix)[there]
    intervals = np.zeros((2, count))
    intervals[:, present] = np.nanpercentile(resampled[:, present], [2.5, 97.5], axis=0)
    macro = np.percentile(np.nanmean(resampled[:, present], axis=1), [2.5, 97.5])
    f1, hits = _f1(confusion), np.diag(confusion)
    precision, recall = (hits / np.maximum(confusion.sum(axis=axis), 1) for axis in (0, 1))
    accuracy = float(hits.sum() / len(truth))
    return Judgement(
        accuracy,
        wilson(accuracy, len(truth)),
        float(f1[present].mean()),
        (float(macro[0]), float(macro[1])),
        [
            ClassScores(
                int(confusion[k].sum()),
                float(precision[k]),
                float(recall[k]),
                float(f1[k]),
                (float(intervals[0, k]), float(intervals[1, k])),
            )
            for k in range(count)
        ],
        confusion,
    )


def wilson(share: float, count: int) -> Interval:
    """Return Wilson's 95% interval of a share of ``count`` trials."""
    middle = share + Z**2 / (2 * count)
    half = Z * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    scale = 1 + Z**2 / count
    return max(0.0, float((middle - half) / scale)), min(1.0, float((middle + half) / scale))


def calibration_error(probabilities_nK: np.ndarray, truth: np.ndarray) -> float:
    """Return the expected calibration error of the decisions.

    Decisions are put into ``BINS`` bins of equal width by their probability; the error is the mean distance
    between probability and accuracy of a bin, weighted by its size.

    Paper: Guo et al. 2017, equation 3.
    """
    confidence = probabilities_nK.max(axis=1)
    right = probabilities_nK.argmax(axis=1) == truth
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(truth))


def _f1(confusion: np.ndarray) -> np.ndarray:
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.asarray(2 * np.diag(confusion) / np.maximum(total, 1))
