"""A run's curve as a picture: the loss, and the development score, against steps and tokens.

    python benchmarks/curve.py runs/stage1 runs/stage2 --out models/nvembed-small/curve.png

Several runs stand one after the other, as stages do. The loss is drawn as it is and smoothed (a mean over a
fiftieth of the run); the stages' losses are over different candidates, so only each stage's own course tells.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import DataError, InputError
from nvembed.files import atomic_path
from nvembed.read.lines import read_rows


@dataclass(frozen=True)
class Run:
    """What a run's log.jsonl says. ``steps``, ``tokens`` and ``losses`` are per step, tokens summed up."""

    name: str
    steps: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray
    scored: np.ndarray  # steps after which the development set was scored
    scores: np.ndarray  # its mean, 0 to 100


def read_run(folder: Path) -> Run:
    """Read a run's log.

    Raises:
        DataError: it holds no step.
    """
    records: list[dict[str, Any]] = [row for _, row in read_rows(folder / "log.jsonl")]
    steps = [row for row in records if row["kind"] == "step"]
    if not steps:
        raise DataError(f"{folder / 'log.jsonl'} holds no step: expected a run of `nvembed train`")
    scored = [row for row in records if row["kind"] == "scores"]
    means = [
        100 * float(np.mean([value for key, value in row.items() if key not in ("kind", "step")]))
        for row in scored
    ]
    return Run(
        folder.name,
        np.array([row["step"] for row in steps]),
        np.cumsum([row["tokens"] for row in steps]),
        np.array([row["loss"] for row in steps]),
        np.array([row["step"] for row in scored], dtype=int),
        np.array(means),
    )


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean over a fiftieth of ``values``, and over less at both ends."""
    reach = max(1, len(values) // 100)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return np.asarray((sums[high] - sums[low]) / (high - low))


def draw(runs: list[Run], path: Path) -> None:
    """Write the picture; its format is that of the path's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    first = tokens = 0
    for run, colour in zip(runs, (f"C{number}" for number in range(len(runs))), strict=True):
        x = (tokens + run.tokens) / 1e6
        above.plot(x, run.losses, color=colour, alpha=0.25, linewidth=0.8)
        above.plot(x, smoothed(run.losses), color=colour, label=f"{run.name}: {len(run.steps):,} steps")
        places = np.searchsorted(run.steps, run.scored)
        below.plot(x[places], run.scores, color=colour, marker="o", markersize=4, label=run.name)
        first, tokens = first + len(run.steps), tokens + int(run.tokens[-1])
    above.set_ylabel("loss")
    above.legend()
    below.set_ylabel("development score")
    below.set_xlabel(f"million tokens ({first:,} steps)")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None} if path.suffix == ".png" else None)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `nvembed train`, in order")
    parser.add_argument("--out", type=Path, required=True, help="a .png or .svg file")
    args = parser.parse_args()
    if args.out.suffix not in (".png", ".svg"):
        raise InputError(f"--out is {args.out}: expected a .png or .svg file")
    runs = [read_run(folder) for folder in args.runs]
    draw(runs, args.out)
    for run in runs:
        best = f"; best score {run.scores.max():.2f}, last {run.scores[-1]:.2f}" if len(run.scores) else ""
        print(
            f"{run.name}: {run.steps[-1]:,} steps, {run.tokens[-1]:,} tokens, loss {run.losses[-1]:.3f}{best}"
        )


if __name__ == "__main__":
    main()
