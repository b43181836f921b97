"""Evaluate one subject on tasks: resume by task, embed every text once, write results."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from nvembed.errors import InputError
from nvembed.evaluate import record
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.outcome import Embed, Items, Prompts
from nvembed.evaluate.protocol import run_task
from nvembed.evaluate.rank import lexical
from nvembed.evaluate.subject import EncodeFn, Subject
from nvembed.evaluate.tasks import CATEGORY, Bitext, Labelled, Retrieval, Sets, Task
from nvembed.recipe import nearest
from nvembed.text.prompt import Side, format_prompt, instruction_for, known_tasks
from nvembed.vectors.embeddings import Embeddings

RANKING = ("retrieval", "reranking")


@dataclass(frozen=True)
class TaskProgress:
    """Texts of a task that are embedded or were in the cache, and the number of texts of the task."""

    task: str
    done: int
    total: int


def evaluate(
    subject: Subject,
    tasks: Sequence[Task],
    out: Path,
    *,
    cache: Path | None = None,
    instructions: dict[str, str] | None = None,
    on_progress: Callable[[TaskProgress], None] | None = None,
) -> list[str]:
    """Evaluate ``subject`` and write its results under ``out``; finished tasks are not repeated.

    Args:
        tasks: read and checked. A subject without vectors runs only retrieval and reranking.
        cache: folder of the embedding cache; None keeps none.
        instructions: task -> instruction, instead of the recipe's.

    Returns: the names of the tasks that were run now.

    Raises:
        InputError: no instruction is known for a task, the subject takes none, or it can run none of the
            tasks. It is raised before anything is embedded.
    """
    instructions = instructions or {}
    check_instructions(subject, instructions)
    possible = runnable(subject, tasks)
    if not possible:
        kinds = ", ".join(sorted({task.kind for task in tasks})) or "none"
        raise InputError(
            f"{subject.name} has no vectors and can only run retrieval and reranking tasks; got {kinds}"
        )
    todo = []
    for task in possible:
        folder = record.folder_of(out, subject, split=task.split, instructions=instructions)
        conditions = _conditions(subject, task, instructions)
        if not record.finished(folder, task.name, conditions):
            todo.append((task, conditions, folder))
    for task, conditions, folder in todo:
        record.write_meta(folder, subject)
        _evaluate_one(subject, task, conditions, folder, cache=cache, on_progress=on_progress)
    return [task.name for task, *_ in todo]


def runnable(subject: Subject, tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that the subject can run: without vectors, only those that rank."""
    return [task for task in tasks if subject.encode is not None or task.kind in RANKING]


def check_instructions(subject: Subject, instructions: Mapping[str, str]) -> None:
    """Refuse instructions for a subject that ignores them.

    Raises:
        InputError: the subject takes no instruction.
    """
    if instructions and not subject.instructions:
        raise InputError(
            f"{subject.name} takes no instruction, but --instruction names {', '.join(instructions)}: "
            "evaluate it in a command of its own, without --instruction"
        )


def prompts_of(subject: Subject, task: Task, instructions: dict[str, str]) -> Prompts:
    """Return the strings to prepend to the texts of the task.

    Raises:
        InputError: the subject takes instructions, and none is known for the task.
    """
    names = (task.name, task.mteb_name)
    if not subject.instructions:
        if task.kind not in RANKING:
            return own_prompts(subject, names, CATEGORY[task.kind], None)
        own = [own_prompts(subject, names, CATEGORY[task.kind], side).query for side in SIDES]
        return Prompts(own[0], own[1], "model" if any(own) else "none")
    if task.name in instructions:
        return Prompts(format_prompt(instructions[task.name]), source="option")
    for name in names:
        if name in known_tasks():
            query, corpus = (format_prompt(instruction_for(name, side)) for side in SIDES)
            return Prompts(query, corpus, "recipe")
    raise InputError(
        f"no instruction is known for task {task.name!r}: {nearest(task.name, known_tasks())}; "
        f"or pass --instruction '{task.name}=...'"
    )


SIDES: tuple[Side, Side] = ("query", "corpus")
# Names of prompts for the sides of retrieval, as in sentence-transformers' encode_query and encode_document.
_SIDE_NAMES = {"query": ("query",), "corpus": ("document", "passage", "corpus")}


def own_prompts(subject: Subject, names: Sequence[str], category: str, side: Side | None) -> Prompts:
    """Return a model's own prompt for a task, as ``query``, as mteb chooses it for sentence-transformers.

    It is found by the name of the task, then by its category (each also as ``NAME-query`` or
    ``NAME-document``), then by the side. ``side`` is None for a symmetric task, whose last choice is the
    model's default prompt.
    """
    candidates = []
    for name in (*names, category):
        candidates += [f"{name}-{own}" for own in _SIDE_NAMES.get(side or "", ())] + [name]
    candidates += _SIDE_NAMES[side] if side else [subject.default_prompt]
    prompt = next((subject.prompts[name] for name in candidates if subject.prompts.get(name)), "")
    return Prompts(prompt, source="model" if prompt else "none")


