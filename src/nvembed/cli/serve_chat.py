"""The chat model of ``nvembed serve``, as the functions that the server needs."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nvembed.errors import DataError
from nvembed.search.answer import GroundedAnswer, Restart, answer, standalone
from nvembed.search.chat import ChatError, ChatModel
from nvembed.search.retrieve import Hit
from nvembed.serve.refusal import RefusedError

if TYPE_CHECKING:
    from nvembed.serve.model import ServedChat


def served_chat(model: ChatModel) -> "ServedChat":
    """Return a chat model for the server; its errors show neither the endpoint nor its replies."""
    from nvembed.serve.model import ServedChat

    async def rewrite(question: str, history: list[dict[str, str]]) -> str:
        with _refusals():
            return await standalone(question, history, model)

    async def events(
        question: str, hits: Sequence[dict[str, Any]]
    ) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
        with _refusals():
            async for item in answer(question, [Hit.of(hit) for hit in hits], model):
                if isinstance(item, GroundedAnswer):
                    yield "answer", item.fields()
                elif isinstance(item, Restart):
                    yield "restart", asdict(item)
                else:
                    yield "text", {"text": item}

    return ServedChat(model.model, rewrite, events)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except ChatError as error:
        raise RefusedError(502, "chat_failed", f"the chat model {error.reason}") from error
    except DataError as error:
        raise RefusedError(502, "chat_failed", str(error)) from error
