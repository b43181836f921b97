"""Classifiers of vectors: logistic regression with calibrated probabilities, and its folder on disk.

A folder has ``classifier.json`` (classes, temperature, settings of the vectors, a checksum) and
``classifier.npz`` (``weights`` float32 (K, D), ``bias`` float32 (K,)). Neither contains code.

Shapes: n examples, D numbers, K classes.
"""

import hashlib
import warnings
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nvembed.errors import DataError, InputError, NumericsError, needs_extra
from nvembed.files import Damage, FolderReport, Schema, read_json, write_json
from nvembed.vectors.store import VectorSettings

STRENGTHS = (1.0, 10.0, 100.0)  # C is chosen among these: unit vectors need little regularisation
FOLDS = 5
MAX_ITERATIONS = 1000
DESCRIPTION, NUMBERS = "classifier.json", "classifier.npz"


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
                f"the scores of row {row} are not finite. Embed it again in float32 or bfloat16."
            )
        return softmax(scores, self.inverse_temperature)


@dataclass(frozen=True)
class CrossValidation:
    """Predictions for held-out examples.

    ``truth``: int64 (n,); ``raw`` and ``calibrated``: float64 (n, K) probabilities. The temperature of a fold
    is fitted on the other folds. ``log_losses``: C -> calibrated log loss, if C was chosen.
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
    ``CalibratedClassifierCV(method="temperature", ensemble=False)``. It changes no decision.

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
    with needs_extra("learn", "nvembed classify"):
        from sklearn.metrics import log_loss
        from sklearn.model_selection import StratifiedKFold
    count = min(FOLDS, int(np.bincount(truth).min()))
    folds = list(StratifiedKFold(count, shuffle=True, random_state=seed).split(truth, truth))
    log_losses: dict[float, float] = {}
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for strength in STRENGTHS if c is None else (c,):
        scores = _held_out(vectors_nD, truth, folds, strength)
        calibrated = np.empty_like(scores)
        for known, unseen in folds:
            beta = inverse_temperature(scores[known], truth[known])
            calibrated[unseen] = softmax(scores[unseen], beta)
        log_losses[strength] = float(log_loss(truth, calibrated))
        if best is None or log_losses[strength] < log_losses[best[0]]:
            best = strength, scores, calibrated
    assert best is not None
    strength, scores, calibrated = best
    weights, bias = _halves(*_fitted(vectors_nD, truth, strength))
    classifier = Classifier(
        classes.tolist(),
        weights.astype(np.float32),
        bias.astype(np.float32),
        inverse_temperature(scores, truth),
    )
    chosen = log_losses if c is None else {}
    return classifier, CrossValidation(count, strength, truth, softmax(scores), calibrated, chosen)


def check_classes(labels: Sequence[str]) -> None:
    """Refuse labels that no classifier can be fitted on.

    Raises:
        InputError: a single class, or a class with one example.
    """
    counts = Counter(labels)
    if len(counts) < 2:
        only = next(iter(counts), None)
        raise InputError(f"expected examples of at least 2 classes, got {len(counts)} ({only!r})")
    alone = sorted(label for label, count in counts.items() if count < 2)
    if alone:
        names = ", ".join(map(repr, alone[:5])) + (", ..." if len(alone) > 5 else "")
        raise InputError(
            f"{len(alone)} of {len(counts)} classes have one example ({names}); expected at least 2 of each, "
            f"better {FOLDS} or more. Add examples, or remove the class."
        )


def inverse_temperature(scores_nK: np.ndarray, truth: np.ndarray) -> float:
    """Return the factor of the scores with the lowest log loss, between e^-10 and e^10.

    If every decision is right, the log loss has no minimum, and every probability would be 1. The true class
    then has the target ``(n + 1) / (n + 2)``, and the others share the rest. (scikit-learn's temperature
    scaling does not do this.)

    Paper: Platt 1999, "Probabilistic Outputs for Support Vector Machines", section 2.2 (out-of-sample model).
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    scores = np.asarray(scores_nK, dtype=np.float64)
    own = np.take_along_axis(scores, truth[:, None], axis=1)[:, 0]
    if (own >= scores.max(axis=1)).all():
        rest = 1 / (len(truth) + 2)
        others = (scores.sum(axis=1) - own) / (scores.shape[1] - 1)
        own = (1 - rest) * own + rest * others

    def loss(logarithm: float) -> float:
        factor = np.exp(logarithm)
        return float(np.mean(logsumexp(factor * scores, axis=1) - factor * own))

    best = minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10})
    return float(np.exp(best.x))


def softmax(scores_nK: np.ndarray, factor: float = 1.0) -> np.ndarray:
    """Return ``exp(factor * s) / sum(exp(factor * s))`` of each row, in float64."""
    from scipy import special

    return np.asarray(special.softmax(factor * np.asarray(scores_nK, dtype=np.float64), axis=1))


