"""Classes of vectors, learnt from examples: logistic regression with calibrated probabilities.

Shapes: n examples, D numbers, K classes.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvembed.errors import InputError, MissingExtraError, NumericsError

STRENGTHS = (1.0, 10.0, 100.0)  # C is chosen among these: unit vectors want little regularisation
FOLDS = 5
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Classifier:
    """``softmax(inverse_temperature * (x W^T + b))`` of a unit vector x.

    ``weights``: float32 (K, D); ``bias``: float32 (K,).
    """

    classes: list[str]
    weights: np.ndarray
    bias: np.ndarray
    inverse_temperature: float

    def probabilities(self, vectors_nD: np.ndarray) -> np.ndarray:
        """Return the calibrated probability of each class: float64 (n, K).

        Raises:
            InputError: the vectors have another length.
            NumericsError: a vector is not finite.
        """
        if vectors_nD.ndim != 2 or vectors_nD.shape[1] != self.weights.shape[1]:
            raise InputError(f"expected vectors (n, {self.weights.shape[1]:,}), got {vectors_nD.shape}")
        scores = vectors_nD @ self.weights.T + self.bias
        if not np.isfinite(scores).all():
            row = int(np.argmin(np.isfinite(scores).all(axis=1)))
            raise NumericsError(
                f"the scores of row {row} are not finite: embed it again in float32 or bfloat16"
            )
        return softmax(scores, self.inverse_temperature)


@dataclass(frozen=True)
class CrossValidation:
    """What classifiers said of examples that they had not seen.

    ``truth``: int64 (n,); ``raw`` and ``calibrated``: float64 (n, K) probabilities. The temperature of a fold
    comes from the other folds alone. ``log_losses``: C -> calibrated log loss, where C was chosen.
    """

    folds: int
    c: float
    truth: np.ndarray
    raw: np.ndarray
    calibrated: np.ndarray
    log_losses: dict[float, float]


def fit(
    vectors_nD: np.ndarray, labels: Sequence[str], *, c: float | None = None, seed: int = 0
) -> tuple[Classifier, CrossValidation]:
    """Fit a classifier on unit rows, and judge it by stratified cross-validation.

    The temperature that calibrates it is fitted on the scores of the held-out folds, as in scikit-learn's
    ``CalibratedClassifierCV(method="temperature", ensemble=False)``; it changes no decision.

    Args:
        vectors_nD: float32 (n, D), unit rows.
        labels: one per row, at least two different ones, each at least twice.
        c: inverse strength of the L2 penalty; None takes that of ``STRENGTHS`` with the lowest
            cross-validated log loss.
        seed: of the folds.

    Raises:
        InputError: a single class, a class with one example, or a ``c`` that is not positive.
        MissingExtraError: scikit-learn is not installed.

    Paper: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2 (temperature).
    """
    if c is not None and not (np.isfinite(c) and c > 0):
        raise InputError(f"C is {c}; expected a number above 0")
    classes, truth = np.unique(np.asarray(labels), return_inverse=True)
    check_classes(labels)
    folds = min(FOLDS, int(np.bincount(truth).min()))
    log_losses: dict[float, float] = {}
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    fold_of = _folds(truth, folds, seed)
    for strength in STRENGTHS if c is None else (c,):
        scores = _held_out(vectors_nD, truth, fold_of, strength)
        calibrated = np.empty_like(scores)
        for fold in range(folds):
            inside, outside = fold_of == fold, fold_of != fold
            beta = inverse_temperature(scores[outside], truth[outside])
            calibrated[inside] = softmax(scores[inside], beta)
        log_losses[strength] = log_loss(calibrated, truth)
        if best is None or log_losses[strength] < log_losses[best[0]]:
            best = strength, scores, calibrated
    assert best is not None
    strength, scores, calibrated = best
    weights, bias = _regression(vectors_nD, truth, strength)
    classifier = Classifier(
        classes.tolist(),
        weights.astype(np.float32),
        bias.astype(np.float32),
        inverse_temperature(scores, truth),
    )
    chosen = log_losses if c is None else {}
    return classifier, CrossValidation(folds, strength, truth, softmax(scores), calibrated, chosen)


def check_classes(labels: Sequence[str]) -> None:
    """Refuse labels that nothing can be learnt from.

    Raises:
        InputError: a single class, or a class with one example.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        only = next(iter(counts), None)
        raise InputError(f"expected examples of at least 2 classes, got {len(counts)} ({only!r})")
    alone = sorted(label for label, count in counts.items() if count < 2)
    if alone:
        named = ", ".join(map(repr, alone[:5])) + (", ..." if len(alone) > 5 else "")
        raise InputError(
            f"{len(alone)} of {len(counts)} classes have one example ({named}); expected at least 2 of each, "
            f"better {FOLDS} or more: add examples, or leave the class out"
        )


def inverse_temperature(scores_nK: np.ndarray, truth: np.ndarray) -> float:
    """Return the factor of the scores with the lowest log loss, between e^-10 and e^10.

    The log loss is convex in the factor: its slope, the mean of (expected score - score of the truth), is
    brought to zero by bisection. Where every decision is right it has no minimum, and each truth counts as
    ``(n + 1) / (n + 2)``, the others as the rest: else anything at all would be classified with certainty.

    Paper: Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2 (out-of-sample model).
    """
    own = np.take_along_axis(scores_nK, truth[:, None], axis=1)[:, 0]
    if (own >= scores_nK.max(axis=1)).all():
        rest = 1 / (len(truth) + 2)
        others = (scores_nK.sum(axis=1) - own) / (scores_nK.shape[1] - 1)
        own = (1 - rest) * own + rest * others
    low, high = -10.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        expected = (softmax(scores_nK, float(np.exp(middle))) * scores_nK).sum(axis=1)
        low, high = (low, middle) if np.mean(expected - own) > 0 else (middle, high)
    return float(np.exp((low + high) / 2))


def softmax(scores_nK: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Return ``exp(factor * s) / sum(exp(factor * s))`` of each row, in float64."""
    scores = factor * np.asarray(scores_nK, dtype=np.float64)
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def log_loss(probabilities_nK: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean of ``-log p`` of the true class; p is at least 1e-15."""
    own = np.take_along_axis(probabilities_nK, truth[:, None], axis=1)
    return float(-np.log(np.maximum(own, 1e-15)).mean())


def _folds(truth: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each example, stratified by class."""
    try:
        from sklearn.model_selection import StratifiedKFold
    except ImportError as error:
        raise MissingExtraError("a classifier needs scikit-learn: pip install 'nvembed[learn]'") from error
    fold_of = np.empty(len(truth), dtype=np.int64)
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(truth, truth)
    for fold, (_, held_out) in enumerate(splits):
        fold_of[held_out] = fold
    return fold_of


def _held_out(vectors_nD: np.ndarray, truth: np.ndarray, fold_of: np.ndarray, c: float) -> np.ndarray:
    scores = np.empty((len(truth), int(truth.max()) + 1))
    for fold in range(int(fold_of.max()) + 1):
        inside, outside = fold_of == fold, fold_of != fold
        weights, bias = _regression(vectors_nD[outside], truth[outside], c)
        scores[inside] = vectors_nD[inside] @ weights.T + bias
    return scores


def _regression(vectors_nD: np.ndarray, truth: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():  # stopping after MAX_ITERATIONS is a regularisation too
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors_nD, truth)
    weights, bias = model.coef_, model.intercept_
    if len(weights) == 1:  # of two classes scikit-learn keeps the difference
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    return np.asarray(weights), np.asarray(bias)
