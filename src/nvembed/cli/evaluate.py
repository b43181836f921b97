"""`nvembed evaluate`: models on tasks, with the published protocol."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from nvembed.cli.models import Loading, open_model
from nvembed.cli.options import Compute, Count, Flag
from nvembed.cli.screen import long_progress, results, say
from nvembed.errors import InputError
from nvembed.evaluate.run import TaskProgress, check_instructions, runnable
from nvembed.evaluate.run import evaluate as run
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.subject import Subject
from nvembed.evaluate.tasks import Task, find_tasks, load_task
from nvembed.recipe import nearest


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
    compute: Compute = Compute(),
) -> None:
    """Score models on evaluation tasks.

    Results are written in mteb's format, under the model and its settings. Finished tasks are not repeated
    and embeddings are kept on disk: run the same command again to resume.

    Examples:

        nvembed evaluate MODEL --tasks scifact --data my-tasks --out results

        nvembed evaluate MODEL bm25 minilm=all-MiniLM-L6-v2/ --tasks all \\
            --data my-tasks --out results

        nvembed evaluate nvidia/NV-Embed-v2 --tasks "MTEB(eng, v1)" \\
            --out results --device cuda

    Parameters
    ----------
    models
        Hub ids, folders (of this package or of sentence-transformers), `bm25`, or `random`. `NAME=FOLDER`
        sets the name.
    tasks
        With --data: names of task folders, separated by commas, or `all`. Without: MTEB tasks and benchmarks,
        such as `SciFact` or `MTEB(eng, v1)`.
    out
        Folder for the results.
    data
        Folder with one folder per task: BEIR's layout, or JSON lines of pairs or labelled texts. Nothing is
        downloaded.
    split
        Part of the data to evaluate, with --data. Default: test.
    max_tokens
        Most tokens read of one text, up to 32768. Default: 512, as published.
    instruction
        `TASK=INSTRUCTION`, instead of the recipe's. Repeat it for several tasks.
    cache
        Folder for embeddings. Default: OUT/.embeddings.
    keep_embeddings
        Keep embeddings on disk.
    drop_unanswerable
        Leave out queries without a relevant passage, with --data. Without it such a task is an error.
    """
    if not models:
        raise InputError("expected a model: a hub id, a folder, bm25 or random")
    names = [name.strip() for chunk in tasks for name in _split(chunk)]
    if not names:
        raise InputError("--tasks is empty: expected names of tasks, or all")
    instructions = _instructions(instruction or [])
    loading = Loading(max_tokens or protocol().max_tokens, compute.device, compute.dtype)
    keep = (cache or out / ".embeddings") if keep_embeddings else None
    if data is None:
        if split is not None or drop_unanswerable:
            raise InputError(
                "--split and --drop-unanswerable need --data: mteb's tasks define their own data"
            )
        _evaluate_mteb(models, names, loading, out, keep, instructions)
        return
    loaded = [
        load_task(folder, split=split or "test", drop_unanswerable=drop_unanswerable)
        for folder in find_tasks(data, names)
    ]
    _all_used(instructions, [task.name for task in loaded])
    for task in loaded:
        if task.note:
            say(task.note, **_WARNING)
    for spec in models:
        subject = open_model(spec, loading)
        _say_skipped(subject, loaded)
        own = _taken(subject, instructions, alone=len(models) == 1)
        with _progress(subject.name) as show:
            finished = run(subject, loaded, out, cache=keep, instructions=own, on_progress=show)
        _say_finished(subject, finished, out)


def _evaluate_mteb(
    models: tuple[str, ...],
    names: list[str],
    loading: Loading,
    out: Path,
    keep: Path | None,
    instructions: dict[str, str],
) -> None:
    from nvembed.evaluate.mteb import find_mteb_tasks, prompt_note, run_mteb

    tasks = find_mteb_tasks(names)
    _all_used(instructions, [task.metadata.name for task in tasks])
    for spec in models:
        subject = open_model(spec, loading)
        own = _taken(subject, instructions, alone=len(models) == 1)
        if note := prompt_note(subject, tasks, own):
            say(note)
        finished = run_mteb(subject, tasks, out, cache=keep, instructions=own)
        _say_finished(subject, finished, out)


def _split(chunk: str) -> list[str]:
    """Split at commas outside brackets: ``MTEB(eng, v1),SciFact`` is two names."""
    parts, depth = [""], 0
    for letter in chunk:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _instructions(entries: list[str]) -> dict[str, str]:
    pairs = dict(entry.split("=", 1) for entry in entries if "=" in entry)
    if len(pairs) != len(entries):
        raise InputError(f"--instruction {entries}: expected TASK=INSTRUCTION, each task once")
    return pairs


def _taken(subject: Subject, instructions: dict[str, str], *, alone: bool) -> dict[str, str]:
    """Return the instructions that the subject takes: none, with a warning, beside models that take them.

    Raises:
        InputError: the only model takes none.
    """
    if subject.instructions or not instructions:
        return instructions
    if alone:
        check_instructions(subject, instructions)
    say(f"{subject.name} takes no instruction: --instruction is not applied to it", **_WARNING)
    return {}


_WARNING = {"label": "warning: ", "style": "bold yellow"}


def _all_used(instructions: dict[str, str], tasks: list[str]) -> None:
    for name in instructions:
        if name not in tasks:
            raise InputError(f"--instruction names {name!r}, which is not evaluated: {nearest(name, tasks)}")


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


def _say_skipped(subject: Subject, tasks: list[Task]) -> None:
    possible = runnable(subject, tasks)
    skipped = [task.name for task in tasks if task not in possible]
    if possible and skipped:
        say(
            f"{subject.name} has no vectors: skipped {len(skipped)} tasks that neither retrieve nor rerank ("
            + ", ".join(skipped)
            + ")",
            **_WARNING,
        )


def _say_finished(subject: Subject, finished: list[str], out: Path) -> None:
    results().print(f"{subject.name}: {len(finished)} tasks evaluated, results in {out}", soft_wrap=True)
