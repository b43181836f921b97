"""Searching an index: what the server needs of one, a function and facts; and the routes."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, StrictInt, StrictStr

from nvembed.errors import InputError, NvembedError
from nvembed.serve import answers
from nvembed.serve.apis import embed, json_response
from nvembed.serve.engine import Asked
from nvembed.serve.jobs import expired
from nvembed.serve.refusal import RefusedError
from nvembed.serve.state import State

Mode = Literal["hybrid", "vector", "text"]
AT_ONCE, WAITING = 4, 64  # searches at work, and in line for it
MAX_TOP = 100
Words = Annotated[StrictStr, Field(max_length=20_000)]  # with a bound, pydantic refuses what is not Unicode


@dataclass(frozen=True)
class Wanted:
    """A search. ``where``: filters that all hold; ``id``: look for this passage alone."""

    query: str
    mode: Mode
    top: int
    where: Sequence[str]
    id: str | None


@dataclass(frozen=True)
class Index:
    """An index that can be searched.

    ``find`` blocks, is called from several threads, and raises InputError for a filter it cannot read; it is
    given the query's vector, or None in mode ``text``. ``fields``: what can be filtered on, with types.
    ``map`` is the JSON that ``nvembed cluster`` writes.
    """

    name: str
    fields: Mapping[str, str]
    query_prompt: str
    max_length: int
    find: Callable[[Wanted, np.ndarray | None], list[dict[str, Any]]]
    map: bytes | None = None


class SearchRequest(BaseModel):
    """``POST /search``."""

    query: Words = Field(min_length=1)
    mode: Mode = Field("hybrid", description="By vector, by words (text), or both joined by reciprocal rank.")
    top: StrictInt = Field(10, ge=1, le=MAX_TOP)
    where: list[Words] = Field(
        [], max_length=20, description='Filters, such as year >= 2020 and lang = "en".'
    )
    id: Words | None = Field(None, description="Look for this passage alone.")
    instruction: StrictStr | None = Field(None, description="In place of the index's own.")


def search_routes(state: State, index: Index) -> APIRouter:
    router = APIRouter(tags=["search"])
    places = asyncio.Semaphore(AT_ONCE)
    at_work = 0

    async def find(wanted: Wanted, vector: np.ndarray | None, deadline: float) -> list[dict[str, Any]]:
        nonlocal at_work
        if at_work >= AT_ONCE + WAITING:
            raise RefusedError(429, "busy", f"{at_work} searches are at work: try again", retry_after_s=1)
        at_work += 1
        try:
            async with asyncio.timeout(deadline - monotonic()), places:
                return await asyncio.to_thread(index.find, wanted, vector)
        except TimeoutError as error:
            raise expired() from error
        except InputError as error:
            raise RefusedError(400, "bad_filter", str(error), param="where") from error
        except NvembedError as error:
            state.watch.log.write("error", "index failed", {"error": type(error).__name__})
            message = (
                "the index cannot be read: if it was built again since, the server must be started again"
            )
            raise RefusedError(503, "index_failed", message) from error
        finally:
            at_work -= 1

    @router.post("/search", responses=answers.SEARCH)
    async def search(body: SearchRequest, request: Request) -> Response:
        """Return the passages that answer a query best, best first."""
        vector, prompt = None, ""
        if body.mode != "text":
            own = index.query_prompt if body.instruction is None else None
            asked = Asked(
                [body.query], "query", body.instruction, None, "END", "query", index.max_length, prompt=own
            )
            answer = await embed(state, request, asked)
            vector, prompt = answer.vectors[0], answer.prompt
        state.serving()
        wanted = Wanted(body.query, body.mode, body.top, body.where, body.id)
        hits = await find(wanted, vector, request.state.ticket.deadline)
        return json_response({"hits": hits, "prompt": prompt})

    @router.get("/index", responses=answers.INDEX)
    async def about() -> Response:
        """Say what is searched, and what can be filtered on."""
        facts = {"name": index.name, "fields": index.fields, "query_prompt": index.query_prompt}
        return json_response({**facts, "map": index.map is not None})

    @router.get("/index/map", responses=answers.INDEX_MAP)
    async def index_map() -> Response:
        """The corpus in the plane, as nvembed cluster wrote it."""
        if index.map is None:
            raise RefusedError(404, "no_map", "this server was started without --index-map")
        return Response(index.map, media_type="application/json")

    return router
