"""Tables of several models side by side, and charts of quality against speed and memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import needs_extra
from nvembed.evaluate.compare import Difference, category, markdown_table
from nvembed.evaluate.record import Result
from nvembed.files import atomic_path

Results = Mapping[str, Mapping[str, Result]]  # model -> task -> result


@dataclass(frozen=True)
class Cost:
    """Speed and memory of a model over its tasks; None if nothing was measured (BM25, or a full cache)."""

    device: str
    tokens_per_second: float | None
    weights_bytes: int | None
    peak_bytes: int | None


def cost(results: Mapping[str, Result]) -> Cost:
    """Add up the timings of one model's tasks."""
    timing = [result.timing for result in results.values()]
    tokens = sum(t.get("encoded_tokens") or 0 for t in timing)
    seconds = sum(t.get("encode_seconds") or 0 for t in timing)
    devices = {
        str(result.record.get("environment", {}).get("device", "unknown")) for result in results.values()
    }
    return Cost(
        device=", ".join(sorted(devices)),
        tokens_per_second=tokens / seconds if tokens and seconds else None,
        weights_bytes=max((t.get("weights_bytes") or 0 for t in timing), default=0) or None,
        peak_bytes=max((t.get("peak_bytes") or 0 for t in timing), default=0) or None,
    )


def category_means(results: Results) -> dict[str, dict[str, float]]:
    """Return category (and ``all``) -> model -> mean main score.

    A model without one of a category's tasks has no mean there.
    """
    tasks = {task: category(result) for per_task in results.values() for task, result in per_task.items()}
    means: dict[str, dict[str, float]] = {}
    for name in [*sorted(set(tasks.values())), "all"]:
        members = [task for task, of in tasks.items() if name in (of, "all")]
        means[name] = {
            model: float(np.mean([per_task[task].main_score for task in members]))
            for model, per_task in results.items()
            if all(task in per_task for task in members)
        }
    return means


def report_markdown(results: Results) -> str:
    """Scores of every task and category, then speed and memory, as Markdown tables."""
    models = list(results)
    tasks = {task: category(result) for per_task in results.values() for task, result in per_task.items()}
    rows: list[list[str]] = []
    for task, of in sorted(tasks.items(), key=lambda item: (item[1], item[0])):
        scores = [f"{results[m][task].main_score:.2f}" if task in results[m] else "" for m in models]
        rows.append([task, of, *scores])
    for name, means in category_means(results).items():
        rows.append(["**mean**", name, *(f"**{means[m]:.2f}**" if m in means else "" for m in models)])
    costs = []
    for model in models:
        price = cost(results[model])
        numbers = _grouped(price.tokens_per_second), _mib(price.weights_bytes), _mib(price.peak_bytes)
        costs.append((model, price.device, *numbers))
    columns = ("tokens per second", "weights, MiB", "peak memory, MiB")
    return (
        markdown_table(("task", "category"), models, rows)
        + "\n"
        + markdown_table(("model", "device"), columns, costs)
    )


def chart_quality(results: Results, path: Path) -> None:
    """Draw mean score against tokens per second. The mean is over the tasks that all models have.

    The labels name the devices if they differ.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    shared = set.intersection(*(set(per_task) for per_task in results.values()))
    costs = {model: cost(per_task) for model, per_task in results.items()}
    mixed = len({price.device for price in costs.values() if price.tokens_per_second}) > 1
    means = {
        m: float(np.mean([per[task].main_score for task in shared] or [0])) for m, per in results.items()
    }
    labels = {m: f"{m} ({costs[m].device})" if mixed and costs[m].tokens_per_second else m for m in results}
    points = [Point(labels[m], means[m], costs[m].tokens_per_second, costs[m].peak_bytes) for m in results]
    chart_points(points, path, quality=f"mean main score of {len(shared)} tasks")


@dataclass(frozen=True)
class Point:
    """A model in a chart of quality against speed; ``low`` and ``high`` bound its quality."""

    label: str
    quality: float
    tokens_per_second: float | None
    peak_bytes: int | None
    low: float | None = None
    high: float | None = None


def chart_points(points: Sequence[Point], path: Path, *, quality: str) -> None:
    """Draw quality against tokens per second; the area of a mark is the peak memory.

    A model without a speed (BM25) is a horizontal line.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = _figure(8, 5)
    for point in points:
        if point.tokens_per_second:
            area = 20 + (point.peak_bytes or 0) / 2**20 / 10
            mark = axes.scatter(
                [point.tokens_per_second], [point.quality], s=area, alpha=0.7, label=point.label
            )
            if point.low is not None:
                axes.vlines(point.tokens_per_second, point.low, point.high, color=mark.get_facecolor())
        else:
            axes.axhline(point.quality, linestyle="--", linewidth=1, color="grey", label=point.label)
    axes.set_xscale("log", subs=(2, 5))
    for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis_format("{x:,.0f}")
    axes.margins(x=0.3)
    figure.legend(loc="outside upper center", ncols=2, labelspacing=1.2, frameon=False)
    axes.set_xlabel("tokens per second (mark area: peak memory)")
    axes.set_ylabel(quality)
    axes.grid(alpha=0.3)
    _save(figure, path)


def chart_differences(rows: Sequence[Difference], path: Path, *, a: str, b: str) -> None:
    """Draw the difference of each task with its interval.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, axes = _figure(8, 1.5 + 0.28 * len(rows))
    for y, row in enumerate(reversed(rows)):
        axes.plot([row.difference], [y], "o", color="tab:blue")
        if row.low is not None:
            axes.plot([row.low, row.high], [y, y], color="tab:blue", linewidth=1.5)
    axes.set_yticks(range(len(rows)), [f"{row.name} ({row.category})" for row in reversed(rows)], fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"{b} minus {a}, points, with 95% intervals")
    axes.grid(axis="x", alpha=0.3)
    _save(figure, path)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    with needs_extra("eval", "the chart"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)


def _grouped(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _mib(value: int | None) -> str:
    return "" if value is None else f"{value / 2**20:,.0f}"
