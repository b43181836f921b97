"""Pictures of a corpus: its map, and a confusion matrix."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import needs_extra

LEGEND_ROWS = 30  # names in a column beside the map
MAX_NAMED = 2 * LEGEND_ROWS
MAX_LABELLED = 100  # classes of a confusion matrix whose names can still be read
MAX_COUNTED = 40  # classes whose counts can still be read
DPI = 150


def draw_map(
    path: Path,
    points_n2: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    sizes: Sequence[int],
    title: str,
) -> None:
    """Draw points coloured by cluster, with the number of each cluster at its place and its name at the side.

    Args:
        path: a PNG file.
        points_n2: coordinates.
        labels: int (n,), the cluster of each point; negative ones are drawn grey.
        names: of the clusters; the first ``MAX_NAMED`` are named.
        sizes: how many passages each has in the whole corpus.
        title: of the map.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    count = min(len(names), MAX_NAMED)
    columns = -(-count // LEGEND_ROWS)
    with _figure(9 + 4.2 * columns, 8.4) as figure:
        axes = figure.subplots()
        area = float(np.clip(20_000 / max(len(points_n2), 1), 2, 30))
        noise = labels < 0
        axes.scatter(*points_n2[noise].T, s=area / 2, color="0.8", linewidths=0, rasterized=True)
        colors = _colors(len(names))
        axes.scatter(*points_n2[~noise].T, s=area, c=colors[labels[~noise]], alpha=0.75, linewidths=0)
        for number in range(count):
            if (labels == number).any():
                _mark(axes, points_n2[labels == number], str(number), colors[number])
        axes.set_aspect("equal")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        handles = [
            _dot(colors[number], f"{number}  {_short(names[number])}  ({sizes[number]:,})")
            for number in range(count)
        ]
        if noise.any():
            handles.append(_dot(np.array([0.8, 0.8, 0.8]), "in no cluster"))
        more = f"the largest {count} of {len(names)} clusters" if count < len(names) else None
        legend = axes.legend(
            handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), ncols=columns, fontsize=9,
            frameon=False, title=more, borderaxespad=0, handletextpad=0.3,
        )  # fmt: skip
        for text in legend.get_texts():
            text.set_parse_math(False)
        _save(figure, path)


def draw_confusion(path: Path, counts_KK: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, shades shares of the row.

    Counts are written into the cells up to ``MAX_COUNTED`` classes, names up to ``MAX_LABELLED``.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    with needs_extra("learn", "the confusion matrix"):
        from sklearn.metrics import ConfusionMatrixDisplay
    count = len(names)
    side = float(np.clip(0.42 * count, 3.5, 18))
    shares = counts_KK / np.maximum(counts_KK.sum(axis=1, keepdims=True), 1)
    labels = [_short(name, 48) for name in names] if count <= MAX_LABELLED else [""] * count
    margin = 0.08 * max(map(len, labels), default=0)  # inches, of the longest name
    with _figure(side + 2.5 + margin, side + 1.5 + margin) as figure:
        axes = figure.subplots()
        display = ConfusionMatrixDisplay(shares, display_labels=labels).plot(
            ax=axes, cmap="Blues", include_values=count <= MAX_COUNTED, colorbar=False,
            xticks_rotation="vertical", im_kw={"vmin": 0, "vmax": 1}, text_kw={"fontsize": 8},
        )  # fmt: skip
        figure.colorbar(display.im_, ax=axes, shrink=0.6, label="share of the true class")
        if display.text_ is not None:
            for text, times in zip(display.text_.ravel(), counts_KK.ravel(), strict=True):
                text.set_text(f"{times:,}" if times else "")
        for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
            text.set_fontsize(9 if count <= MAX_COUNTED else 8)
            text.set_parse_math(False)
        if count > MAX_LABELLED:
            axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        axes.set_title(title, loc="left", fontsize=11, parse_math=False)
        _save(figure, path)


def _dot(color: np.ndarray, label: str) -> Any:
    """Return a dot for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", color=tuple(color.tolist()), label=label)


def _mark(axes: Any, points_n2: np.ndarray, text: str, color: np.ndarray) -> None:
    """Write ``text`` at the member nearest to the median, which itself may lie between two parts."""
    median = np.median(points_n2, axis=0)
    x, y = points_n2[np.square(points_n2 - median).sum(axis=1).argmin()]
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": color, "alpha": 0.85}
    axes.text(x, y, text, ha="center", va="center", fontsize=9, fontweight="bold", bbox=box)


def _colors(count: int) -> np.ndarray:
    """Return ``count`` colours (count, 3): clusters with successive numbers differ much in hue."""
    from matplotlib.colors import hsv_to_rgb

    number = np.arange(count)
    hue = number * 0.618034 % 1  # steps of the golden ratio never come close to each other
    value = np.array([0.85, 0.6, 0.95])[number % 3]
    saturation = np.array([0.85, 0.75, 0.55])[number // 2 % 3]
    return np.asarray(hsv_to_rgb(np.column_stack([hue, saturation, value])))


def _short(name: str, chars: int = 38) -> str:
    return name if len(name) <= chars else f"{name[: chars - 1]}…"


@contextmanager
def _figure(width: float, height: float) -> Iterator[Any]:
    with needs_extra("learn", "the picture"):
        from matplotlib.figure import Figure
    with warnings.catch_warnings():  # matplotlib's font lacks some scripts: their names are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph")
        yield Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=DPI, bbox_inches="tight", metadata={"Software": None})
