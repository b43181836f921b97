"""`nvembed evaluate`: models on tasks, with the published protocol."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nvembed.cli.models import Loading, open_model
from nvembed.cli.options import CompiledCompute, Count, Flag, named_instructions
from nvembed.cli.screen import long_progress, results, say, warn
from nvembed.errors import InputError
from nvembed.evaluate.run import TaskProgress, check_instructions, runnable
from nvembed.evaluate.run import evaluate as run_local
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.subject import Subject
from nvembed.evaluate.tasks import find_tasks, load_task

Run = Callable[[Subject, dict[str, str]], list[str]]  # a model, instructions -> the tasks that were run now


def evaluate(
    *models: str,
    tasks: list[str],
    out: Path,
    data: Path | None = None,
    split: str | None = None,
    max_tokens: Count | None = None,
    instruction: list[str] | None = None,
    cache: Path | None = None,
    keep_embeddings: bool = True,
    drop_unanswerable: Flag = False,
    compute: CompiledCompute = CompiledCompute(),
) -> None:
    """Score models on evaluation tasks.

    Results are written in mteb's format, in a folder for each model and its settings. Run the same command
    again to resume: finished tasks are not repeated, and embeddings are kept on disk.

    Examples:

        nvembed evaluate MODEL --tasks scifact --data my-tasks --out results

        nvembed evaluate MODEL bm25 minilm=all-MiniLM-L6-v2/ --tasks all \\
            --data my-tasks --out results

        nvembed evaluate nvidia/NV-Embed-v2 --tasks "MTEB(eng, v1)" \\
            --out results --device cuda

    Parameters
    ----------
    models
        Models: folders, hub ids, `bm25`, or `random`. `NAME=FOLDER` sets the name of a folder.
    tasks
        With --data: names of task folders, separated by commas, or `all`. Without: MTEB tasks and benchmarks,
        such as `SciFact` or `MTEB(eng, v1)`.
    out
        Folder for the results.
    data
        Folder with one folder per task: BEIR's layout, or JSON lines of pairs or labelled texts. Nothing is
        downloaded.
    split
        With --data: split to evaluate on. Default: test.
    max_tokens
        Most tokens read of one text, up to 32768. Default: 512, as published.
    instruction
        `TASK=INSTRUCTION`, in place of the known one. May be repeated.
    cache
        Folder for embeddings. Default: OUT/.embeddings.
    keep_embeddings
        Keep embeddings on disk.
    drop_unanswerable
        With --data: leave out queries without a relevant passage. Default: such a task is an error.
    """
    if not models:
        raise InputError("expected a model: a hub id, a folder, bm25 or random")
    # "MTEB(eng, v1),SciFact" is two names: commas inside brackets separate nothing
    names = [name.strip() for text in tasks for name in re.split(r",(?![^(]*\))", text) if name.strip()]
    if not names:
        raise InputError("--tasks is empty: expected names of tasks, or all")
    loading = Loading(max_tokens or protocol().max_tokens, compute.device, compute.dtype, compute.compiled)
    keep = (cache or out / ".embeddings") if keep_embeddings else None
    if data is not None:
        task_names, run = _local_tasks(data, names, split or "test", drop_unanswerable, out, keep)
    elif split is not None or drop_unanswerable:
        raise InputError("--split and --drop-unanswerable need --data: mteb's tasks define their own data")
    else:
        task_names, run = _mteb_tasks(names, out, keep)
    instructions = named_instructions(instruction or [], task_names)
    for spec in models:
        subject = open_model(spec, loading)
        finished = run(subject, _own_instructions(subject, instructions, alone=len(models) == 1))
        results().print(f"{subject.name}: {len(finished)} tasks evaluated, results in {out}", soft_wrap=True)


def _local_tasks(
    data: Path, names: list[str], split: str, drop_unanswerable: bool, out: Path, keep: Path | None
) -> tuple[list[str], Run]:
    """Read tasks from local folders; return their names and the function that evaluates a model on them."""
    tasks = [
        load_task(folder, split=split, drop_unanswerable=drop_unanswerable)
        for folder in find_tasks(data, names)
    ]
    for task in tasks:
        if task.note:
            warn(task.note)

    def run(subject: Subject, instructions: dict[str, str]) -> list[str]:
        possible = runnable(subject, tasks)
        skipped = [task.name for task in tasks if task not in possible]
        if possible and skipped:
            kinds = f"{len(skipped)} tasks that are neither retrieval nor reranking"
            warn(f"{subject.name} has no vectors: skipped {kinds} ({', '.join(skipped)})")
        with _progress(subject.name) as show:
            return run_local(subject, tasks, out, cache=keep, instructions=instructions, on_progress=show)

    return [task.name for task in tasks], run


def _mteb_tasks(names: list[str], out: Path, keep: Path | None) -> tuple[list[str], Run]:
    """As ``_local_tasks``, for tasks and benchmarks of mteb."""
    from nvembed.evaluate.mteb import find_mteb_tasks, prompt_note, run_mteb

    tasks = find_mteb_tasks(names)

    def run(subject: Subject, instructions: dict[str, str]) -> list[str]:
        if note := prompt_note(subject, tasks, instructions):
            say(note)
        return run_mteb(subject, tasks, out, cache=keep, instructions=instructions)

    return [task.metadata.name for task in tasks], run


def _own_instructions(subject: Subject, instructions: dict[str, str], *, alone: bool) -> dict[str, str]:
    """Return the instructions for a model: none, with a warning, for one that takes none."""
    if subject.instructions or not instructions:
        return instructions
    if alone:
        check_instructions(subject, instructions)
    warn(f"{subject.name} takes no instruction: --instruction is not applied to it")
    return {}


@contextmanager
def _progress(name: str) -> Iterator[Callable[[TaskProgress], None]]:
    """Yield a function that draws a bar for each task, or prints a line now and then without a terminal."""
    task = ""
    update: Callable[[int, int], None]
    with ExitStack() as bar:

        def show(now: TaskProgress) -> None:
            nonlocal task, update
            if now.task != task:
                bar.close()
                task = now.task
                say(f"{name}: {task}, {now.total:,} texts")
                update = bar.enter_context(long_progress(f"{name}: {task}"))
            update(now.done, now.total)

        yield show
