"""``nvembed ladder``: one model in every precision, and its smaller forms, side by side."""

import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nvembed.cli.models import Loading, open_model
from nvembed.cli.options import Compute, Count
from nvembed.cli.screen import results, say, warn
from nvembed.errors import InputError, NvembedError
from nvembed.evaluate.compare import markdown_table
from nvembed.evaluate.record import environment, folder_of, peak_memory, read_results
from nvembed.evaluate.report import Point, chart_points
from nvembed.evaluate.run import evaluate as run
from nvembed.evaluate.subject import Subject
from nvembed.evaluate.tasks import Bitext, Data, Labelled, Retrieval, Sets, find_tasks, load_task
from nvembed.files import write_json
from nvembed.indexing.models import find_model

PRECISIONS = ("float32", "bfloat16", "int8", "int4")
WARM_UP = 8


@dataclass(frozen=True)
class Rung:
    """One form of a model, measured in a process of its own."""

    name: str
    precision: str
    scores: dict[str, float]  # main score of each task, 0 to 100
    tokens_per_second: float
    load_s: float
    peak_bytes: int  # of loading and of encoding the speed texts
    disk_bytes: int
    dim: int
    cosine_mean: float = 1.0  # with the first rung's vectors; NaN where the lengths differ
    cosine_min: float = 1.0

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.scores.values())))


def ladder(
    model: str,
    *others: str,
    data: Path,
    tasks: list[str],
    out: Path,
    precisions: list[str] | None = None,
    max_tokens: Count = 256,
    texts: Count = 200,
    compute: Compute = Compute(),
) -> None:
    """Measure a model in every precision, and smaller forms of it.

    Each rung gets scores, tokens per second, memory and bytes, in a process of its own. Its vectors are
    compared with those of the first. Scores and embeddings are kept: run the same command again to resume.

    Examples:

        nvembed ladder all-MiniLM-L6-v2/ --data my-tasks --tasks stsb,scifact --out ladder

        nvembed ladder embeddinggemma-300m/ gemma-en-int4/ --data my-tasks --tasks all --out ladder

    Parameters
    ----------
    model
        A folder or a hub id, measured in every precision.
    others
        Folders that `nvembed compress` wrote, measured in their own precision. `NAME=FOLDER` sets the name.
    data
        Folder with one folder per task, as for `nvembed evaluate`.
    tasks
        Names of task folders, separated by commas, or `all`.
    out
        Folder for ladder.json, ladder.md, ladder.png and the results of the tasks.
    precisions
        float32, bfloat16, int8 or int4, separated by commas. Default: all. The first is the reference.
    max_tokens
        Most tokens read of one text.
    texts
        How many passages of the tasks are encoded to measure speed and cosines.
    """
    names = [name for chunk in precisions or PRECISIONS for name in chunk.split(",") if name]
    if unknown := sorted({name for name in names if name not in PRECISIONS}):
        raise InputError(f"--precisions has {', '.join(unknown)}: expected {', '.join(PRECISIONS)}")
    folders = find_tasks(data, [name.strip() for chunk in tasks for name in chunk.split(",")])
    sample = _sample(folders, texts)
    out.mkdir(parents=True, exist_ok=True)
    rungs: list[Rung] = []
    first: np.ndarray | None = None
    for spec, precision in [*((model, name) for name in names), *((other, None) for other in others)]:
        say(f"measuring {spec}{'' if precision is None else f' in {precision}'}")
        loading = Loading(max_tokens, compute.device, precision)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
            try:
                rung, vectors = child.submit(_measure, spec, loading, folders, sample, out).result()
            except NvembedError as error:
                warn(f"{spec} could not be measured: {error}")
                continue
            except (BrokenProcessPool, MemoryError):
                warn(f"{spec} could not be measured: its process ended, probably out of memory")
                continue
        first = vectors if first is None else first
        rungs.append(_compared(rung, vectors, first))
    if not rungs:
        raise InputError("no rung could be measured")
    _report(rungs, out)


