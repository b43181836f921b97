"""A chat model behind an OpenAI-compatible endpoint: one request, one reply."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from nvembed.errors import DataError, InputError
from nvembed.search.answer import Chat, Message

REPLY_BYTES = 8 << 20
MAX_TIMEOUT_S = 86_400
OWN_PARAMETERS = ("model", "messages", "stream")


def chat_with(
    endpoint: str,
    model: str,
    *,
    key: str | None,
    timeout_s: float,
    parameters: Mapping[str, Any] | None = None,
) -> Chat:
    """Return a function that sends messages and returns the text of the reply.

    Args:
        endpoint: the base URL, such as ``http://localhost:8000/v1``.
        key: sent as ``Authorization: Bearer``, to this host alone: redirections are refused.
        parameters: further keys of the request, such as ``temperature``.
    """
    parameters = dict(parameters or {})
    if not _is_url(endpoint):
        raise InputError(f"--endpoint is {endpoint!r}; expected a base URL, such as http://localhost:8000/v1")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InputError(f"--timeout is {timeout_s:g}; expected seconds, above 0 and up to {MAX_TIMEOUT_S:,}")
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(
            "the key in NVEMBED_CHAT_KEY or OPENAI_API_KEY has a line end or another character that "
            "cannot be sent; expected printable ASCII"
        )
    for name in OWN_PARAMETERS:
        if name in parameters:
            raise InputError(f"--param {name}: it is set by this command and cannot be changed")
    url = f"{endpoint.rstrip('/')}/chat/completions"
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def chat(messages: list[Message]) -> str:
        request = {"model": model, "messages": messages, **parameters}
        try:
            with (
                httpx.Client(timeout=timeout_s, follow_redirects=False) as client,
                client.stream("POST", url, json=request, headers=headers) as reply,
            ):
                body = _body(reply)
        except httpx.TimeoutException as error:
            raise InputError(
                f"{url} sent nothing for {timeout_s:g} s: check --endpoint, or raise --timeout"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            raise InputError(f"{url} cannot be reached ({error}): check --endpoint") from error
        if reply.status_code != 200:
            beginning = body[:500].decode(errors="replace").strip()
            raise InputError(
                f"{url} answered {reply.status_code} {reply.reason_phrase} ({beginning}): check --endpoint, "
                "--chat-model, --param and the key"
            )
        return _text(body, url)

    return chat


def parse_parameters(texts: tuple[str, ...]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` options; a value that is JSON has its JSON type, anything else is text."""
    parameters = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InputError(f"--param is {text!r}; expected KEY=VALUE, such as top_p=0.9")
        try:
            parameters[name] = json.loads(value)
        except (ValueError, RecursionError):
            parameters[name] = value
    return parameters


def _body(reply: httpx.Response) -> bytes:
    """Return a reply's body, up to ``REPLY_BYTES``; of an error as far as it came."""
    body = bytearray()
    try:
        for piece in reply.iter_bytes():
            body += piece
            if len(body) > REPLY_BYTES:
                break
    except httpx.HTTPError:
        if reply.status_code == 200:
            raise
    return bytes(body[:REPLY_BYTES])


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return False
    plain = endpoint.isprintable() and " " not in endpoint
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and plain


def _text(reply: bytes, url: str) -> str:
    try:
        text: Any = json.loads(reply)["choices"][0]["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError("the content is not text")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        beginning = reply[:120].decode(errors="replace")
        raise DataError(f"{url} sent no chat completion but {beginning!r}: check --endpoint") from error
    if not text or not text.strip():
        raise DataError(f"{url} sent an empty answer: try another --chat-model")
    return str(text).strip().encode(errors="replace").decode()  # half a surrogate pair becomes a ?
