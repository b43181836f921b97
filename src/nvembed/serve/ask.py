"""The route that answers questions: as server-sent events, or as one JSON object."""

import asyncio
from collections.abc import AsyncGenerator
from time import monotonic
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from nvembed.serve.apis import gone, json_response, parsed
from nvembed.serve.batcher import expired
from nvembed.serve.model import ChatEvent, ServedChat
from nvembed.serve.protocol import AskBody, AskResponse, OpenAIErrorResponse, body_schema, responses
from nvembed.serve.refusal import RefusedError, envelope
from nvembed.serve.search import Searches
from nvembed.serve.state import State
from nvembed.serve.wire import to_json

QUESTIONS_AT_ONCE = 16  # more get 429
PING_S = 15.0  # without an event, a comment keeps the connection open
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def ask_routes(state: State, searches: Searches | None, chat: ServedChat | None) -> APIRouter:
    """Return ``/ask``; without an index or a chat model it refuses."""
    router = APIRouter(tags=["search"])
    tasks: set[asyncio.Task[None]] = set()

    @router.post(
        "/ask", responses=responses(AskResponse, OpenAIErrorResponse), openapi_extra=body_schema(AskBody)
    )
    async def ask(request: Request) -> Response:
        """Answer a question from the passages of the index, with citations.

        The answer comes as server-sent events: ``query``, if there is a conversation; ``passages``; ``text``
        for each piece; ``restart`` if the pieces so far are void; ``answer`` or ``error`` at the end.
        """
        if searches is None or chat is None:
            missing = "--index" if searches is None else "--chat-endpoint and --chat-model"
            what = f"this server does not answer questions: it was started without {missing}"
            raise RefusedError(501, "no_chat", what)
        body = await parsed(state, request, AskBody)
        state.serving()
        if len(tasks) >= QUESTIONS_AT_ONCE:
            what = f"{len(tasks)} questions are being answered: try again"
            raise RefusedError(429, "busy", what, retry_after_s=2)
        work = _Answering(state, request, _events(request, body, searches, chat))
        tasks.add(work.task)
        work.task.add_done_callback(tasks.discard)
        first = await work.next()  # an error before the first event has its own status
        if not body.stream:
            return json_response(await _collected(body.question, first, work))
        return StreamingResponse(_sent(first, work), media_type="text/event-stream", headers=_HEADERS)

    return router


async def _events(
    request: Request, body: AskBody, searches: Searches, chat: ServedChat
) -> AsyncGenerator[ChatEvent, None]:
    """Yield the events of an answer; the first one when the passages are there."""

    async def search(query: str) -> list[dict[str, Any]]:
        return (await searches.hits(request, body.search(query)))[0]

    history = [{"role": turn.role, "content": turn.content} for turn in body.history]
    rewritten: ChatEvent | None = None
    async for event in chat.answer(body.question, history, search):
        if event[0] == "query":
            rewritten = event
            continue
        if rewritten is not None:
            yield rewritten
            rewritten = None
        yield event


class _Answering:
    """A task that puts events into a queue until the time limit, or until the client goes away."""

    def __init__(self, state: State, request: Request, events: AsyncGenerator[ChatEvent, None]) -> None:
        self.state, self.request = state, request
        self._queue: asyncio.Queue[ChatEvent | Exception | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._run(events))
        self._watch = asyncio.create_task(gone(request))
        self._watch.add_done_callback(lambda _: self.task.cancel())
        self.task.add_done_callback(lambda _: self._watch.cancel())

    async def next(self) -> ChatEvent | None:
        """Return the next event, or None at the end.

        Raises:
            RefusedError: the question cannot be answered.
        """
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def _run(self, events: AsyncGenerator[ChatEvent, None]) -> None:
        last: Exception | None = None
        ticket = self.request.state.ticket
        try:
            async with asyncio.timeout(ticket.deadline - monotonic()):
                async for event in events:
                    self._queue.put_nowait(event)
        except TimeoutError:
            last = expired()
        except RefusedError as refusal:
            if refusal.code == "chat_failed":
                self.state.watch.event("error", "chat failed", {"error": refusal.message})
            last = refusal
        except asyncio.CancelledError:
            last = RefusedError(499, "gone", "the client closed the connection")
        except Exception as error:
            self.state.watch.crashed(error, ticket.id)
            last = RefusedError(
                500, "internal", f"internal error: see the server's log for request {ticket.id}"
            )
        self._queue.put_nowait(last)


async def _sent(first: ChatEvent | None, work: _Answering) -> AsyncGenerator[bytes, None]:
    """Yield events in the format of server-sent events."""
    event = first
    waiting: asyncio.Future[ChatEvent | None] | None = None
    try:
        while event is not None:
            yield _framed(*event)
            waiting = asyncio.ensure_future(work.next())
            while not (await asyncio.wait((waiting,), timeout=PING_S))[0]:
                yield b": ping\n\n"
            event = waiting.result()
    except RefusedError as refusal:
        work.request.state.ticket.code = refusal.code
        yield _framed("error", envelope("/ask", refusal))
    finally:
        work.task.cancel()
        if waiting is not None:
            waiting.cancel()  # its error would be reported as one that nobody took


def _framed(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), to_json(data))


async def _collected(question: str, first: ChatEvent | None, work: _Answering) -> dict[str, Any]:
    """Return the facts of all events but the pieces of text."""
    facts: dict[str, Any] = {"question": question, "query": question}
    event = first
    while event is not None:
        name, data = event
        if name == "passages":
            facts["passages"] = data["hits"]
        elif name in ("query", "answer"):
            facts |= data
        event = await work.next()
    return facts
