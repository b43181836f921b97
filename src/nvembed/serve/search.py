"""The routes that search indexes."""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Request, Response

from nvembed.errors import InputError, NvembedError
from nvembed.serve.apis import embed, json_response, parsed
from nvembed.serve.batcher import expired
from nvembed.serve.engine import EmbedRequest, EmbedResult
from nvembed.serve.model import IndexFacts, SearchQuery, ServedIndex, ServedIndexes
from nvembed.serve.protocol import (
    IndexResponse,
    OpenAIErrorResponse,
    SearchBody,
    SearchResponse,
    body_schema,
    responses,
)
from nvembed.serve.refusal import RefusedError
from nvembed.serve.state import SEARCHES_AT_ONCE, State

WAITING = 64  # searches, beside those at work
T = TypeVar("T")


class Searches:
    """Searches in the indexes, a few at a time. Belongs to the event loop's thread."""

    def __init__(self, state: State, indexes: ServedIndexes) -> None:
        self.state, self.find = state, indexes.find
        self.indexes = {index.name: index for index in indexes.indexes}
        self._at_work = 0

    def named(self, name: str) -> ServedIndex:
        """Return an index; "" is the first one.

        Raises:
            RefusedError: 404, there is no such index.
        """
        if name and name not in self.indexes:
            names = ", ".join(map(repr, self.indexes))
            message = f"no index {name!r:.100} is served here: expected one of {names}"
            raise RefusedError(404, "index_not_found", message, param="indexes")
        return self.indexes[name] if name else next(iter(self.indexes.values()))

    async def hits(self, request: Request, body: SearchBody) -> tuple[list[dict[str, Any]], str]:
        """Return the best passages for a query, best first, and the prompt of its vector.

        Raises:
            RefusedError: the request cannot be served.
        """
        chosen = [self.named(name) for name in dict.fromkeys(body.indexes)] or list(self.indexes.values())
        deadline = request.state.ticket.deadline
        vectors: dict[str, np.ndarray | None] = {index.name: None for index in chosen}
        prompts = [""]
        if body.mode != "text":
            facts = await self.on_thread(lambda: [index.facts() for index in chosen], deadline)
            vectors, prompts = await self._vectors(request, body, dict(zip(vectors, facts, strict=True)))
        self.state.serving()
        query = SearchQuery(body.query, body.mode, body.top, body.where, body.id)
        return await self.on_thread(partial(self.find, query, vectors), deadline), prompts[0]

    async def _vectors(
        self, request: Request, body: SearchBody, facts: dict[str, IndexFacts]
    ) -> tuple[dict[str, np.ndarray | None], list[str]]:
        """Return the query's vector for each index, each distinct one computed once, and their prompts."""
        vectors: dict[str, np.ndarray | None] = {}
        prompts: list[str] = []
        known: dict[tuple[str, int], EmbedResult] = {}
        for name, one in facts.items():
            if one.embed is not None:
                work = partial(one.embed, body.query, body.instruction)
                vectors[name], prompt = await self.on_thread(work, request.state.ticket.deadline)
            else:
                key = (one.query_prompt if body.instruction is None else "", one.max_length)
                if key not in known:
                    own = one.query_prompt if body.instruction is None else None
                    embed_request = EmbedRequest(
                        *([body.query], "query", body.instruction, None, "END", "query", one.max_length),
                        prompt=own,
                    )
                    known[key] = await embed(self.state, request, embed_request)
                vectors[name], prompt = known[key].vectors[0], known[key].prompt
            prompts.append(prompt)
        return vectors, prompts

    async def on_thread(self, work: Callable[[], T], deadline: float) -> T:
        """Run a function of an index on one of the search threads.

        Raises:
            RefusedError: too many searches, no time left, or the function's error.
        """
        if self._at_work >= SEARCHES_AT_ONCE + WAITING:
            message = f"{self._at_work} searches are running: try again"
            raise RefusedError(429, "busy", message, retry_after_s=1)
        self._at_work += 1
        state = self.state
        try:
            async with asyncio.timeout(deadline - monotonic()):
                return await asyncio.get_running_loop().run_in_executor(state.search_threads, work)
        except TimeoutError as error:
            raise expired() from error
        except InputError as error:
            raise RefusedError(400, "bad_filter", str(error), param="where") from error
        except NvembedError as error:
            state.watch.event("error", "index failed", {"error": type(error).__name__})
            what = "the index cannot be searched now: see the server's log"
            raise RefusedError(503, "index_failed", what, retry_after_s=5) from error
        finally:
            self._at_work -= 1


def search_routes(state: State, searches: Searches, chat: str | None) -> APIRouter:
    """Return ``/search``, ``/index`` and ``/index/map``; ``chat`` is the name of the chat model."""
    router = APIRouter(tags=["search"])
    hits = responses(SearchResponse, OpenAIErrorResponse)

    @router.post("/search", responses=hits, openapi_extra=body_schema(SearchBody))
    async def search(request: Request) -> Response:
        """Return the best passages for a query from some or all indexes, best first."""
        body = await parsed(state, request, SearchBody)
        hits, prompt = await searches.hits(request, body)
        return await asyncio.to_thread(json_response, {"hits": hits, "prompt": prompt})

    @router.get("/index", responses=responses(IndexResponse, OpenAIErrorResponse))
    async def about(request: Request, name: str = "") -> Response:
        """Describe an index (default: the first) and its fields for filters; name all indexes."""
        index = searches.named(name)
        facts = await searches.on_thread(index.facts, request.state.ticket.deadline)
        return json_response(
            {
                "name": index.name,
                "model": facts.model,
                "fields": facts.fields,
                "query_prompt": facts.query_prompt,
                "map": index.map is not None,
                "indexes": list(searches.indexes),
                "ask": chat,
            }
        )

    @router.get("/index/map", responses=responses(dict[str, Any], OpenAIErrorResponse))
    async def index_map(name: str = "") -> Response:
        """Return the map of an index (default: the first) that nvembed cluster wrote."""
        index = searches.named(name)
        if index.map is None:
            raise RefusedError(404, "no_map", "this server was started without --index-map for this index")
        return Response(index.map, media_type="application/json")

    return router
