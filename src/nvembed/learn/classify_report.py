"""The report of a fitted classifier, as Markdown and as data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nvembed.learn.classify import CrossValidation, log_loss
from nvembed.learn.cluster_report import markdown
from nvembed.learn.judge import BINS, RESAMPLES, Interval, Judgement, calibration_error, judge

MOST_CONFUSED = 10


@dataclass(frozen=True)
class Measured:
    """Decisions judged; expected calibration error and log loss before and after calibration."""

    judgement: Judgement
    error_before: float
    error_after: float
    log_loss_before: float
    log_loss_after: float


def measure(truth: np.ndarray, raw_nK: np.ndarray, calibrated_nK: np.ndarray) -> Measured:
    """Judge probabilities of n examples, before and after calibration."""
    return Measured(
        judge(truth, calibrated_nK.argmax(axis=1), calibrated_nK.shape[1]),
        calibration_error(raw_nK, truth),
        calibration_error(calibrated_nK, truth),
        log_loss(raw_nK, truth),
        log_loss(calibrated_nK, truth),
    )


def section(measured: Measured, classes: Sequence[str], title: str, picture: str) -> list[str]:
    """Return the lines about one set of examples."""
    found = measured.judgement
    lines = [f"## {title}", "", "| score | value | 95% interval |", "|---|---:|---:|"]
    lines.append(f"| accuracy | {found.accuracy:.1%} | {_interval(found.accuracy_interval)} |")
    lines.append(f"| macro F1 | {found.macro_f1:.1%} | {_interval(found.macro_f1_interval)} |")
    lines += ["", "| probabilities | before calibration | after |", "|---|---:|---:|"]
    before, after = measured.error_before, measured.error_after
    lines.append(f"| expected calibration error ({BINS} bins) | {before:.4f} | {after:.4f} |")
    lines.append(f"| log loss | {measured.log_loss_before:.4f} | {measured.log_loss_after:.4f} |")
    lines += ["", f"![Confusion matrix]({picture})", ""]
    lines += [
        "| class | examples | precision | recall | F1 | 95% interval |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, scores in zip(classes, found.per_class, strict=True):
        lines.append(
            f"| {markdown(name)} | {scores.examples:,} | {scores.precision:.1%} | {scores.recall:.1%} | "
            f"{scores.f1:.1%} | {_interval(scores.f1_interval)} |"
        )
    wrong = found.confusion - np.diag(np.diag(found.confusion))
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
    """Return the lines that say how the classifier was made."""
    lines = [
        f"Logistic regression, C = {validation.c:g}, on unit vectors; probabilities calibrated by a "
        f"temperature of {1 / beta:.3f}, fitted on held-out scores. The accuracy's interval is Wilson's; "
        f"those of F1 come from {RESAMPLES:,} bootstrap resamples."
    ]
    if validation.log_losses:
        tried = ", ".join(f"{c:g}: {loss:.4f}" for c, loss in validation.log_losses.items())
        lines += [
            "",
            f"C was chosen by the cross-validated log loss ({tried}), on the same folds as the scores below, "
            "which flatters them a little.",
        ]
    return lines


def as_data(measured: Measured, classes: Sequence[str]) -> dict[str, Any]:
    """Return the same for a JSON file."""
    found = measured.judgement
    return {
        "accuracy": found.accuracy,
        "accuracy_interval": found.accuracy_interval,
        "macro_f1": found.macro_f1,
        "macro_f1_interval": found.macro_f1_interval,
        "expected_calibration_error": [measured.error_before, measured.error_after],
        "log_loss": [measured.log_loss_before, measured.log_loss_after],
        "classes": {name: vars(scores) for name, scores in zip(classes, found.per_class, strict=True)},
        "confusion": found.confusion.tolist(),
    }


def _interval(pair: Interval) -> str:
    return f"{pair[0]:.1%} to {pair[1]:.1%}"
