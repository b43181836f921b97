"""A chat model behind an OpenAI-compatible endpoint: one request, one reply."""

import json
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from nvembed.errors import DataError, InputError
from nvembed.search.answer import Chat, Message

REPLY_BYTES = 8 << 20
MAX_TIMEOUT_S = 86_400


def chat_with(endpoint: str, model: str, *, key: str | None, timeout_s: float) -> Chat:
    """Return a function that sends messages and returns the text of the reply.

    Args:
        endpoint: the base URL, such as ``http://localhost:8000/v1``.
        key: sent as ``Authorization: Bearer``, to this host alone: a redirection is refused.

    Raises:
        InputError: no such URL, key or time. The function: the endpoint cannot be reached, or refuses.
        DataError: the function: what it sends is no answer.
    """
    if not _is_url(endpoint):
        raise InputError(f"--endpoint is {endpoint!r}; expected a base URL, such as http://localhost:8000/v1")
    if not 0 < timeout_s <= MAX_TIMEOUT_S:
        raise InputError(f"--timeout is {timeout_s:g}; expected seconds, above 0 and up to {MAX_TIMEOUT_S:,}")
    if key and not (key.isascii() and key.isprintable()):
        raise InputError(
            "the key in NVEMBED_CHAT_KEY or OPENAI_API_KEY has a line end or another character that cannot "
            "be sent: expected printable ASCII"
        )
    url = f"{endpoint.rstrip('/')}/chat/completions"
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    opener = urllib.request.build_opener(_NoRedirect)

    def chat(messages: list[Message]) -> str:
        data = json.dumps({"model": model, "messages": messages, "temperature": 0}).encode()
        request = urllib.request.Request(url, data, headers, method="POST")  # noqa: S310  # scheme is checked
        try:
            with opener.open(request, timeout=timeout_s) as reply:
                body = reply.read(REPLY_BYTES)
        except urllib.error.HTTPError as error:
            raise InputError(
                f"{url} answered {error.code} {error.reason} ({_said(error)}): check --endpoint, "
                "--chat-model, key"
            ) from error
        except (OSError, HTTPException, ValueError) as error:  # ValueError: of a host that no name can be
            reason = getattr(error, "reason", None) or error
            if isinstance(reason, TimeoutError):
                raise InputError(
                    f"{url} sent nothing for {timeout_s:g} s: check --endpoint, or raise --timeout"
                ) from error
            raise InputError(f"{url} cannot be reached ({reason}): check --endpoint") from error
        return _text(body, url)

    return chat


def _is_url(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError:
        return False
    plain = endpoint.isprintable() and " " not in endpoint
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and plain


def _said(error: urllib.error.HTTPError) -> str:
    """Return the beginning of what came with an error, as far as it came."""
    try:
        with error:
            return error.read(500).decode(errors="replace").strip()
    except (OSError, HTTPException):
        return ""


def _text(reply: bytes, url: str) -> str:
    try:
        text: Any = json.loads(reply)["choices"][0]["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError("content that is no text")
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise DataError(
            f"{url} sent no chat completion but {reply[:120].decode(errors='replace')!r}: check --endpoint"
        ) from error
    if not text or not text.strip():
        raise DataError(f"{url} sent an empty answer: try another --chat-model")
    return str(text).strip().encode(errors="replace").decode()  # half a surrogate pair becomes a ?


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
