"""The folder that ``nvembed classify fit`` writes: the classifier, a report and confusion matrices."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvembed.errors import DataError, InputError
from nvembed.files import atomic_path
from nvembed.learn.classifier_file import Stored, save_classifier
from nvembed.learn.classify import CrossValidation, check_classes, fit, softmax
from nvembed.learn.classify_report import Measured, as_data, how, measure, section
from nvembed.learn.cluster_report import markdown
from nvembed.learn.picture import draw_confusion
from nvembed.learn.source import Source, sample


@dataclass(frozen=True)
class Examples:
    """Labelled vectors, each text with the same label once. ``doubled``: examples left out as copies;
    ``contradicting``: texts that stand under several labels."""

    name: str
    source: Source
    vectors: np.ndarray
    labels: list[str]
    doubled: int
    contradicting: int


def examples(source: Source, labels: Sequence[str], name: str) -> Examples:
    """Join a source with its labels, in memory.

    Raises:
        DataError: there is another number of labels than texts.
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
        InputError: the examples cannot be learnt from; ``test`` has an unknown class or other vectors.
        OutputError: ``out`` exists or cannot be written.
        MissingExtraError: the extra ``corpus`` is not installed.
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
        save_classifier(folder, Stored(classifier, model, train.source.settings))
        for measured, file, title in (
            (crossed, "confusion.png", "cross-validated"),
            (tested, "confusion_test.png", "test"),
        ):
            if measured is not None:
                heading = f"{train.name}, {title}: accuracy {measured.judgement.accuracy:.1%}"
                draw_confusion(folder / file, measured.judgement.confusion, classifier.classes, heading)
        head = _head(train, validation, classifier.inverse_temperature)
        (folder / "report.md").write_text("\n".join([*head, *sections]), encoding="utf-8")
        text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
        (folder / "report.json").write_text(text, encoding="utf-8")
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
    prompt = f"behind the prompt {settings.prompt!r}" if settings.prompt else "without a prompt"
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
        lines += ["", f"{train.contradicting:,} texts stand under a second label too: look at the labels."]
    return [*lines, "", *how(validation, beta), ""]
