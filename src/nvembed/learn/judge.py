"""The quality of a classifier: accuracy, F1, calibration, with 95% intervals.  n examples, K classes."""

from dataclasses import dataclass

import numpy as np

from nvembed.errors import needs_extra

BINS = 15
RESAMPLES = 1000

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
    """Score decisions against the truth.

    The interval of the accuracy is Wilson's. Those of F1 are percentiles of ``RESAMPLES`` bootstrap resamples
    of the examples, in which a class without example and decision has no F1. The macro average is over the
    classes that occur in ``truth`` or ``guess``.

    Args:
        truth: int (n,), n at least 1.
        guess: int (n,).
        count: K.
        seed: of the resampling.
    """
    with needs_extra("learn", "nvembed classify"):
        from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    labels = np.arange(count)
    confusion = np.asarray(confusion_matrix(truth, guess, labels=labels))
    precision, recall, f1, _ = precision_recall_fscore_support(truth, guess, labels=labels, zero_division=0)
    present = (confusion.sum(axis=0) + confusion.sum(axis=1)) > 0
    resampled = _resampled_f1(truth, guess, count, seed)
    intervals = np.zeros((2, count))
    intervals[:, present] = np.nanpercentile(resampled[:, present], [2.5, 97.5], axis=0)
    macro = np.percentile(np.nanmean(resampled[:, present], axis=1), [2.5, 97.5])
    right = int(np.trace(confusion))
    per_class = [
        ClassScores(examples, *scores)
        for examples, *scores in zip(
            confusion.sum(axis=1).tolist(),
            precision.tolist(),
            recall.tolist(),
            f1.tolist(),
            map(tuple, intervals.T.tolist()),
            strict=True,
        )
    ]
    return Judgement(
        right / len(truth), wilson(right, len(truth)), float(f1[present].mean()),
        (float(macro[0]), float(macro[1])), per_class, confusion,
    )  # fmt: skip


def _resampled_f1(truth: np.ndarray, guess: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the F1 of each class in bootstrap resamples, NaN where a resample lacks the class."""
    cells = truth.astype(np.int64) * count + guess
    rng = np.random.default_rng(seed)
    resampled = np.full((RESAMPLES, count), np.nan)
    for row in resampled:
        rows = rng.integers(len(cells), size=len(cells))
        matrix = np.bincount(cells[rows], minlength=count * count).reshape(count, count)
        total = matrix.sum(axis=0) + matrix.sum(axis=1)
        row[total > 0] = 2 * np.diag(matrix)[total > 0] / total[total > 0]
    return resampled


def wilson(hits: int, count: int) -> Interval:
    """Return Wilson's 95% interval of the share of ``hits`` in ``count`` trials."""
    from scipy.stats import binomtest

    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


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
