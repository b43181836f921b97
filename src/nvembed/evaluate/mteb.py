"""mteb's own tasks and benchmarks, run by mteb's code on our vectors."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from nvembed.errors import DownloadError, InputError, needs_extra
from nvembed.evaluate import record
from nvembed.evaluate.cache import Embedder
from nvembed.evaluate.outcome import Embed, Items, PromptSource
from nvembed.evaluate.run import Meter, check_instructions, metered, own_prompts, write_result
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.subject import Subject
from nvembed.recipe import nearest
from nvembed.text.prompt import Side, format_prompt, instruction_for, known_tasks
from nvembed.vectors.metric import paired_cosine, score_run


def find_mteb_tasks(names: Sequence[str]) -> list[Any]:
    """Return mteb's tasks by name, or those of a benchmark such as ``MTEB(eng, v1)`` or ``BEIR``.

    Raises:
        InputError: a name is neither a task nor a benchmark.
        MissingExtraError: mteb is not installed.
    """
    mteb = _mteb()
    benchmarks = {benchmark.name: benchmark for benchmark in mteb.get_benchmarks()}
    known = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False, exclude_aggregate=False)}
    tasks: dict[str, Any] = {}
    for name in names:
        if name in benchmarks:
            tasks |= {task.metadata.name: task for task in benchmarks[name].tasks}
        elif name in known:
            tasks[name] = mteb.get_task(name)
        else:
            raise InputError(f"no task or benchmark {name!r} in mteb: {nearest(name, [*benchmarks, *known])}")
    return list(tasks.values())


class MtebEncoder:
    """mteb's encoder protocol over an embed function.

    Args:
        prompt_for: mteb's task metadata and the side of the texts (None in a symmetric task) -> the prompt.
    """

    def __init__(self, subject: Subject, embed: Embed, prompt_for: Callable[[Any, Side | None], str]) -> None:
        from mteb.models.model_meta import ModelMeta

        self.embed = embed
        self.prompt_for = prompt_for
        meta = {"name": record.mteb_name(subject), "revision": subject.fingerprint}
        self.mteb_model_meta = ModelMeta.create_empty(meta)

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,  # noqa: ARG002  the protocol's arguments
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,
        batch_size: int = 0,  # noqa: ARG002  the embed function batches by itself
        show_progress_bar: bool = True,  # noqa: ARG002
    ) -> np.ndarray:
        """Embed the texts of mteb's data loader."""
        texts = [text for batch in inputs for text in batch["text"]]
        side: Side | None = None
        if prompt_type is not None:
            side = "corpus" if prompt_type.value == "document" else "query"
        return self.embed(texts, self.prompt_for(task_metadata, side))

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        return paired_cosine(np.asarray(embeddings1), np.asarray(embeddings2))


def run_mteb(
    subject: Subject,
    tasks: Sequence[Any],
    out: Path,
    *,
    cache: Path | None = None,
    instructions: dict[str, str] | None = None,
) -> list[str]:
    """Evaluate ``subject`` with mteb's code on mteb's tasks; write results as ``run.evaluate`` does.

    Returns: the names of the tasks that were run now; finished tasks are not repeated.

    Raises:
        InputError: the subject has no vectors, or takes no instructions.
        DownloadError: the data of a task could not be fetched.
    """
    if subject.encode is None:
        raise InputError(
            f"{subject.name} has no vectors; mteb's tasks need them. Pass --data for local folders."
        )
    instructions = instructions or {}
    check_instructions(subject, instructions)
    folder = record.folder_of(out, subject, instructions=instructions)
    ran = []
    for task in tasks:
        conditions = _conditions(subject, task.metadata, instructions)
        if record.finished(folder, task.metadata.name, conditions):
            continue
        record.write_meta(folder, subject)
        _run_one(subject, task, conditions, folder, cache=cache, instructions=instructions)
        ran.append(task.metadata.name)
    return ran


def prompt_for(
    subject: Subject, metadata: Any, side: Side | None, instructions: Mapping[str, str]
) -> tuple[str, PromptSource]:
    """Return the prompt of one side of an mteb task (None: a symmetric task), and its origin.

    For a model with instructions it comes from ``instructions``, then from the recipe. For a task that is in
    neither, it is the prompt of mteb's own loader of NV-Embed v2: that in the metadata of the task, else that
    of the type of task. As in mteb, documents have it too, if the metadata have no prompt for each side.
    """
    if not subject.instructions:
        prompts = own_prompts(subject, [metadata.name], metadata.type, side)
        return prompts.query, prompts.source
    name = metadata.name
    if name in instructions:
        return format_prompt("" if side == "corpus" else instructions[name]), "option"
    for spelling in (name, name.removeprefix("Nano"), name.removeprefix("Nano").removesuffix("Retrieval")):
        if spelling in known_tasks():
            return format_prompt(instruction_for(spelling, side or "query")), "recipe"
    own = metadata.prompt
    if isinstance(own, dict):
        own = own.get("document" if side == "corpus" else "query", "")
    if metadata.prompt:
        return format_prompt(own), "mteb task"
    from mteb.abstasks.abstask import get_abstask_prompt

    return format_prompt(get_abstask_prompt(name)), "mteb task type"


