"""Retrieval and reranking, by vectors or by words."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from nvembed.errors import InputError
from nvembed.evaluate.outcome import Embed, Items, Prompts, TaskOutcome
from nvembed.evaluate.settings import protocol
from nvembed.evaluate.subject import LexicalFn
from nvembed.evaluate.tasks import Retrieval, Task
from nvembed.vectors.metric import score_run
from nvembed.vectors.search import top_k

PASSAGES_AT_ONCE = 16_384  # a block of 4,096 dimensions takes 256 MiB

Run = dict[str, dict[str, float]]


def retrieval(task: Task, data: Retrieval, embed: Embed, prompts: Prompts) -> TaskOutcome:
    """Search the whole corpus exactly, in blocks of passages, so that memory does not grow with the corpus.

    Main score: nDCG@10.
    """
    queries = embed(list(data.queries.values()), prompts.query)
    corpus = (embed(block, prompts.corpus) for block in blocks(data.passages(), PASSAGES_AT_ONCE))
    return _score(task, data, _run(data, *top_k(queries, corpus, protocol().retrieval.top_k)))


def reranking(task: Task, data: Retrieval, embed: Embed, prompts: Prompts) -> TaskOutcome:
    """Rank, for each query, the passages in its qrels. Main score: MAP@1000."""
    judged = {passage for grades in data.qrels.values() for passage in grades}
    listed = [(p, text) for p, text in zip(data.passage_ids, data.passages(), strict=True) if p in judged]
    row_of = {passage: row for row, (passage, _) in enumerate(listed)}
    passages = embed([text for _, text in listed], prompts.corpus)
    queries = embed(list(data.queries.values()), prompts.query)
    run: Run = {}
    for row, query in enumerate(data.queries):
        candidates = list(data.qrels[query])
        similarity = passages[[row_of[p] for p in candidates]] @ queries[row]
        run[query] = dict(zip(candidates, map(float, similarity), strict=True))
    return _score(task, data, run)


def lexical(task: Task, rank: LexicalFn) -> TaskOutcome:
    """Evaluate a function that ranks texts without vectors. The whole corpus is in memory.

    Raises:
        InputError: the task is neither retrieval nor reranking.
    """
    data = task.data
    if not isinstance(data, Retrieval):
        raise InputError(
            f"{task.name} is a {task.kind} task; a lexical baseline can only retrieve and rerank"
        )
    passages = list(data.passages())
    k = len(passages) if task.kind == "reranking" else protocol().retrieval.top_k
    run = _run(data, *rank(passages, list(data.queries.values()), k))
    if task.kind == "reranking":
        run = {query: {p: run[query][p] for p in data.qrels[query]} for query in run}
    return _score(task, data, run)


def blocks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    """Cut an iterator into lists of at most ``size``."""
    while block := list(islice(texts, size)):
        yield block


def _run(data: Retrieval, scores: np.ndarray, ids: np.ndarray) -> Run:
    return {
        query: {data.passage_ids[i]: float(s) for s, i in zip(scores[row], ids[row], strict=True)}
        for row, query in enumerate(data.queries)
    }


def _score(task: Task, data: Retrieval, run: Run) -> TaskOutcome:
    if task.settings.skip_identical_ids:
        run = {query: {p: s for p, s in hits.items() if p != query} for query, hits in run.items()}
    table = score_run(run, data.qrels, protocol().retrieval.cutoffs)
    means = {name.replace("@", "_at_"): float(np.mean(list(row.values()))) for name, row in table.items()}
    main = "map@1000" if task.kind == "reranking" else "ndcg@10"
    items = Items("mean", list(table[main]), np.array(list(table[main].values())))
    return TaskOutcome(means, main.replace("@", "_at_"), items)