def _sample(folders: list[Path], count: int) -> list[str]:
    """Return texts of the tasks, the same number of each, evenly over its file."""
    share = -(-count // len(folders))
    texts: list[str] = []
    for folder in folders:
        own = list(dict.fromkeys(_texts(load_task(folder).data)))
        texts += [own[int(i)] for i in np.linspace(0, len(own) - 1, min(share, len(own)))]
    return texts[:count]


def _texts(data: Data) -> Iterable[str]:
    if isinstance(data, Retrieval):
        return data.passages()
    if isinstance(data, Bitext):
        return data.text1
    if isinstance(data, Labelled):
        return data.texts
    return chain.from_iterable(data.texts if isinstance(data, Sets) else data.machine)


def _measure(
    spec: str, loading: Loading, folders: list[Path], sample: list[str], out: Path
) -> tuple[Rung, np.ndarray]:
    """Open, time, score: in a process of its own, so that memory is of this rung alone."""
    peak_memory(Subject("", ""), reset=True)
    start = time.perf_counter()
    subject = open_model(spec, loading)
    assert subject.encode is not None
    subject.encode(sample[:1], subject.default_prompt)
    load_s = time.perf_counter() - start
    subject.encode(sample[:WARM_UP], subject.default_prompt)
    start = time.perf_counter()
    encoded = subject.encode(sample, subject.default_prompt)
    speed = int(encoded.num_tokens.sum()) / (time.perf_counter() - start)
    peak = peak_memory(subject)
    tasks = [load_task(folder) for folder in folders]
    run(subject, tasks, out, cache=out / ".embeddings")
    scores = {name: result.main_score for name, result in read_results(folder_of(out, subject)).items()}
    place = spec.partition("=")[2] if "=" in spec and not Path(spec).is_dir() else spec
    files = [path for path in find_model(place).rglob("*") if path.suffix in (".safetensors", ".json")]
    return Rung(
        subject.name,
        subject.precision,
        {task.name: scores[task.name] for task in tasks},
        speed,
        load_s,
        peak,
        sum(path.stat().st_size for path in files),
        subject.dim,
    ), encoded.vectors


def _compared(rung: Rung, vectors: np.ndarray, first: np.ndarray) -> Rung:
    if vectors.shape != first.shape:
        return Rung(**{**asdict(rung), "cosine_mean": float("nan"), "cosine_min": float("nan")})
    cosines = (vectors * first).sum(1)
    return Rung(**{**asdict(rung), "cosine_mean": float(cosines.mean()), "cosine_min": float(cosines.min())})


def _cells(rung: Rung) -> list[str]:
    return [
        f"{rung.mean:.2f}",
        "" if np.isnan(rung.cosine_mean) else f"{rung.cosine_mean:.4f}",
        "" if np.isnan(rung.cosine_min) else f"{rung.cosine_min:.4f}",
        f"{rung.tokens_per_second:,.0f}",
        f"{rung.load_s:.1f}",
        f"{rung.peak_bytes / 2**20:,.0f}",
        f"{rung.disk_bytes / 1e6:,.1f}",
        str(rung.dim),
    ]


_COLUMNS = ("score", "cosine", "least", "tokens/s", "load s", "peak MiB", "disk MB", "dim")


def _report(rungs: list[Rung], out: Path) -> None:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("model", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for rung in rungs:
        table.add_row(rung.name, rung.precision, *_cells(rung))
    results().print(table)
    rows = [[rung.name, rung.precision, *_cells(rung)] for rung in rungs]
    conditions = environment(Subject("", ""))
    names = ", ".join(rungs[0].scores)
    text = markdown_table(["model", "dtype"], _COLUMNS, rows)
    note = f"Score: mean main score of {names}. Cosine: with the first row's vectors, mean and least."
    (out / "ladder.md").write_text(f"{text}\n{note} {conditions['processor']}.\n", encoding="utf-8")
    content: dict[str, Any] = {"environment": conditions, "rungs": [_finite(rung) for rung in rungs]}
    write_json(out / "ladder.json", content)
    points = [
        Point(f"{rung.name} {rung.precision}", rung.mean, rung.tokens_per_second, rung.peak_bytes)
        for rung in rungs
    ]
    chart_points(points, out / "ladder.png", quality=f"mean main score of {len(rungs[0].scores)} tasks")
    say(f"results in {out}")


def _finite(rung: Rung) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and np.isnan(value) else value
        for key, value in asdict(rung).items()
    }
