"""A chat model behind an OpenAI-compatible endpoint: one request, one reply."""

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from nvembed.corpus.answer import Chat, Message
from nvembed.errors import DataError, InputError

REPLY_BYTES = 8 << 20


def chat_with(endpoint: str, model: str, *, key: str | None, timeout_s: float) -> Chat:
    """Return a function that sends messages and returns the text of the reply.

    Args:
        endpoint: the base URL, such as ``http://localhost:8000/v1``.
        key: sent as ``Authorization: Bearer``, to this host alone: a redirection is refused.

    Raises:
        InputError: no such URL. The function: the endpoint cannot be reached, or refuses.
    """
    if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).netloc:
        raise InputError(f"--endpoint is {endpoint!r}; expected a base URL, such as http://localhost:8000/v1")
    url = f"{endpoint.rstrip('/')}/chat/completions"
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    opener = urllib.request.build_opener(_NoRedirect)

    def chat(messages: list[Message]) -> str:
        body = json.dumps({"model": model, "messages": messages, "temperature": 0}).encode()
        request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310  # scheme is checked
        try:
            with opener.open(request, timeout=timeout_s) as reply:
                return _text(reply.read(REPLY_BYTES), url)
        except urllib.error.HTTPError as error:
            with error:
                said = error.read(500).decode(errors="replace").strip()
            raise InputError(
                f"{url} answered {error.code} {error.reason} ({said}): check --endpoint, --chat-model, key"
            ) from error
        except OSError as error:  # URLError and time-outs among them
            reason = getattr(error, "reason", None) or error
            raise InputError(f"{url} cannot be reached ({reason}): check --endpoint") from error

    return chat


def _text(reply: bytes, url: str) -> str:
    try:
        text: Any = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{url} sent no chat completion but {reply[:120].decode(errors='replace')!r}: check --endpoint"
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{url} sent an empty answer: try another --chat-model")
    return text.strip()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None
