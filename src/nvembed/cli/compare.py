"""`nvembed compare` and `nvembed contamination`: what a score is worth."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track

from nvembed.errors import InputError
from nvembed.evaluate.compare import against_published, compare_markdown, published_markdown
from nvembed.evaluate.compare import compare as compare_results
from nvembed.evaluate.contamination import THRESHOLD, contamination_markdown, training_texts
from nvembed.evaluate.contamination import contamination as contamination_of
from nvembed.evaluate.record import Result, read_results
from nvembed.evaluate.report import chart_differences, chart_quality, report_markdown
from nvembed.evaluate.tasks import find_tasks, load_task
from nvembed.files import atomic_path


def compare(
    *results: Path,
    published: str | None = None,
    tolerance: float = 0.3,
    out: Path | None = None,
) -> None:
    """Compare models: every task side by side, and each model with the first by paired tests over queries.

    Parameters
    ----------
    results
        Folders of models under the `--out` of `nvembed evaluate`.
    published
        Also compare each with the published scores of this model, such as `nv-embed-v2`.
    tolerance
        How far from a published score, in points, counts as the same.
    out
        Folder for compare.md, compare.json and the charts; the tables are printed either way.
    """
    if not results:
        raise InputError("no results given; expected folders of models under the --out of `nvembed evaluate`")
    models = {_name(folder): read_results(folder) for folder in results}
    text = [report_markdown(models)]
    found: dict[str, object] = {
        "scores": {m: {task: round(r.main_score, 4) for task, r in per.items()} for m, per in models.items()}
    }
    first, *others = models
    differences = {other: compare_results(models[first], models[other]) for other in others}
    for other, rows in differences.items():
        text.append(compare_markdown(rows, first, other))
        found[f"{other} against {first}"] = [{**asdict(row), "difference": row.difference} for row in rows]
    if published:
        for model, per_task in models.items():
            checks = against_published(per_task, published, tolerance=tolerance)
            text.append(f"{model}\n\n" + published_markdown(checks, published, tolerance))
            found[f"{model} against published {published}"] = [asdict(check) for check in checks]
    Console().print("\n".join(text), markup=False, highlight=False, soft_wrap=True)
    if out:
        _write(out / "compare.md", "\n".join(text))
        _write(out / "compare.json", json.dumps(found, indent=1) + "\n")
        chart_quality(models, out / "quality.png")
        for other, rows in differences.items():
            chart_differences(rows, out / f"difference-{other}.png", a=first, b=other)


def contamination(
    *training: Path,
    data: Path,
    tasks: list[str] | None = None,
    split: str = "test",
    threshold: float = THRESHOLD,
    out: Path | None = None,
) -> None:
    """Count evaluation pairs, queries and texts that stand in training files, exactly or nearly.

    Parameters
    ----------
    training
        JSON-lines files of training examples.
    data
        Folder with a folder per task.
    tasks
        Which of them; all by default.
    split
        Which part of a task is looked for.
    threshold
        Jaccard similarity of 5-letter shingles from which two texts are near duplicates.
    out
        Folder for contamination.md and contamination.json, which names examples.
    """
    if not training:
        raise InputError("no training file given; expected .jsonl or .jsonl.gz files")
    names = [name for chunk in tasks for name in chunk.split(",")] if tasks else None
    folders = find_tasks(data, names)
    rows = []
    for folder in track(folders, description="contamination", console=Console(stderr=True)):
        task = load_task(folder, split=split, drop_unanswerable=True)
        examples = (texts for path in training for texts in training_texts(path))
        rows.append(contamination_of(task, examples, threshold=threshold))
    table = contamination_markdown(rows)
    Console().print(table, markup=False, highlight=False, soft_wrap=True)
    if out:
        _write(out / "contamination.md", table)
        _write(out / "contamination.json", json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def _name(folder: Path) -> str:
    results: dict[str, Result] = read_results(folder)
    record = next(iter(results.values())).record
    return str(record.get("conditions", {}).get("model") or folder.name)


def _write(path: Path, content: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
