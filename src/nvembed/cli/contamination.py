"""`nvembed contamination`: what of the evaluation stands in the training files."""

import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import track

from nvembed.errors import InputError
from nvembed.evaluate.contamination import contamination as contamination_of
from nvembed.evaluate.contamination import contamination_markdown, training_texts
from nvembed.evaluate.tasks import find_tasks, load_task
from nvembed.files import atomic_path
from nvembed.text.near import NEAR


def contamination(
    *training: Path,
    data: Path,
    tasks: list[str] | None = None,
    split: str = "test",
    threshold: float = NEAR,
    out: Path | None = None,
) -> None:
    """Count evaluation texts that stand in training files, exactly or nearly.

    Examples:

        nvembed contamination train.jsonl more.jsonl.gz --data my-tasks

        nvembed contamination train.jsonl --data ../shared/data/sts --tasks sts12,stsb --out report

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
        Jaccard similarity of 5-character shingles from which two texts of 60 characters and more are near
        duplicates; shorter ones match only exactly.
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
        with atomic_path(out / "contamination.md") as path:
            path.write_text(table, encoding="utf-8")
        with atomic_path(out / "contamination.json") as path:
            path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
