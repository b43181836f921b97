"""A batch of examples as texts, prompts, and a table of which passages are negatives of which query.

Shapes: Q queries, C passages.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from nvembed.data.example import Example, prompts
from nvembed.data.rows import text_key
from nvembed.errors import InputError


@dataclass(frozen=True)
class ExampleBatch:
    """Texts of one step, and which of them the loss compares.

    Attributes:
        queries, query_prompts: Q texts, and the prompt of each.
        passages, passage_prompts: C texts: positive and negatives of the first query, then of the next.
        positive: (Q,) int64, the column of each query's positive.
        allowed: (Q, C) bool, the passages in each query's softmax: its positive and its hard negatives; with
            in-batch negatives also the passages of other queries, except those that may answer it.
    """

    queries: tuple[str, ...]
    query_prompts: tuple[str, ...]
    passages: tuple[str, ...]
    passage_prompts: tuple[str, ...]
    positive: np.ndarray
    allowed: np.ndarray


def collate(
    examples: Sequence[Example],
    *,
    negatives: int,
    in_batch: bool,
    alone: Collection[str] = (),
    prompts: Callable[[Example], tuple[str, str]] = prompts,
) -> ExampleBatch:
    """Lay out a batch: of each example the query, its first positive, and its first hard negatives.

    Another query's passage is masked as a false negative when it is one of the query's own positives by id or
    by text, when it equals the query, or when it is a positive of a record with the same query.

    Args:
        negatives: most hard negatives per query: the first ones of each record.
        in_batch: use the passages of other queries as negatives (paper: stage 1).
        alone: tasks whose queries have no in-batch negatives in any case.
        prompts: example -> the prompts of its query and its passages.

    Raises:
        InputError: no example.

    Paper: section 3.3 (in-batch negatives in stage 1, none in stage 2). Differs: the paper masks nothing; a
    passage known to be right is never useful as a negative.
    """
    if not examples:
        raise InputError("expected a batch of one example or more, got none")
    passages: list[str] = []
    passage_prompts: list[str] = []
    identities: list[tuple[bytes, str]] = []  # (text, id) of each passage
    positive, owner = [], []
    for row, example in enumerate(examples):
        wrong = example.hard_negatives[:negatives]
        ids = [
            _id(example.positive_ids, 0),
            *(_id(example.hard_negative_ids, i) for i in range(len(wrong))),
        ]
        positive.append(len(passages))
        passages += [example.positives[0], *wrong]
        identities += [
            (text_key(text), name) for text, name in zip(passages[positive[-1] :], ids, strict=True)
        ]
        passage_prompts += [prompts(example)[1]] * len(ids)
        owner += [row] * len(ids)
    own = np.arange(len(examples))[:, None] == np.array(owner)[None, :]
    shared = np.array([in_batch and example.task not in alone for example in examples])
    allowed = own | (shared[:, None] & ~_may_be_right(examples, identities))
    return ExampleBatch(
        queries=tuple(example.query for example in examples),
        query_prompts=tuple(prompts(example)[0] for example in examples),
        passages=tuple(passages),
        passage_prompts=tuple(passage_prompts),
        positive=np.array(positive, dtype=np.int64),
        allowed=allowed,
    )


def _may_be_right(examples: Sequence[Example], identities: Sequence[tuple[bytes, str]]) -> np.ndarray:
    """Return (Q, C) bool: whether the batch itself shows that the passage answers the query."""
    right: dict[bytes, tuple[set[bytes], set[str]]] = {}
    for example in examples:
        key = text_key(example.query)
        texts, ids = right.setdefault(key, ({key}, set()))
        texts.update(text_key(text) for text in example.positives)
        ids.update(example.positive_ids)
    with_text: dict[bytes, list[int]] = defaultdict(list)
    with_id: dict[str, list[int]] = defaultdict(list)
    for column, (text, name) in enumerate(identities):
        with_text[text].append(column)
        with_id[name].append(column)
    table = np.zeros((len(examples), len(identities)), dtype=bool)
    for row, example in enumerate(examples):
        texts, ids = right[text_key(example.query)]
        for columns in (*(with_text[text] for text in texts), *(with_id[name] for name in ids)):
            table[row, columns] = True
    return table


def _id(ids: Sequence[str], index: int) -> str:
    return ids[index] if ids else ""
