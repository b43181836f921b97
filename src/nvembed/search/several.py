"""A search in several indexes, whose hits are merged by what can be compared.  D numbers of a vector.

Cosines can be compared where model and query vector are the same: such indexes have one list by vector. Ranks
by words cannot, because the weight of a word depends on its index: each index has a list of its own. Lists
are merged by reciprocal rank fusion.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from nvembed.errors import DataError, InputError
from nvembed.search.index import PassageIndex
from nvembed.search.retrieve import FUSED_DEPTH, Hit, Mode, SearchResult, fused, mark_words


def search_several(
    indexes: Mapping[str, PassageIndex],
    query: str,
    vectors: Mapping[str, np.ndarray | None],
    *,
    mode: Mode = "hybrid",
    top: int = 5,
    where: Sequence[str] = (),
    passage: str | None = None,
) -> SearchResult:
    """Return the ``top`` best passages of some indexes for a query, best first, with its words marked.

    The score of a hit is the cosine if one list by vector is searched, and otherwise the fused score.

    Args:
        vectors: the names of the indexes to search; for each the query's unit vector for its model, with the
            prompt of the index, or None in mode ``text``.
        where: filters for every index.
        passage: search only passages with this id.

    Raises:
        InputError: a filter cannot be used in one of the indexes, ``top`` is below 1, or a vector is missing.
        DataError: an index cannot be read.
    """
    modes: tuple[Mode, ...] = (mode,) if mode != "hybrid" or len(vectors) == 1 else ("vector", "text")
    depth = max(top, FUSED_DEPTH) if len(modes) > 1 else top
    results: dict[tuple[str, Mode], SearchResult] = {}
    for name, vector_D in vectors.items():
        index = indexes[name]
        for one in modes:
            try:
                result = index.search(query, vector_D, mode=one, top=depth, where=where, passage=passage)
            except (InputError, DataError) as error:
                raise (error if len(vectors) == 1 else type(error)(f"index {name!r}: {error}")) from error
            hits = [replace(hit, index=name) for hit in mark_words(result.hits, query, index.words)]
            results[name, one] = replace(result, hits=hits)
    matched = [result.words_matched for result in results.values() if result.words_matched is not None]
    if len(vectors) == 1:
        (result,) = results.values()
        return result
    lists = [("text", results[name, "text"].hits) for name in vectors if "text" in modes]
    if "vector" in modes:
        for names in reversed(list(_spaces(indexes, vectors))):
            hits = [hit for name in names for hit in results[name, "vector"].hits]
            lists.insert(0, ("vector", sorted(hits, key=lambda hit: -hit.score)))
    return SearchResult(_merged(lists)[:top], any(matched) if matched else None)


def _spaces(
    indexes: Mapping[str, PassageIndex], vectors: Mapping[str, np.ndarray | None]
) -> Iterator[list[str]]:
    """Yield the names of the indexes whose cosines can be compared."""
    spaces: dict[tuple[str, bytes], list[str]] = {}
    for name, vector_D in vectors.items():
        content = b"" if vector_D is None else np.asarray(vector_D, np.float32).tobytes()
        spaces.setdefault((indexes[name].record.fingerprint, content), []).append(name)
    yield from spaces.values()


def _merged(lists: Sequence[tuple[str, Sequence[Hit]]]) -> list[Hit]:
    ranks: dict[tuple[str, str], dict[str, int]] = {}
    hits: dict[tuple[str, str], Hit] = {}
    for kind, ranked in lists:
        for rank, hit in enumerate(ranked, start=1):
            ranks.setdefault((hit.index, hit.id), {})[kind] = rank
            hits.setdefault((hit.index, hit.id), hit)
    alone = len(lists) == 1
    merged = [
        replace(hit, ranks=ranks[key], score=hit.score if alone else fused(ranks[key].values()))
        for key, hit in hits.items()
    ]
    return sorted(merged, key=lambda hit: -hit.score)  # stable: of equal ones the first list's come first