def _conditions(subject: Subject, task: Task, instructions: dict[str, str]) -> record.Json:
    """Return everything that decides the scores."""
    prompts = prompts_of(subject, task, instructions)
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        **({"content": subject.content} if subject.content else {}),
        "precision": subject.precision,
        "max_tokens": subject.max_tokens,
        "task": task.name,
        "mteb_task": task.mteb,
        "test_set": task.test_set,
        "kind": task.kind,
        "split": task.split,
        "data_revision": task.revision,
        "prompt": asdict(prompts),
        "settings": task.settings.model_dump(),
    }


@dataclass
class Meter:
    """Counts the texts and tokens of one task."""

    started: float = field(default_factory=time.monotonic)
    texts: int = 0
    tokens: int = 0
    cut: int = 0
    new_tokens: int = 0
    encode_seconds: float = 0.0

    def counted(self) -> record.Json:
        return {"texts": self.texts, "tokens": self.tokens, "texts_cut": self.cut}

    def embed_with(self, embedder: Embedder) -> Embed:
        """Count the texts that go through ``embedder``, cached or not."""

        def embed(texts: Sequence[str], prompt: str) -> np.ndarray:
            encoded = embedder(texts, prompt)
            self.texts += len(texts)
            self.tokens += int(encoded.num_tokens.sum())
            self.cut += int(encoded.truncated.sum())
            return encoded.vectors

        return embed


def metered(subject: Subject, meter: Meter) -> EncodeFn:
    """Return the subject's encode function with its tokens and seconds counted."""
    assert subject.encode is not None
    encode = subject.encode

    def timed(texts: Sequence[str], prompt: str) -> Embeddings:
        start = time.monotonic()
        encoded = encode(texts, prompt)
        meter.encode_seconds += time.monotonic() - start
        meter.new_tokens += int(np.sum(encoded.num_tokens))
        return encoded

    return timed


def timing_of(subject: Subject, meter: Meter) -> record.Json:
    """Return the measurements that differ from run to run."""
    rate = round(meter.new_tokens / meter.encode_seconds, 1) if meter.new_tokens else None
    return {
        "seconds": round(time.monotonic() - meter.started, 3),
        "encode_seconds": round(meter.encode_seconds, 3),
        "encoded_tokens": meter.new_tokens,
        "tokens_per_second": rate,
        "weights_bytes": subject.size_bytes,
        "peak_bytes": record.peak_memory(subject),
        "date": datetime.now(tz=UTC).isoformat(timespec="seconds"),
    }


def _evaluate_one(
    subject: Subject,
    task: Task,
    conditions: record.Json,
    folder: Path,
    *,
    cache: Path | None,
    on_progress: Callable[[TaskProgress], None] | None,
) -> None:
    meter, total, done = Meter(), _texts_in(task), 0
    record.peak_memory(subject, reset=True)

    def advance(texts: int) -> None:
        nonlocal done
        done += texts
        if on_progress:
            on_progress(TaskProgress(task.name, done, max(total, done)))

    advance(0)
    if subject.lexical is not None:
        outcome = lexical(task, subject.lexical)
    else:
        embedder = Embedder(subject, metered(subject, meter), folder=cache, on_texts=advance)
        outcome = run_task(task, meter.embed_with(embedder), Prompts(**conditions["prompt"]))
    dropped = list(task.data.dropped) if isinstance(task.data, Retrieval) else []
    result = record.mteb_result(task.name, task.revision, task.split, outcome)
    counted = {**meter.counted(), "queries_dropped": dropped}
    write_result(folder, subject, meter, conditions, result=result, counted=counted, items=outcome.items)


def write_result(
    folder: Path,
    subject: Subject,
    meter: Meter,
    conditions: record.Json,
    *,
    result: record.Json,
    counted: record.Json,
    items: Items | None,
) -> None:
    """Write the files of a task that was evaluated under ``conditions``."""
    details = {"conditions": conditions, "counted": counted, "environment": record.environment(subject)}
    timing = timing_of(subject, meter)
    record.write(folder, conditions["task"], result=result, record=details, items=items, timing=timing)


def _texts_in(task: Task) -> int:
    """Return how many texts a task embeds, for the estimate of the time left."""
    data = task.data
    if isinstance(data, Retrieval):
        return len(data.passage_ids) + len(data.queries)
    if isinstance(data, Bitext):
        return 2 * len(data.text1)
    if isinstance(data, Labelled):
        return len(data.texts)
    if isinstance(data, Sets):
        return sum(map(len, data.texts))
    return sum(map(len, data.human)) + sum(map(len, data.machine))