def _held_out(
    vectors_nD: np.ndarray, truth: np.ndarray, folds: Sequence[tuple[np.ndarray, np.ndarray]], c: float
) -> np.ndarray:
    """Return the scores of each example by the regression on the other folds: (n, K)."""
    scores = np.empty((len(truth), int(truth.max()) + 1))
    for known, unseen in folds:
        weights, bias = _halves(*_fitted(vectors_nD[known], truth[known], c))
        scores[unseen] = vectors_nD[unseen] @ weights.T + bias
    return scores


def _fitted(vectors_nD: np.ndarray, truth: np.ndarray, c: float) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():  # stopping after MAX_ITERATIONS is a regularisation too
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors_nD, truth)
    return np.asarray(model.coef_), np.asarray(model.intercept_)


def _halves(weights: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights for each of two classes; scikit-learn keeps only their difference."""
    if len(weights) > 1:
        return weights, bias
    return np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2


@dataclass(frozen=True)
class StoredClassifier:
    """A classifier, the name of its model, and the settings of the vectors that it was fitted on."""

    classifier: Classifier
    model: str
    settings: VectorSettings


class _Description(Schema):
    """``classifier.json``."""

    format: Literal[1]
    model: str
    vectors: VectorSettings
    dim: int
    classes: list[str]
    inverse_temperature: float
    sha256: str


def save_classifier(folder: Path, stored: StoredClassifier) -> None:
    """Write the two files into an existing folder."""
    classifier = stored.classifier
    np.savez(folder / NUMBERS, weights=classifier.weights, bias=classifier.bias)
    content = {
        "format": 1,
        "model": stored.model,
        "vectors": stored.settings.record,
        "dim": classifier.weights.shape[1],
        "classes": classifier.classes,
        "inverse_temperature": classifier.inverse_temperature,
        "sha256": _sha256(folder / NUMBERS),
    }
    write_json(folder / DESCRIPTION, content)


def load_classifier(folder: str | Path) -> StoredClassifier:
    """Read the files of ``save_classifier``.

    Raises:
        DataError: a file is missing, damaged, or of another format.
    """
    folder = Path(folder)
    if not (folder / DESCRIPTION).exists():
        raise DataError(
            f"{folder} is not a fitted classifier ({DESCRIPTION} is missing). Make one: nvembed classify fit"
        )
    content = read_json(folder / DESCRIPTION, _Description, cure="fit the classifier again")
    path = folder / NUMBERS
    if not path.is_file() or _sha256(path) != content.sha256:
        raise DataError(f"{path} is missing or not the file that was written: fit the classifier again")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            weights, bias = arrays["weights"], arrays["bias"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}): fit the classifier again") from error
    classes = content.classes
    finite = bool(np.isfinite(weights).all() and np.isfinite(bias).all())
    if weights.shape != (len(classes), content.dim) or bias.shape != (len(classes),) or not finite:
        raise DataError(
            f"{folder}: {len(classes)} classes with weights {weights.shape} and bias {bias.shape}, "
            f"{'' if finite else 'not '}all finite; expected ({len(classes)}, {content.dim}): fit it again"
        )
    classifier = Classifier(classes, weights, bias, content.inverse_temperature)
    return StoredClassifier(classifier, content.model, content.vectors)


def check_classifier(folder: Path) -> FolderReport:
    """Read a classifier and compare its numbers with their digest."""
    try:
        classifier = load_classifier(folder).classifier
    except (DataError, OSError) as error:
        cure = f"nvembed classify fit EXAMPLES {folder} --model MODEL (in place of this folder)"
        damaged = NUMBERS if str(folder / NUMBERS) in str(error) else DESCRIPTION
        return FolderReport(folder, "classifier", "damaged", [Damage(folder / damaged, str(error), cure)])
    return FolderReport(folder, "classifier", f"{len(classifier.classes):,} classes", [])


def check_fits(stored: StoredClassifier, settings: VectorSettings, *, folder: str | Path) -> None:
    """Refuse vectors of another model or prompt than the classifier was fitted on.

    Raises:
        InputError: the model or the prompt differs.
    """
    known = stored.settings
    if known.fingerprint != settings.fingerprint:
        raise InputError(
            f"{folder} was fitted on vectors of the model {known.fingerprint} ({stored.model}); "
            f"got the model {settings.fingerprint}: use the same one, or fit again"
        )
    if known.prompt != settings.prompt:
        raise InputError(
            f"{folder} was fitted with the prompt {known.prompt!r}; "
            f"got the prompt {settings.prompt!r}: use the same one, or fit again"
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
