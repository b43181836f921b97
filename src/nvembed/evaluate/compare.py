"""Paired tests of two models, with intervals, and a comparison with published scores.

Intervals are percentiles of a paired bootstrap over the items (queries, pairs, texts). ``p`` comes from a
paired permutation test, which swaps the two models' values of an item. Both are scipy's. Clusters cannot be
swapped, so the null distribution of a clustering is that of the bootstrap, moved to 0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nvembed.errors import DataError
from nvembed.evaluate import scores
from nvembed.evaluate.outcome import Items
from nvembed.evaluate.record import Result
from nvembed.evaluate.settings import category_of, published_scores
from nvembed.evaluate.tasks import CATEGORY

DRAWS = 1000  # bootstrap samples per task, and permutations of a statistic that is not a mean
FLIPS = 9999  # permutations of a mean, which are sign flips of the differences
AT_ONCE = 4_000_000  # values that scipy draws at a time


Bounds = tuple[float | None, float | None, float | None]  # low, high, p


@dataclass(frozen=True)
class Difference:
    """``b - a`` of one task, or of a category's mean; scores 0 to 100.

    ``low`` and ``high`` bound the difference with 95% confidence; ``p`` is two-sided. They are None if the
    results have no items to resample, or a single one.
    """

    name: str
    category: str
    a: float
    b: float
    low: float | None = None
    high: float | None = None
    p: float | None = None

    @property
    def difference(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Check:
    """A score beside the published one of the same task."""

    task: str
    mteb_task: str
    category: str
    score: float
    published: float
    test_set: str  # identical, near, declared or unverified: see ``tasks.Task``
    within: bool  # whether they differ by no more than the tolerance

    @property
    def difference(self) -> float:
        return self.score - self.published


def compare(
    a: Mapping[str, Result], b: Mapping[str, Result], *, draws: int = DRAWS, seed: int = 0
) -> list[Difference]:
    """Compare two models on their common tasks: a row per task, per category, and for all.

    A mean over tasks treats them as independent: its samples are means of the samples of the tasks.

    Raises:
        DataError: no task in common, or a task was evaluated on different data.
    """
    common = [task for task in a if task in b]
    if not common:
        raise DataError(f"no task in common: {sorted(a)[:5]} and {sorted(b)[:5]}")
    rng = np.random.default_rng(seed)
    rows: list[Difference] = []
    tests: list[PairedTest | None] = []
    for task in common:
        _same_data(a[task], b[task])
        test = _test_task(a[task], b[task], draws, rng)
        bounds: Bounds = (test.low, test.high, test.p) if test else (None, None, None)
        rows.append(Difference(task, category(a[task]), a[task].main_score, b[task].main_score, *bounds))
        tests.append(test)
    of_task = [row.category for row in rows]
    for name in [*dict.fromkeys(of_task), "all"]:
        members = [i for i, own in enumerate(of_task) if name in (own, "all")]
        mean_a, mean_b = (float(np.mean([getattr(rows[i], side) for i in members])) for side in "ab")
        bounds = _mean_test([tests[i] for i in members], draws, rng)
        rows.append(Difference(f"mean of {len(members)}", name, mean_a, mean_b, *bounds))
    return rows


@dataclass(frozen=True)
class PairedTest:
    """The difference of one task in points, its bootstrap samples, and its null distribution.

    A single item has no interval; both signs of its difference are equally likely.
    """

    observed: float
    sample: np.ndarray
    null: np.ndarray
    low: float | None
    high: float | None
    p: float


def _test_task(a: Result, b: Result, draws: int, rng: np.random.Generator) -> PairedTest | None:
    """Test two results; None if they have no items to resample."""
    if a.items is None or b.items is None or a.items.ids != b.items.ids or not a.items.ids:
        return None
    return paired_test(a.items, b.items, draws=draws, rng=rng)


def paired_test(
    a: Items, b: Items, *, rng: np.random.Generator, draws: int = DRAWS, flips: int = FLIPS
) -> PairedTest:
    """Test ``b - a`` of the statistic of the same items."""
    stats = scores.scipy_stats()
    rows = np.arange(len(a.ids))
    observed = _difference(a, b, rows)
    if len(rows) == 1:
        return PairedTest(observed, np.array([observed]), np.array([-observed, observed]), None, None, 1.0)
    mean = a.statistic == "mean"
    at_once = max(1, AT_ONCE // len(rows)) if mean else 1
    points = 100 * (b.value - a.value)
    resampled = stats.bootstrap(
        (rows,),
        (lambda sample, axis: points[sample].mean(axis=axis)) if mean else partial(_difference, a, b),
        vectorized=mean, n_resamples=draws, batch=at_once, method="percentile", rng=rng,
    )  # fmt: skip
    sample = resampled.bootstrap_distribution
    if a.statistic == "v_measure":
        null = sample - sample.mean()
        p = _p_value(null, observed)
    else:
        permuted = stats.permutation_test(
            (points,) if mean else (a.value, b.value),
            np.mean if mean else partial(_difference_of_values, a),
            permutation_type="samples", vectorized=mean, n_resamples=flips if mean else draws, batch=at_once,
            rng=rng,
        )  # fmt: skip
        p, null = float(permuted.pvalue), permuted.null_distribution
    low, high = map(float, resampled.confidence_interval)
    return PairedTest(observed, sample, null, low, high, p)


def _difference(a: Items, b: Items, rows: np.ndarray) -> float:
    gold = None if a.gold is None else a.gold[rows]
    return 100 * (statistic(b, b.value[rows], gold) - statistic(a, a.value[rows], gold))


def _difference_of_values(items: Items, a: np.ndarray, b: np.ndarray) -> float:
    return 100 * (statistic(items, b, items.gold) - statistic(items, a, items.gold))


def _mean_test(tests: Sequence[PairedTest | None], draws: int, rng: np.random.Generator) -> Bounds:
    """Return the interval and p-value of the mean difference of some tasks; None where a task has none."""
    known = [test for test in tests if test is not None]
    if len(known) < len(tests):
        return None, None, None
    if len(known) == 1:
        return known[0].low, known[0].high, known[0].p
    null = np.mean([rng.choice(test.null, FLIPS) for test in known], axis=0)
    p = _p_value(null, float(np.mean([test.observed for test in known])))
    if any(test.low is None for test in known):
        return None, None, p
    low, high = np.quantile(
        np.mean([rng.choice(test.sample, draws) for test in known], axis=0), [0.025, 0.975]
    )
    return float(low), float(high), p


def _p_value(null: np.ndarray, observed: float) -> float:
    """Two-sided: how often the null distribution is at least as far from 0."""
    reached = np.count_nonzero(np.abs(null) >= abs(observed) * (1 - 1e-12) - 1e-12)
    return float((reached + 1) / (len(null) + 1))


def against_published(results: Mapping[str, Result], model: str, *, tolerance: float) -> list[Check]:
    """Compare scores with the published ones of ``model``, for the tasks that have one.

    Raises:
        InputError: no published scores of that model are known.
        DataError: no task has a published score.
    """
    known = {task: value for tasks in published_scores(model).values() for task, value in tasks.items()}
    checks = []
    for task, result in results.items():
        conditions = result.record.get("conditions", {})
        mteb_task = conditions.get("mteb_task") or task
        test_set = str(conditions.get("test_set", "unverified"))
        if mteb_task in known and test_set != "other":
            value, target = result.main_score, known[mteb_task]
            checks.append(
                Check(
                    task=task,
                    mteb_task=mteb_task,
                    category=category_of(mteb_task) or "",
                    score=value,
                    published=target,
                    test_set=test_set,
                    within=abs(value - target) <= tolerance,
                )
            )
    if not checks:
        raise DataError(f"none of {sorted(results)[:8]} has a published score of {model}")
    return checks


def category(result: Result) -> str:
    """Return the MTEB category of a result."""
    kind = str(result.record.get("conditions", {}).get("kind", ""))
    return next((name for key, name in CATEGORY.items() if kind in (key, name)), kind or "other")


def statistic(items: Items, value: np.ndarray, gold: np.ndarray | None) -> float:
    """Return the main score, 0 to 1, of some rows of ``items``."""
    if items.statistic == "mean":
        return float(value.mean())
    assert gold is not None
    return _STATISTICS[items.statistic](gold, value)


_STATISTICS = {
    "spearman": scores.spearman,
    "average_precision": scores.average_precision,
    "v_measure": scores.v_measure,
}


def _same_data(a: Result, b: Result) -> None:
    revisions = [side.record.get("conditions", {}).get("data_revision") for side in (a, b)]
    if revisions[0] != revisions[1]:
        raise DataError(
            f"{a.task}: the two models were evaluated on different data ({revisions[0]} and {revisions[1]}): "
            "evaluate both again on the same files"
        )


def compare_markdown(rows: Sequence[Difference], a: str, b: str) -> str:
    """Return the comparison as a Markdown table."""
    cells = []
    for row in rows:
        interval = "" if row.low is None else f"{row.low:+.2f} to {row.high:+.2f}"
        p = "" if row.p is None else f"{row.p:.4f}"
        scores = f"{row.a:.2f}", f"{row.b:.2f}", f"{row.difference:+.2f}"
        cells.append((row.name, row.category, *scores, interval, p))
    return markdown_table(("task", "category"), (a, b, "difference", "95% interval", "p"), cells)


def published_markdown(checks: Sequence[Check], model: str, tolerance: float) -> str:
    """Return the scores beside the published ones, as a Markdown table."""
    cells = [
        (
            *(check.task, check.mteb_task, check.test_set),
            *(f"{check.score:.2f}", f"{check.published:.2f}", f"{check.difference:+.2f}"),
            "yes" if check.within else "no",
        )
        for check in checks
    ]
    numbers = ("score", f"published ({model})", "difference", f"within {tolerance:g}")
    return markdown_table(("task", "MTEB task", "test set"), numbers, cells)


def markdown_table(texts: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table with columns of texts, then columns of numbers, which are aligned right."""
    head = [" | ".join((*texts, *numbers)), "|".join(("---",) * len(texts) + ("---:",) * len(numbers))]
    lines = [f"| {head[0]} |", f"|{head[1]}|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
