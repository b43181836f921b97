"""The routes that search an index."""

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from nvembed.errors import InputError, NvembedError
from nvembed.serve.apis import embed, json_response, parsed
from nvembed.serve.batcher import expired
from nvembed.serve.engine import EmbedRequest
from nvembed.serve.model import SearchQuery, ServedIndex
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
    """Searches in the index, a few at a time. Belongs to the event loop's thread."""

    def __init__(self, state: State, index: ServedIndex) -> None:
        self.state, self.index = state, index
        self._at_work = 0

    async def hits(self, request: Request, body: SearchBody) -> tuple[list[dict[str, Any]], str]:
        """Return the best passages for a query, best first, and the prompt of its vector.

        Raises:
            RefusedError: the request cannot be served.
        """
        state, index = self.state, self.index
        for name in body.indexes:
            if name != index.name:
                message = f"no index {name!r:.100} is served here: expected {index.name!r}"
                raise RefusedError(404, "index_not_found", message, param="indexes")
        vector, prompt = None, ""
        if body.mode != "text":
            own = index.query_prompt if body.instruction is None else None
            embed_request = EmbedRequest(
                [body.query], "query", body.instruction, None, "END", "query", index.max_length, prompt=own
            )
            result = await embed(state, request, embed_request)
            vector, prompt = result.vectors[0], result.prompt
        state.serving()
        query = SearchQuery(body.query, body.mode, body.top, body.where, body.id)
        found = await self.on_thread(partial(index.find, query, vector), request.state.ticket.deadline)
        return [{**hit, "index": index.name} for hit in found], prompt

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
    index = searches.index
    hits = responses(SearchResponse, OpenAIErrorResponse)

    @router.post("/search", responses=hits, openapi_extra=body_schema(SearchBody))
    async def search(request: Request) -> Response:
        """Return the best passages for a query, best first."""
        body = await parsed(state, request, SearchBody)
        hits, prompt = await searches.hits(request, body)
        return await asyncio.to_thread(json_response, {"hits": hits, "prompt": prompt})

    @router.get("/index", responses=responses(IndexResponse, OpenAIErrorResponse))
    async def about(request: Request) -> Response:
        """Describe the index and the fields for filters."""
        fields = await searches.on_thread(index.fields, request.state.ticket.deadline)
        facts = {"name": index.name, "fields": fields, "query_prompt": index.query_prompt}
        return json_response({**facts, "map": index.map is not None, "ask": chat})

    @router.get("/index/map", responses=responses(dict[str, Any], OpenAIErrorResponse))
    async def index_map() -> Response:
        """Return the map of the corpus that nvembed cluster wrote."""
        if index.map is None:
            raise RefusedError(404, "no_map", "this server was started without --index-map")
        return Response(index.map, media_type="application/json")

    return router
