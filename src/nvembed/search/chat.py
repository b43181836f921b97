"""A chat model behind an OpenAI-compatible endpoint: messages in, the pieces of the reply as they arrive."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from anyio.from_thread import start_blocking_portal

from nvembed.errors import DataError, InputError

Message = dict[str, str]  # role and content, as in the chat protocol


@dataclass(frozen=True)
class CutShort:
    """The end of a reply that the model did not finish; ``reason`` is the protocol's, such as ``length``."""

    reason: str


# messages -> the pieces of the reply; a CutShort may be the last
Chat = Callable[[list[Message]], AsyncGenerator[str | CutShort, None]]
T = TypeVar("T")

REPLY_BYTES = 8 << 20
SHOWN_BYTES = 500  # of a reply that is an error
MAX_TIMEOUT_S = 86_400
OWN_PARAMETERS = ("model", "messages", "stream")
BROKEN_OFF = "ended the connection before its reply was complete"
FINISHED = ("stop", "eos", "end_turn", "")
_LINE_END = re.compile(rb"\r\n|\n|\r")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # the name of a header
_CURES = {
    401: "check the key",
    403: "check the key",
    404: "check the URL and the name of the model",
    429: "wait, or use another key",
}


class ChatError(DataError):
    """The chat model gave no usable reply. ``reason`` has neither the reply nor the endpoint."""

    def __init__(self, reason: str, url: str, detail: str = "", cure: str = "check the URL") -> None:
        super().__init__(f"the chat model at {url} {reason}{f' ({detail})' if detail else ''}: {cure}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class ChatModel:
    """A chat model behind an OpenAI-compatible endpoint; a ``Chat`` that may be called many times at once.

    Args:
        endpoint: the base URL, such as ``http://localhost:8000/v1``.
        model: the name of the model there.
        key: sent as ``Authorization: Bearer``, to this host alone: redirections are refused.
        timeout_s: the longest wait for the next bytes of the reply.
        parameters: further keys of the request, such as ``temperature``.
        headers: further headers of the request.
        stream: ask for the reply in pieces.

    Raises:
        InputError: an argument cannot be used.
    """

    endpoint: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout_s: float = 120
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    stream: bool = True

    def __post_init__(self) -> None:
        if not _is_url(self.endpoint):
            example = "such as http://localhost:8000/v1"
            raise InputError(f"the chat endpoint is {self.endpoint!r}; expected a base URL, {example}")
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            expected = f"expected seconds, above 0 and up to {MAX_TIMEOUT_S:,}"
            raise InputError(f"the timeout of the chat model is {self.timeout_s:g}; {expected}")
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise InputError(
                "the key of the chat model has a line end or another character that cannot be sent; "
                "expected printable ASCII"
            )
        for name, value in self.headers.items():
            if not _TOKEN.fullmatch(name) or not (value.isascii() and value.isprintable()):
                raise InputError(f"the header {name!r} cannot be sent; expected a name and printable ASCII")
        for name in OWN_PARAMETERS:
            if name in self.parameters:
                raise InputError(f"the chat parameter {name!r} is set by nvembed and cannot be changed")

    @property
    def url(self) -> str:
        return f"{self.endpoint.rstrip('/')}/chat/completions"

    async def __call__(self, messages: list[Message]) -> AsyncGenerator[str | CutShort, None]:
        """Yield the pieces of the model's reply, and a ``CutShort`` if it is not complete.

        Raises:
            ChatError: the endpoint cannot be reached, answers with an error, or sends no chat completion.
        """
        request: dict[str, Any] = {"model": self.model, "messages": messages, **self.parameters}
        if self.stream:
            request["stream"] = True
        headers = {"Content-Type": "application/json", **self.headers}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        try:
            async with (
                httpx.AsyncClient(timeout=self.timeout_s, follow_redirects=False) as client,
                client.stream("POST", self.url, content=json.dumps(request), headers=headers) as reply,
            ):
                if reply.status_code != 200:
                    await self._refuse(reply)
                kind = reply.headers.get("content-type", "")
                read = self._streamed if self.stream and "json" not in kind else self._whole
                half = ""  # of a character whose other half is in the next piece
                async for piece in read(reply):
                    if isinstance(piece, CutShort):
                        yield piece
                    elif text := half + piece:
                        half = text[-1] if "\ud800" <= text[-1] < "\udc00" else ""
                        yield _joined(text.removesuffix(half))
                if half:
                    yield _joined(half)
        except httpx.TimeoutException as error:
            reason = f"sent nothing for {self.timeout_s:g} s"
            raise ChatError(reason, self.url, cure="check the URL, or allow a longer timeout") from error
        except (httpx.RemoteProtocolError, httpx.ReadError) as error:
            raise ChatError(BROKEN_OFF, self.url, str(error), "ask again, or see its log") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise ChatError("cannot be reached", self.url, str(error)) from error

    async def _refuse(self, reply: httpx.Response) -> None:
        body = b""
        try:
            async for piece in reply.aiter_bytes():
                body += piece
                if len(body) > SHOWN_BYTES:
                    break
        except httpx.HTTPError:
            pass  # the status is the error to report
        status = reply.status_code
        cure = _CURES.get(status, "see its log" if status >= 500 else "check the URL, model and parameters")
        shown = " ".join(body[:SHOWN_BYTES].decode(errors="replace").split())
        raise ChatError(f"answered {status} {reply.reason_phrase}".rstrip(), self.url, shown, cure)

    async def _whole(self, reply: httpx.Response) -> AsyncIterator[str | CutShort]:
        body = b"".join([piece async for piece in self._bytes(reply)])
        try:
            choice = json.loads(body)["choices"][0]
            text = _text_of(choice["message"])
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise self._malformed(body) from error
        yield text
        if (reason := str(choice.get("finish_reason") or "")) not in FINISHED:
            yield CutShort(reason)

    async def _streamed(self, reply: httpx.Response) -> AsyncIterator[str | CutShort]:
        """Yield the text of server-sent events, each with one chunk of the completion as JSON."""
        reason: str | None = None
        async for data in self._events(reply):
            if data == b"[DONE]":
                reason = reason or ""
                break
            try:
                chunk = json.loads(data)
                fault = chunk.get("error") or (chunk if chunk.get("object") == "error" else None)
                choice = (chunk.get("choices") or [{}])[0]
                text = _text_of(choice.get("delta") or {})
                reason = choice.get("finish_reason") or reason
            except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
                raise self._malformed(data) from error
            if fault:
                detail = str(fault.get("message", fault) if isinstance(fault, dict) else fault)[:SHOWN_BYTES]
                raise ChatError("reported an error in its reply", self.url, detail, "see its log")
            if text:
                yield text
        if reason is None:
            raise ChatError(BROKEN_OFF, self.url, cure="ask again, or see its log")
        if reason not in FINISHED:
            yield CutShort(str(reason))

    async def _events(self, reply: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the data of each server-sent event.

        Raises:
            ChatError: the reply has none.
        """
        beginning, parts, data, count = b"", [b""], list[bytes](), 0
        async for piece in self._bytes(reply):
            beginning = (beginning + piece)[:SHOWN_BYTES]
            *lines, rest = _LINE_END.split(piece)
            for line in lines:
                whole, parts = b"".join([*parts, line]), []
                if whole.startswith(b"data:"):
                    data.append(whole[5:].strip())
                elif not whole and data:
                    yield b"\n".join(data)
                    count, data = count + 1, []
            parts.append(rest)
        if not count:
            raise self._malformed(beginning)

    async def _bytes(self, reply: httpx.Response) -> AsyncIterator[bytes]:
        """Yield the bytes of a reply; a line end that two pieces share is made one character."""
        size, last = 0, b""
        async for piece in reply.aiter_bytes():
            size += len(piece)
            if size > REPLY_BYTES:
                cure = "set a limit of tokens"
                raise ChatError(f"sent more than {REPLY_BYTES >> 20} MiB", self.url, cure=cure)
            yield piece[1:] if last == b"\r" and piece.startswith(b"\n") else piece
            last = piece[-1:]

    def _malformed(self, reply: bytes) -> ChatError:
        return ChatError(
            "sent something that is not a chat completion",
            self.url,
            repr(reply[:120].decode(errors="replace")),
        )


def iterate(stream: AsyncGenerator[T, None]) -> Iterator[T]:
    """Yield the items of an asynchronous generator, which runs on a thread; also inside an event loop."""
    with start_blocking_portal() as portal:
        while True:
            step = portal.start_task_soon(stream.__anext__)
            try:
                item = step.result()
            except StopAsyncIteration:
                return
            finally:
                step.cancel()  # after Ctrl-C; otherwise it is done
            try:
                yield item
            except GeneratorExit:
                portal.call(stream.aclose)
                raise


def _text_of(message: Any) -> str:
    """Return the text of a message or a delta: a string, or the text parts of a list.

    Raises:
        TypeError: it is something else.
    """
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part["type"] == "text")
    if not isinstance(content, str | None):
        raise TypeError("the content is not text")
    refusal = message.get("refusal")
    return content or (refusal if isinstance(refusal, str) else "")


def _joined(text: str) -> str:
    """Return a text whose pairs of surrogates are characters; half a pair becomes a replacement character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return False
    plain = endpoint.isprintable() and " " not in endpoint
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and plain
