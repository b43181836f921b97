"""Pictures of a corpus: its map, and a confusion matrix."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import MissingExtraError

LEGEND_ROWS = 30  # names in a column beside the map
MAX_NAMED = 2 * LEGEND_ROWS
MAX_LABELLED = 100  # classes of a confusion matrix whose names and counts can still be read
DPI = 150


def draw_map(
    path: Path,
    points_n2: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    sizes: Sequence[int],
    title: str,
) -> None:
    """Draw points coloured by cluster, the cluster's number where it lies, its name beside the map.

    Args:
        path: a PNG file.
        points_n2: places in the plane.
        labels: int (n,), the cluster of each point; negative ones are drawn grey.
        names: of the clusters; the first ``MAX_NAMED`` are named.
        sizes: how many passages each has in the whole corpus.
        title: stands above the map.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    named = min(len(names), MAX_NAMED)
    columns = -(-named // LEGEND_ROWS)
    with _figure(9 + 4.2 * columns, 8.4) as figure:
        axes = figure.subplots()
        area = float(np.clip(20_000 / max(len(points_n2), 1), 2, 30))
        noise = labels < 0
        axes.scatter(*points_n2[noise].T, s=area / 2, color="0.8", linewidths=0, rasterized=True)
        colors = _colors(len(names))
        axes.scatter(*points_n2[~noise].T, s=area, c=colors[labels[~noise]], alpha=0.75, linewidths=0)
        for number in range(named):
            if (labels == number).any():
                _mark(axes, points_n2[labels == number], str(number), colors[number])
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        handles = [
            _dot(colors[number], f"{number}  {_short(names[number])}  ({sizes[number]:,})")
            for number in range(named)
        ]
        if noise.any():
            handles.append(_dot(np.array([0.8, 0.8, 0.8]), "in no cluster"))
        more = f"the largest {named} of {len(names)} clusters" if named < len(names) else None
        legend = axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), ncols=columns, fontsize=9,
            frameon=False, title=more, borderaxespad=0, handletextpad=0.3,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
        _save(figure, path)


def draw_confusion(path: Path, counts_KK: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, shades shares of the row.

    Counts stand in the cells up to 40 classes, names up to ``MAX_LABELLED``; above, only the shades.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    count = len(names)
    side = float(np.clip(0.42 * count, 3.5, 18))
    shares = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    shown = [_short(name, 48) for name in names] if count <= MAX_LABELLED else []
    margin = 0.08 * max(map(len, shown), default=0)  # inches, of the longest name
    with _figure(side + 2.5 + margin, side + 1.5 + margin) as figure:
        axes = figure.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, shrink=0.6, label="share of the true class")
        if shown:
            small = 9 if count <= 40 else 8
            axes.set_xticks(range(count), shown, rotation=90, fontsize=small)
            axes.set_yticks(range(count), shown, fontsize=small)
            for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
                text.set_parse_math(False)
        if count <= 40:
            for row, column in np.argwhere(counts_KK > 0):
                color = "white" if shares[row, column] > 0.55 else "black"
                axes.text(
                    column,
                    row,
                    f"{counts_KK[row, column]:,}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=color,
                )
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        _save(figure, path)


def _dot(color: np.ndarray, label: str) -> Any:
    """Return a dot for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", color=tuple(color.tolist()), label=label)


def _mark(axes: Any, points_n2: np.ndarray, text: str, color: np.ndarray) -> None:
    """Write ``text`` at the member nearest to the median: the median itself may lie between two parts."""
    median = np.median(points_n2, axis=0)
    x, y = points_n2[np.square(points_n2 - median).sum(axis=1).argmin()]
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": color, "alpha": 0.85}
    axes.text(x, y, text, ha="center", va="center", fontsize=9, fontweight="bold", bbox=box)


def _colors(count: int) -> np.ndarray:
    """Return ``count`` colours, neighbours in number far apart in hue: (count, 3)."""
    from matplotlib.colors import hsv_to_rgb

    number = np.arange(count)
    hue = number * 0.618034 % 1  # the golden ratio's steps never come close to one another
    value = np.array([0.85, 0.6, 0.95])[number % 3]
    saturation = np.array([0.85, 0.75, 0.55])[number // 2 % 3]
    return np.asarray(hsv_to_rgb(np.column_stack([hue, saturation, value])))


def _short(name: str, chars: int = 38) -> str:
    return name if len(name) <= chars else f"{name[: chars - 1]}…"


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'nvembed[learn]'") from error
    with warnings.catch_warnings():  # a name in a script that matplotlib's font lacks is drawn as boxes
        warnings.filterwarnings("ignore", "Glyph")
        yield Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
