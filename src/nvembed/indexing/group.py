"""Several indexes that are searched together, by name."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nvembed.errors import InputError
from nvembed.indexing.hits import Hits
from nvembed.indexing.index import Index, conditions
from nvembed.search.retrieve import Mode
from nvembed.search.several import search_several


class IndexGroup:
    """Open indexes with names. ``asearch`` and ``adocument`` are the methods for asynchronous code."""

    def __init__(self, indexes: Mapping[str, Index]) -> None:
        self.indexes = dict(indexes)

    def search(
        self,
        query: str,
        *,
        indexes: Sequence[str] = (),
        top: int = 5,
        where: str | Sequence[str] = (),
        mode: Mode = "hybrid",
    ) -> Hits:
        """Return the best passages of some indexes, or of all, best first; each hit names its ``index``.

        Hits are merged by cosine where model and prompt are the same, else by reciprocal rank fusion.

        Raises:
            InputError: an index has no such name, or a filter cannot be used in one of them.
            DataError: an index cannot be read.
        """
        chosen = {name: self.named(name) for name in indexes or self.indexes}
        vectors = {name: None if mode == "text" else one.query_vector(query) for name, one in chosen.items()}
        passages = {name: index.passages for name, index in chosen.items()}
        result = search_several(passages, query, vectors, mode=mode, top=top, where=conditions(where))
        return Hits(result.hits, query, result.words_matched)

    def named(self, name: str) -> Index:
        """Return an index.

        Raises:
            InputError: there is no such name.
        """
        if name not in self.indexes:
            raise InputError(f"no index {name!r}; expected one of {', '.join(map(repr, self.indexes))}")
        return self.indexes[name]

    async def asearch(
        self,
        query: str,
        *,
        indexes: Sequence[str] = (),
        top: int = 5,
        where: str | Sequence[str] = (),
        mode: Mode = "hybrid",
    ) -> Hits:
        work = partial(self.search, query, indexes=indexes, top=top, where=where, mode=mode)
        return await asyncio.to_thread(work)

    async def adocument(self, name: str, id: str) -> tuple[str, dict[str, Any]]:
        """Return the text and the metadata of a document of an index."""
        return await self.named(name).adocument(id)
