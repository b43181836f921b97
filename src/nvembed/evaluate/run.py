"""Evaluate one subject on tasks: resume by task, embed once, write results."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from nvembed.errors import InputError
from nvembed.evaluate import record
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.outcome import Embed, Prompts
from nvembed.evaluate.protocol import run_task
from nvembed.evaluate.rank import lexical
from nvembed.evaluate.subject import EncodeFn, Subject
from nvembed.evaluate.tasks import Labelled, Pairs, Retrieval, Sets, Task
from nvembed.recipe import nearest
from nvembed.text.prompt import format_prompt, instruction_for, known_tasks
from nvembed.vectors.embeddings import Embeddings

RANKING = ("retrieval", "reranking")


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands: texts embedded or found in the cache, of those that the task has."""

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
    on_progress: Callable[[Progress], None] | None = None,
) -> list[str]:
    """Evaluate ``subject`` and write its results under ``out``; finished tasks are not repeated.

    Args:
        tasks: read and checked; a subject without vectors takes only those that rank.
        cache: folder of the embedding cache; None keeps none.
        instructions: task -> instruction, instead of the recipe's.

    Returns: the names of the tasks that were run now.

    Raises:
        InputError: no instruction is known for a task; raised before anything is embedded.
    """
    folder = record.folder_of(out, subject)
    todo = []
    for task in tasks:
        if subject.encode is None and task.kind not in RANKING:
            continue
        conditions = _conditions(subject, task, instructions or {})
        if not record.finished(folder, task.name, conditions):
            todo.append((task, conditions))
    if not todo:
        return []
    record.write_meta(folder, subject)
    for task, conditions in todo:
        _evaluate_one(subject, task, conditions, folder, cache=cache, on_progress=on_progress)
    return [task.name for task, _ in todo]


def prompts_of(subject: Subject, task: Task, instructions: dict[str, str]) -> Prompts:
    """Return the strings that are put before the task's texts.

    Raises:
        InputError: the subject takes instructions, and none is known for the task.
    """
    if not subject.instructions:
        fixed = subject.prompts if task.kind in RANKING else {}
        return Prompts(fixed.get("query", ""), fixed.get("corpus", ""))
    if task.name in instructions:
        return Prompts(format_prompt(instructions[task.name]))
    for name in (task.name, task.mteb_name):
        if name in known_tasks():
            sides = (instruction_for(name, "query"), instruction_for(name, "corpus"))
            return Prompts(*map(format_prompt, sides))
    raise InputError(
        f"no instruction for task {task.name!r}: {nearest(task.name, known_tasks())}; "
        f"or say it with --instruction '{task.name}=...'"
    )


def _conditions(subject: Subject, task: Task, instructions: dict[str, str]) -> record.Json:
    """All that decides the scores."""
    prompts = prompts_of(subject, task, instructions)
    settings = task.settings
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "precision": subject.precision,
        "max_tokens": subject.max_tokens,
        "task": task.name,
        "mteb_task": settings.mteb,
        "identical_to_mteb": bool(settings.mteb) and settings.identical,
        "kind": task.kind,
        "split": task.split,
        "data_revision": task.revision,
        "prompt": {"query": prompts.query, "corpus": prompts.corpus},
        "settings": settings.model_dump(exclude={"mteb", "identical"}),
    }


@dataclass
class Meter:
    """Counts what is embedded for one task."""

    started: float = field(default_factory=time.monotonic)
    texts: int = 0
    tokens: int = 0
    cut: int = 0
    new_tokens: int = 0
    encode_seconds: float = 0.0

    def counted(self) -> record.Json:
        return {"texts": self.texts, "tokens": self.tokens, "texts_cut": self.cut}

    def embed_with(self, embedder: Embedder) -> Embed:
        """Count what goes through ``embedder``, cached or not."""

        def embed(texts: Sequence[str], prompt: str) -> np.ndarray:
            encoded = embedder(texts, prompt)
            self.texts += len(texts)
            self.tokens += int(encoded.num_tokens.sum())
            self.cut += int(encoded.truncated.sum())
            return encoded.vectors

        return embed


def metered(subject: Subject, meter: Meter) -> EncodeFn:
    """The subject's encode function, its tokens and seconds counted."""
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
    """What differs from run to run."""
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
    on_progress: Callable[[Progress], None] | None,
) -> None:
    meter, total, done = Meter(), _texts_in(task), 0
    record.peak_memory(subject, reset=True)

    def advance(texts: int) -> None:
        nonlocal done
        done += texts
        if on_progress:
            on_progress(Progress(task.name, done, max(total, done)))

    advance(0)
    if subject.lexical is not None:
        outcome = lexical(task, subject.lexical)
    else:
        embedder = Embedder(subject, metered(subject, meter), folder=cache, on_texts=advance)
        outcome = run_task(task, meter.embed_with(embedder), Prompts(**conditions["prompt"]))
    dropped = list(task.data.dropped) if isinstance(task.data, Retrieval) else []
    counted = {**meter.counted(), "queries_dropped": dropped}
    record.write(
        folder,
        task.name,
        result=record.mteb_result(task.name, task.revision, task.split, outcome),
        record={"conditions": conditions, "counted": counted, "environment": record.environment(subject)},
        items=outcome.items,
        timing=timing_of(subject, meter),
    )


def _texts_in(task: Task) -> int:
    """How many texts a task embeds, for the estimate of what is left."""
    data = task.data
    if isinstance(data, Retrieval):
        return len(data.passage_ids) + len(data.queries)
    if isinstance(data, Pairs):
        return 2 * len(data.text1)
    if isinstance(data, Labelled):
        return len(data.texts)
    if isinstance(data, Sets):
        return sum(map(len, data.texts))
    return sum(map(len, data.human)) + sum(map(len, data.machine))
