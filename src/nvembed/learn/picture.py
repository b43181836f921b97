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
NOISE_COLOR = "#8a9196"

# Ottosson 2020, "A perceptual color space for image processing"
_OKLAB_TO_LMS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


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
        axes.scatter(
            *points_n2[noise].T, s=area / 2, color=NOISE_COLOR, alpha=0.4, linewidths=0, rasterized=True
        )
        colors = cluster_colors(len(names))
        members = [colors[label] for label in labels[~noise]]
        axes.scatter(*points_n2[~noise].T, s=area, c=members, alpha=0.75, linewidths=0)
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
            handles.append(_dot(NOISE_COLOR, "in no cluster"))
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


def _dot(color: str, label: str) -> Any:
    """Return a dot for a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], marker="o", linestyle="", color=color, label=label)


def _mark(axes: Any, points_n2: np.ndarray, text: str, color: str) -> None:
    """Write ``text`` at the member nearest to the median, which itself may lie between two parts."""
    median = np.median(points_n2, axis=0)
    x, y = points_n2[np.square(points_n2 - median).sum(axis=1).argmin()]
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": color, "alpha": 0.85}
    axes.text(x, y, text, ha="center", va="center", fontsize=9, fontweight="bold", bbox=box)


def cluster_colors(count: int) -> list[str]:
    """Return ``count`` colours like ``#c2544b``, which are visible on white and on dark grey.

    Clusters with successive numbers differ much in hue. The colours are of OKLCH (Ottosson 2020), in which
    equal lightness looks equally light.
    """
    number = np.arange(count)
    hue = np.radians(20 + 137.508 * number)  # steps of the golden angle never come close to each other
    lightness = np.array([0.61, 0.57, 0.64])[number // 3 % 3]
    chroma = np.array([0.16, 0.13, 0.1])[number // 9 % 3]
    lab = np.column_stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)])
    linear = (lab @ _OKLAB_TO_LMS.T) ** 3 @ _LMS_TO_RGB.T
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.rint(255 * np.clip(srgb, 0, 1)).astype(int).tolist()]


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
