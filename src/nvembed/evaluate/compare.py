"""Is B better than A, or is it the luck of the queries? Paired tests, intervals, and the published scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nvembed.errors import DataError
from nvembed.evaluate import scores
from nvembed.evaluate.outcome import Items
from nvembed.evaluate.record import Result
from nvembed.evaluate.settings import category_of, published_scores
from nvembed.evaluate.tasks import CATEGORY

DRAWS = 1000  # bootstrap samples per task
FLIPS = 10_000  # sign flips of the randomisation test


@dataclass(frozen=True)
class Difference:
    """``b - a`` of one task, or of a category's mean; scores 0 to 100.

    ``low`` and ``high`` bound the difference with 95% confidence; ``p`` is two-sided. They are None where the
    results hold nothing to resample.
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
    identical: bool  # whether the test set is the published one, text by text
    within: bool  # whether they differ by no more than the tolerance

    @property
    def difference(self) -> float:
        return self.score - self.published


def compare(
    a: Mapping[str, Result], b: Mapping[str, Result], *, draws: int = DRAWS, seed: int = 0
) -> list[Difference]:
    """Compare two models on the tasks both have: one row per task, then one per category and one for all.

    Per task: a paired bootstrap over queries (or pairs, or texts) gives the interval. ``p`` is that of a
    randomisation test where the score is a mean over queries, else of the bootstrap. A category's interval
    treats its tasks as independent.

    Raises:
        DataError: no task in common, or a task was evaluated on different data.
    """
    common = [task for task in a if task in b]
    if not common:
        raise DataError(f"no task in common: {sorted(a)[:5]} and {sorted(b)[:5]}")
    rng = np.random.default_rng(seed)
    rows: list[Difference] = []
    drawn: list[np.ndarray | None] = []
    for task in common:
        _same_data(a[task], b[task])
        row, sample = _compare_task(a[task], b[task], draws, rng)
        rows.append(row)
        drawn.append(sample)
    for name in [*dict.fromkeys(row.category for row in rows), "all"]:
        members = [i for i, row in enumerate(rows) if name in (row.category, "all")]
        samples = [sample for i in members if (sample := drawn[i]) is not None]
        mean_a, mean_b = (float(np.mean([getattr(rows[i], side) for i in members])) for side in "ab")
        whole = len(samples) == len(members)
        bounds = _interval(np.mean(samples, axis=0)) if whole else (None, None, None)
        rows.append(Difference(f"mean of {len(members)}", name, mean_a, mean_b, *bounds))
    return rows


def against_published(results: Mapping[str, Result], model: str, *, tolerance: float) -> list[Check]:
    """Put scores beside the published ones of ``model``, where the task, or the data in the folder, has one.

    Raises:
        InputError: no published scores of that model are known.
        DataError: none of the tasks has one.
    """
    known = {task: value for tasks in published_scores(model).values() for task, value in tasks.items()}
    checks = []
    for task, result in results.items():
        conditions = result.record.get("conditions", {})
        mteb_task = conditions.get("mteb_task") or task
        if mteb_task in known:
            value, target = result.main_score, known[mteb_task]
            checks.append(
                Check(
                    task=task,
                    mteb_task=mteb_task,
                    category=category_of(mteb_task) or "",
                    score=value,
                    published=target,
                    identical=bool(conditions.get("identical_to_mteb", True)),
                    within=abs(value - target) <= tolerance,
                )
            )
    if not checks:
        raise DataError(f"none of {sorted(results)[:8]} has a published score of {model}")
    return checks


def category(result: Result) -> str:
    """The MTEB category of a result."""
    kind = str(result.record.get("conditions", {}).get("kind", ""))
    return next((name for key, name in CATEGORY.items() if kind in (key, name)), kind or "other")


def statistic(items: Items, value: np.ndarray, gold: np.ndarray | None) -> float:
    """The main score, 0 to 1, of some rows of ``items``."""
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


def _compare_task(
    a: Result, b: Result, draws: int, rng: np.random.Generator
) -> tuple[Difference, np.ndarray | None]:
    row = Difference(a.task, category(a), a.main_score, b.main_score)
    if a.items is None or b.items is None or a.items.ids != b.items.ids:
        return row, None
    sample = _bootstrap(a.items, b.items, draws, rng)
    low, high, p = _interval(sample)
    if a.items.statistic == "mean":
        p = randomisation(b.items.value - a.items.value, rng)
    return Difference(row.name, row.category, row.a, row.b, low, high, p), sample


def _bootstrap(a: Items, b: Items, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Differences (``b - a``, in points) of the statistic on samples of the rows, drawn with replacement."""
    n = len(a.ids)
    sample = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(0, n, n)
        gold = None if a.gold is None else a.gold[rows]
        sample[i] = 100 * (statistic(b, b.value[rows], gold) - statistic(a, a.value[rows], gold))
    return sample


def _interval(sample: np.ndarray) -> tuple[float, float, float]:
    """95% bounds, and twice the share of the sample on the wrong side of 0."""
    low, high = np.quantile(sample, [0.025, 0.975])
    beyond = min(np.count_nonzero(sample <= 0), np.count_nonzero(sample >= 0))
    return float(low), float(high), min(1.0, 2 * (beyond + 1) / (len(sample) + 1))


def randomisation(difference: np.ndarray, rng: np.random.Generator, *, flips: int = FLIPS) -> float:
    """Two-sided p: how often random signs make the mean difference at least as large as it is."""
    observed = abs(float(difference.sum()))
    nonzero = difference[difference != 0]
    if not nonzero.size:
        return 1.0
    reached = 0
    at_once = max(1, 4_000_000 // nonzero.size)
    for start in range(0, flips, at_once):
        signs = rng.integers(0, 2, (min(at_once, flips - start), nonzero.size)) * 2.0 - 1.0
        reached += int(np.count_nonzero(np.abs(signs @ nonzero) >= observed * (1 - 1e-12)))
    return (reached + 1) / (flips + 1)


def compare_markdown(rows: Sequence[Difference], a: str, b: str) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"| task | category | {a} | {b} | difference | 95% interval | p |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        interval = "" if row.low is None else f"{row.low:+.2f} to {row.high:+.2f}"
        p = "" if row.p is None else f"{row.p:.4f}"
        cells = f"{row.a:.2f} | {row.b:.2f} | {row.difference:+.2f} | {interval} | {p}"
        lines.append(f"| {row.name} | {row.category} | {cells} |")
    return "\n".join(lines) + "\n"


def published_markdown(checks: Sequence[Check], model: str, tolerance: float) -> str:
    """The scores beside the published ones, as a Markdown table."""
    lines = [
        f"| task | MTEB task | test set | score | published ({model}) | difference | within {tolerance:g} |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    for check in checks:
        same = "identical" if check.identical else "near"
        cells = f"{check.score:.2f} | {check.published:.2f} | {check.difference:+.2f}"
        lines.append(
            f"| {check.task} | {check.mteb_task} | {same} | {cells} | {'yes' if check.within else 'no'} |"
        )
    return "\n".join(lines) + "\n"
