"""The passages for a query: by vector, by words, or both lists joined by reciprocal rank fusion.

D numbers of a vector.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

import numpy as np

from nvembed.errors import InputError
from nvembed.search.store import Scored, Store
from nvembed.search.where import Condition
from nvembed.text.mark import sentences, word_spans
from nvembed.text.words import Span, Words
from nvembed.vectors.search import top_k

Mode = Literal["hybrid", "vector", "text"]
Mark = Literal["words", "sentence", "none"]
RRF_K = 60  # as in Cormack et al. (2009)
FUSED_DEPTH = 50  # least number of passages of each list for fusion
# Scores that differ by less count as equal: the last bits of a vector depend on the batch it was computed in.
TIE = 1e-5
MAX_TIED = 4096  # passages that are read to order equal ones; of more, the store's choice decides


@dataclass(frozen=True)
class Hit:
    """A passage for a query.

    ``score``: the cosine (vector), ``1 / rank`` (text), or the fused score (hybrid). ``ranks``: its rank,
    from 1, in each list that contains it. ``marks``: the spans of ``text`` that match the query. ``index``:
    the name of its index, of a search in several.
    """

    score: float
    ranks: dict[str, int]
    id: str
    document: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]
    marks: tuple[Span, ...] = ()
    index: str = ""


@dataclass(frozen=True)
class SearchResult:
    """The hits of a query, best first.

    ``words_matched``: whether any passage has a word of the query; None in mode ``vector``.
    """

    hits: list[Hit]
    words_matched: bool | None


def retrieve(
    store: Store,
    words: Sequence[str],
    vector_D: np.ndarray | None,
    *,
    mode: Mode = "hybrid",
    top: int = 5,
    where: Sequence[Condition] = (),
) -> SearchResult:
    """Return the ``top`` best passages for a query, or all that match, without marks.

    Of equal scores (``TIE``) the lower id comes first; of equal fused scores, the better by vector.

    Args:
        words: the words to search, as ``Words.query`` returns them.
        vector_D: the unit vector of the query with its prompt; None for mode ``text``.
        where: conditions for every hit; see ``parse_where``.

    Raises:
        InputError: ``top`` is below 1, or the mode needs a vector.
    """
    if top < 1:
        raise InputError(f"top is {top}; expected at least 1")
    if mode != "text" and vector_D is None:
        raise InputError(f"mode {mode!r} needs the query's vector; mode 'text' does not")
    depth = max(top, FUSED_DEPTH) if mode == "hybrid" else top
    lists: dict[str, list[Scored]] = {}
    if mode != "text" and vector_D is not None:
        lists["vector"] = _best(lambda count: _nearest(store, vector_D, count, where), depth)
    if mode != "vector":
        rows = _best(lambda count: store.matching(words, count, where), depth) if words else []
        lists["text"] = [(row, 1 / rank) for rank, (row, _) in enumerate(rows, start=1)]
    ranks: dict[str, dict[str, int]] = {}
    for name, ranked in lists.items():
        for rank, (row, _) in enumerate(ranked, start=1):
            ranks.setdefault(row.id, {})[name] = rank
    rows_by_id = {row.id: (row, score) for ranked in lists.values() for row, score in ranked}
    hits = []
    for id_, its_ranks in ranks.items():
        row, score = rows_by_id[id_]
        hits.append(Hit(fused(its_ranks.values()) if mode == "hybrid" else score, its_ranks, *row))
    if mode == "hybrid":
        hits.sort(key=lambda hit: -hit.score)  # stable: of equal ones the better by vector comes first
    return SearchResult(hits[:top], bool(lists["text"]) if "text" in lists else None)


def fused(ranks: Any) -> float:
    """Return the sum of ``1 / (RRF_K + rank)`` over the lists that contain a passage."""
    return float(sum(1 / (RRF_K + rank) for rank in ranks))


def mark_words(hits: Sequence[Hit], query: str, words: Words) -> list[Hit]:
    """Return the hits with the query's words marked."""
    marks = word_spans(query, [hit.text for hit in hits], words)
    return [replace(hit, marks=tuple(spans)) for hit, spans in zip(hits, marks, strict=True)]


def mark_sentences(
    hits: Sequence[Hit], vector_D: np.ndarray, encode: Callable[[list[str]], np.ndarray]
) -> list[Hit]:
    """Return the hits with their best sentence marked: its vector is the nearest to that of the query.

    Args:
        encode: texts -> float32 (n, D), with the prompt of passages; called once with every sentence.
    """
    spans = [sentences(hit.text) for hit in hits]
    pieces = [hit.text[a:b] for hit, its in zip(hits, spans, strict=True) for a, b in its]
    scores = encode(pieces) @ vector_D if pieces else np.empty(0)
    marked, place = [], 0
    for hit, its in zip(hits, spans, strict=True):
        best = (its[int(np.argmax(scores[place : place + len(its)]))],) if its else ()
        marked.append(replace(hit, marks=best))
        place += len(its)
    return marked


def _best(fetch: Callable[[int], list[Scored]], count: int) -> list[Scored]:
    """Return the ``count`` best passages; those whose scores count as equal (``TIE``) come by id.

    Args:
        fetch: returns the best passages in any order, at least as many as it is called with, or all.
    """
    depth = count + 1
    while True:
        scored = sorted(fetch(depth), key=lambda pair: -pair[1])
        complete = len(scored) < depth or not _equal(scored[count - 1][1], scored[-1][1])
        if complete or depth >= MAX_TIED:
            break
        depth = min(4 * depth, MAX_TIED)
    ordered: list[Scored] = []
    while len(ordered) < min(count, len(scored)):
        score = scored[len(ordered)][1]
        tied = takewhile(lambda pair: _equal(score, pair[1]), scored[len(ordered) :])  # noqa: B023
        ordered += ((row, score) for row in sorted((row for row, _ in tied), key=lambda row: row.id))
    return ordered[:count]


def _equal(better: float, score: float) -> bool:
    return better - score <= TIE * max(1.0, abs(better))


def _nearest(store: Store, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> list[Scored]:
    near = store.nearest(np.asarray(vector_D, dtype=np.float32), count, where)
    if not near.rows:
        return []
    scores, places = top_k(np.asarray(vector_D)[None], [near.vectors], len(near.rows))
    return [(near.rows[int(i)], float(score)) for score, i in zip(scores[0], places[0], strict=True)]
