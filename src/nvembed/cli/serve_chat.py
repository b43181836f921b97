"""The chat model of ``nvembed serve``, as the functions that the server needs."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nvembed.errors import DataError
from nvembed.search.answer import Evidence, GroundedAnswer, Restart, Rewritten, converse
from nvembed.search.chat import ChatError, ChatModel, Message
from nvembed.search.retrieve import Hit
from nvembed.serve.refusal import RefusedError

if TYPE_CHECKING:
    from nvembed.serve.model import ChatEvent, ServedChat


def served_chat(model: ChatModel) -> "ServedChat":
    """Return a chat model for the server; its errors show neither the endpoint nor its replies."""
    from nvembed.serve.model import ServedChat

    async def events(
        question: str, history: list[Message], search: Callable[[str], Awaitable[Sequence[dict[str, Any]]]]
    ) -> "AsyncGenerator[ChatEvent, None]":
        async def hits(query: str) -> list[Hit]:
            return [Hit(**fields) for fields in await search(query)]

        try:
            async for event in converse(question, history, hits, model):
                if isinstance(event, GroundedAnswer):
                    yield "answer", event.fields()
                elif isinstance(event, Restart):
                    yield "restart", asdict(event)
                elif isinstance(event, Rewritten):
                    yield "query", {"query": event.question}
                elif isinstance(event, Evidence):
                    numbered = enumerate(event.hits, start=1)
                    yield "passages", {"hits": [{"number": n, **asdict(hit)} for n, hit in numbered]}
                else:
                    yield "text", {"text": event}
        except ChatError as error:
            raise RefusedError(502, "chat_failed", f"the chat model {error.reason}") from error
        except DataError as error:
            raise RefusedError(502, "chat_failed", str(error)) from error

    return ServedChat(model.model, events)