def prompt_note(subject: Subject, tasks: Sequence[Any], instructions: Mapping[str, str]) -> str:
    """Return a message that names the tasks whose instruction the recipe does not know, or ``""``."""
    of: dict[PromptSource, list[str]] = {}
    for task in tasks:
        if subject.instructions:
            _, source = prompt_for(subject, task.metadata, "query", instructions)
            of.setdefault(source, []).append(task.metadata.name)
    parts = [
        f"{len(of[source])} use mteb's prompt for {what} ({_listed(of[source])})"
        for source, what in _FALLBACKS.items()
        if source in of
    ]
    if not parts:
        return ""
    count = sum(len(of.get(source, ())) for source in _FALLBACKS)
    return (
        f"{subject.name}: the recipe has no instruction for {count} of {len(tasks)} tasks: "
        f"{'; '.join(parts)}. To set one: --instruction TASK=INSTRUCTION"
    )


_FALLBACKS: dict[PromptSource, str] = {"mteb task": "the task", "mteb task type": "the type of task"}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _conditions(subject: Subject, metadata: Any, instructions: Mapping[str, str]) -> record.Json:
    sides: tuple[Side | None, ...] = ("query", "corpus") if metadata.type in SIDED else (None, None)
    (query, source), (corpus, _) = (prompt_for(subject, metadata, side, instructions) for side in sides)
    return {
        "model": subject.name,
        "fingerprint": subject.fingerprint,
        "precision": subject.precision,
        "max_tokens": subject.max_tokens,
        "task": metadata.name,
        "mteb_task": metadata.name,
        "test_set": "identical",
        "kind": metadata.type,
        "split": ",".join(metadata.eval_splits),
        "data_revision": metadata.revision,
        "prompt": {"query": query, "corpus": corpus, "source": source},
    }


# Types of mteb's tasks with separate prompts for queries and documents.
SIDED = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")


def _run_one(
    subject: Subject,
    task: Any,
    conditions: record.Json,
    folder: Path,
    *,
    cache: Path | None,
    instructions: Mapping[str, str],
) -> None:
    meter = Meter()
    record.peak_memory(subject, reset=True)
    embedder = Embedder(subject, metered(subject, meter), folder=cache, on_texts=lambda _: None)
    encoder = MtebEncoder(
        subject,
        meter.embed_with(embedder),
        lambda metadata, side: prompt_for(subject, metadata, side, instructions)[0],
    )
    with TemporaryDirectory() as predictions:
        ranks = conditions["kind"] in ("Retrieval", "Reranking") and hasattr(task, "k_values")
        try:
            result = _mteb().evaluate(
                encoder,
                task,
                cache=None,
                co2_tracker=False,
                show_progress_bar=False,
                prediction_folder=predictions if ranks else None,
            )
        except (ConnectionError, FileNotFoundError) as error:
            raise DownloadError(
                f"the data of {task.metadata.name} could not be fetched ({error}). Try again online, or "
                "pass --data with folders of tasks."
            ) from error
        items = _ranking_items(task, Path(predictions), conditions["split"]) if ranks else None
    content = result.task_results[0].to_dict()
    content |= {"evaluation_time": None, "date": None, "evaluation_phases": None}
    rounded, counted = record.rounded(content, 6), meter.counted()
    write_result(folder, subject, meter, conditions, result=rounded, counted=counted, items=items)


def _ranking_items(task: Any, predictions: Path, split: str) -> Items | None:
    """Score mteb's rankings of each query, for comparisons; None if mteb has unloaded the data."""
    files = list(predictions.glob("*.json"))
    if len(files) != 1 or not task.data_loaded:
        return None
    run = json.loads(files[0].read_text()).get("default", {}).get(split)
    qrels = task.dataset.get("default", {}).get(split, {}).get("relevant_docs")
    if not run or not qrels:
        return None
    metric = "map@1000" if task.metadata.type == "Reranking" else "ndcg@10"
    per_query = score_run(run, qrels, protocol().retrieval.cutoffs)[metric]
    return Items("mean", list(per_query), np.array(list(per_query.values())))


def _mteb() -> Any:
    with needs_extra("eval", "the evaluation on mteb's tasks"):
        import mteb
    return mteb
