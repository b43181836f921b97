"""The folder that ``nvembed classify fit`` writes: the classifier, a report and confusion matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import DataError, InputError
from nvembed.files import atomic_path, write_json
from nvembed.learn.classify import (
    CrossValidation,
    StoredClassifier,
    check_classes,
    fit,
    save_classifier,
    softmax,
)
from nvembed.learn.cluster_report import markdown
from nvembed.learn.judge import BINS, RESAMPLES, Interval, Judgement, calibration_error, judge
from nvembed.learn.picture import draw_confusion
from nvembed.learn.source import EmbeddedSource, sample

MOST_CONFUSED = 10


@dataclass(frozen=True)
class Measured:
    """Decisions judged; expected calibration error and log loss before and after calibration."""

    judgement: Judgement
    error_before: float
    error_after: float
    log_loss_before: float
    log_loss_after: float


@dataclass(frozen=True)
class Examples:
    """Labelled vectors, each pair of text and label once.

    ``doubled``: copies that were left out; ``contradicting``: texts with several labels.
    """

    name: str
    source: EmbeddedSource
    vectors: np.ndarray
    labels: list[str]
    doubled: int
    contradicting: int


def examples(source: EmbeddedSource, labels: Sequence[str], name: str) -> Examples:
    """Join a source with its labels, in memory.

    Raises:
        DataError: the numbers of labels and texts differ.
    """
    if len(labels) != source.rows:
        raise DataError(f"{name}: {len(labels):,} labels for {source.rows:,} texts; expected one each")
    whole = sample(source, source.rows, seed=0)
    first: dict[tuple[str, str], int] = {}
    for row, (passage, label) in enumerate(zip(whole.passages, labels, strict=True)):
        first.setdefault((passage.text, label), row)
    rows = list(first.values())
    kept = [labels[row] for row in rows]
    contradicting = len(first) - len({text for text, _ in first})
    return Examples(name, source, whole.vectors[rows], kept, len(labels) - len(rows), contradicting)


def fit_to_folder(
    train: Examples, test: Examples | None, out: Path, *, model: str, c: float | None = None, seed: int = 0
) -> tuple[Measured, Measured | None]:
    """Fit a classifier and write it to the new folder ``out``; return its scores.

    Writes classifier.json, classifier.npz, report.md, report.json, confusion.png (cross-validated) and, with
    ``test``, confusion_test.png. The folder appears whole or not at all.

    Raises:
        InputError: no classifier can be fitted on the examples, or ``test`` has an unknown class or vectors
            of another model.
        OutputError: ``out`` exists or cannot be written.
        MissingExtraError: the extra ``learn`` is not installed.
    """
    check_classes(train.labels)
    truth = _test_truth(train, test) if test is not None else None
    classifier, validation = fit(train.vectors, train.labels, c=c, seed=seed)
    crossed = measure(validation.truth, validation.raw, validation.calibrated)
    sections = section(
        crossed, classifier.classes, f"Cross-validated ({validation.folds} folds)", "confusion.png"
    )
    data = {
        "cross_validated": {
            "folds": validation.folds,
            "c": validation.c,
            **as_data(crossed, classifier.classes),
        }
    }
    tested = None
    if test is not None and truth is not None:
        raw = softmax(test.vectors @ classifier.weights.T + classifier.bias)
        tested = measure(truth, raw, classifier.probabilities(test.vectors))
        title = f"On {markdown(test.name)} ({len(truth):,} examples)"
        sections += section(tested, classifier.classes, title, "confusion_test.png")
        data["test"] = as_data(tested, classifier.classes)
    with atomic_path(out) as folder:
        folder.mkdir()
        save_classifier(folder, StoredClassifier(classifier, model, train.source.settings))
        for measured, file, title in (
            (crossed, "confusion.png", "cross-validated"),
            (tested, "confusion_test.png", "test"),
        ):
            if measured is not None:
                heading = f"{train.name}, {title}: accuracy {measured.judgement.accuracy:.1%}"
                draw_confusion(folder / file, measured.judgement.confusion, classifier.classes, heading)
        head = _head(train, validation, classifier.inverse_temperature)
        (folder / "report.md").write_text("\n".join([*head, *sections]), encoding="utf-8")
        write_json(folder / "report.json", data)
    return crossed, tested


def _test_truth(train: Examples, test: Examples) -> np.ndarray:
    classes = sorted(set(train.labels))
    unknown = sorted(set(test.labels) - set(classes))
    if unknown:
        raise InputError(
            f"{test.name}: {train.name} has no example of {len(unknown)} labels (first: {unknown[0]!r}); "
            "expected the same classes"
        )
    if test.source.settings != train.source.settings:
        raise InputError(
            f"{test.name} and {train.name} were embedded with different models, prompts or limits"
        )
    return np.searchsorted(np.array(classes), np.array(test.labels))


def _head(train: Examples, validation: CrossValidation, beta: float) -> list[str]:
    settings = train.source.settings
    prompt = f"with the prompt {settings.prompt!r}" if settings.prompt else "without a prompt"
    counts = np.bincount(validation.truth)
    lines = [
        f"# A classifier of {markdown(train.name)}",
        "",
        f"{len(train.labels):,} examples of {len(counts)} classes ({counts.min()} to {counts.max()} each). "
        f"Vectors of {train.source.dim:,} numbers, model {settings.fingerprint}, {markdown(prompt)}.",
    ]
    if train.doubled:
        lines += ["", f"{train.doubled:,} copies of examples were left out."]
    if train.contradicting:
        lines += ["", f"{train.contradicting:,} texts have more than one label: check the labels."]
    return [*lines, "", *how(validation, beta), ""]


def measure(truth: np.ndarray, raw_nK: np.ndarray, calibrated_nK: np.ndarray) -> Measured:
    """Judge probabilities of n examples, before and after calibration."""
    from sklearn.metrics import log_loss

    return Measured(
        judge(truth, calibrated_nK.argmax(axis=1), calibrated_nK.shape[1]),
        calibration_error(raw_nK, truth),
        calibration_error(calibrated_nK, truth),
        *(float(log_loss(truth, each, labels=range(each.shape[1]))) for each in (raw_nK, calibrated_nK)),
    )


def section(measured: Measured, classes: Sequence[str], title: str, picture: str) -> list[str]:
    """Return the lines about one set of examples."""
    judgement = measured.judgement
    lines = [f"## {title}", "", "| score | value | 95% interval |", "|---|---:|---:|"]
    lines.append(f"| accuracy | {judgement.accuracy:.1%} | {_interval(judgement.accuracy_interval)} |")
    lines.append(f"| macro F1 | {judgement.macro_f1:.1%} | {_interval(judgement.macro_f1_interval)} |")
    lines += ["", "| probabilities | before calibration | after |", "|---|---:|---:|"]
    before, after = measured.error_before, measured.error_after
    lines.append(f"| expected calibration error ({BINS} bins) | {before:.4f} | {after:.4f} |")
    lines.append(f"| log loss | {measured.log_loss_before:.4f} | {measured.log_loss_after:.4f} |")
    lines += ["", f"![Confusion matrix]({picture})", ""]
    lines += [
        "| class | examples | precision | recall | F1 | 95% interval |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, scores in zip(classes, judgement.per_class, strict=True):
        lines.append(
            f"| {markdown(name)} | {scores.examples:,} | {scores.precision:.1%} | {scores.recall:.1%} | "
            f"{scores.f1:.1%} | {_interval(scores.f1_interval)} |"
        )
    wrong = judgement.confusion - np.diag(np.diag(judgement.confusion))
    pairs = np.argwhere(wrong > 0)
    if len(pairs):
        lines += ["", "Most often confused:", "", "| true | predicted | times |", "|---|---|---:|"]
        pairs = pairs[np.argsort(-wrong[tuple(pairs.T)], kind="stable")][:MOST_CONFUSED]
        lines += [
            f"| {markdown(classes[row])} | {markdown(classes[column])} | {wrong[row, column]:,} |"
            for row, column in pairs
        ]
    return [*lines, ""]


def how(validation: CrossValidation, beta: float) -> list[str]:
    """Return the lines about the method."""
    lines = [
        f"Logistic regression, C = {validation.c:g}, on unit vectors; probabilities calibrated by a "
        f"temperature of {1 / beta:.3f}, fitted on held-out scores. The accuracy's interval is Wilson's; "
        f"those of F1 come from {RESAMPLES:,} bootstrap resamples."
    ]
    if validation.log_losses:
        candidates = ", ".join(f"{c:g}: {loss:.4f}" for c, loss in validation.log_losses.items())
        lines += [
            "",
            f"C has the lowest cross-validated log loss ({candidates}). The scores below come from the same "
            "folds, so they are slightly too good.",
        ]
    return lines


def as_data(measured: Measured, classes: Sequence[str]) -> dict[str, Any]:
    """Return the scores for the JSON file."""
    judgement = measured.judgement
    return {
        "accuracy": judgement.accuracy,
        "accuracy_interval": judgement.accuracy_interval,
        "macro_f1": judgement.macro_f1,
        "macro_f1_interval": judgement.macro_f1_interval,
        "expected_calibration_error": [measured.error_before, measured.error_after],
        "log_loss": [measured.log_loss_before, measured.log_loss_after],
        "classes": {name: vars(scores) for name, scores in zip(classes, judgement.per_class, strict=True)},
        "confusion": judgement.confusion.tolist(),
    }


def _interval(pair: Interval) -> str:
    return f"{pair[0]:.1%} to {pair[1]:.1%}"
