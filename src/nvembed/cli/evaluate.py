"""`nvembed evaluate`: models on tasks, with the published protocol."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from nvembed.cli.screen import long_progress, say
from nvembed.cli.subjects import Loading, load_subject
from nvembed.errors import InputError
from nvembed.evaluate.run import Progress
from nvembed.evaluate.run import evaluate as run
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.tasks import find_tasks, load_task
from nvembed.recipe import nearest


def evaluate(
    *models: str,
    tasks: list[str],
    out: Path,
    data: Path | None = None,
    split: str = "test",
    max_tokens: int | None = None,
    instruction: list[str] | None = None,
    cache: Path | None = None,
    keep_embeddings: bool = True,
    drop_unanswerable: bool = False,
    device: str | None = None,
    dtype: str | None = None,
) -> None:
    """Score models on evaluation tasks; results in mteb's format, resumed by task.

    Finished tasks are not repeated, and embeddings are kept on disk: an evaluation that was stopped goes on
    where it was when the same command is given again.

    Examples:

        nvembed evaluate MODEL --tasks scifact --data ../shared/data/retrieval --out results

        nvembed evaluate MODEL bm25 minilm=path/to/all-MiniLM-L6-v2 --tasks all --data my-tasks --out results

        nvembed evaluate nvidia/NV-Embed-v2 --tasks "MTEB(eng, v1)" --out results --device cuda

    Parameters
    ----------
    models
        Hub ids or folders (ours, or of sentence-transformers), `bm25` and `random`; `NAME=FOLDER` names one.
    tasks
        Folders under --data, several separated by commas, or `all`; without --data, names of MTEB tasks and
        benchmarks, such as `SciFact` or `MTEB(eng, v1)`.
    out
        Folder for the results.
    data
        Folder with a folder per task: BEIR's layout, or JSON lines of pairs or labelled texts. No network is
        used.
    split
        Which part is evaluated.
    max_tokens
        Longest text; 512 as published. Up to 32768.
    instruction
        `TASK=INSTRUCTION`, instead of the recipe's.
    cache
        Folder for embeddings; OUT/.embeddings by default.
    keep_embeddings
        Keep embeddings on disk; --no-keep-embeddings computes them anew every time.
    drop_unanswerable
        Leave out queries without a relevant passage instead of refusing the task.
    device
        Where torch runs, such as `cuda`.
    dtype
        Precision of the model, such as `bfloat16`.
    """
    if not models:
        raise InputError("no model given; expected hub ids, folders, bm25 or random")
    names = [name.strip() for chunk in tasks for name in _split(chunk)]
    said = _instructions(instruction or [])
    limit = protocol().max_tokens if max_tokens is None else max_tokens
    if limit < 1:
        raise InputError(f"--max-tokens is {limit:,}: expected 1 or more")
    loading = Loading(max_tokens=limit, device=device, dtype=dtype)
    keep = (cache or out / ".embeddings") if keep_embeddings else None
    if data is None:
        from nvembed.evaluate.mteb import find_mteb_tasks, run_mteb

        found = find_mteb_tasks(names)
        _all_used(said, [task.metadata.name for task in found])
        for spec in models:
            subject = load_subject(spec, loading)
            done = run_mteb(subject, found, out, cache=keep, instructions=said)
            _say(subject.name, done, out)
        return
    loaded = [
        load_task(folder, split=split, drop_unanswerable=drop_unanswerable)
        for folder in find_tasks(data, names)
    ]
    _all_used(said, [task.name for task in loaded])
    for spec in models:
        subject = load_subject(spec, loading)
        with _progress(subject.name) as show:
            done = run(subject, loaded, out, cache=keep, instructions=said, on_progress=show)
        _say(subject.name, done, out)


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


def _instructions(given: list[str]) -> dict[str, str]:
    pairs = dict(entry.split("=", 1) for entry in given if "=" in entry)
    if len(pairs) != len(given):
        raise InputError(f"--instruction {given}: expected TASK=INSTRUCTION, each task once")
    return pairs


def _all_used(instructions: dict[str, str], tasks: list[str]) -> None:
    for name in instructions:
        if name not in tasks:
            raise InputError(f"--instruction names {name!r}, which is not evaluated: {nearest(name, tasks)}")


@contextmanager
def _progress(name: str) -> Iterator[Callable[[Progress], None]]:
    """Yield what draws a bar for each task, or, without a terminal, says a line now and then."""
    task = ""
    update: Callable[[int, int], None]
    with ExitStack() as bar:

        def show(now: Progress) -> None:
            nonlocal task, update
            if now.task != task:
                bar.close()
                task = now.task
                say(f"{name}: {task}, {now.total:,} texts")
                update = bar.enter_context(long_progress(f"{name}: {task}"))
            update(now.done, now.total)

        yield show


def _say(name: str, done: list[str], out: Path) -> None:
    Console().print(f"{name}: {len(done)} tasks evaluated, results in {out}", highlight=False)
