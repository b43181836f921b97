"""Refused requests, in the error format of the API that the request used."""

import math
from typing import Any

MAX_MESSAGE = 500  # characters; a message may quote what the request sent


class RefusedError(Exception):
    """An answer other than 200. ``code`` is for programs, ``message`` for people; neither contains a text."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        short = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]} ..."
        self.message = "".join(char if char.isprintable() else " " for char in short)
        super().__init__(self.message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers of the answer."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(math.ceil(self.retry_after_s))}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


TEI_PATHS = ("/", "/embed", "/tokenize", "/similarity", "/info")
_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_TEI_TYPES = {401: "Unauthorized", 413: "Validation", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


def envelope(path: str, refusal: RefusedError) -> dict[str, Any]:
    """Return the error body in the format of Cohere, TEI or, for every other path, OpenAI."""
    if path.startswith("/v2/") or path == "/v1/embed":
        return {"message": refusal.message, "code": refusal.code}
    if path in TEI_PATHS:
        default = "Validation" if refusal.status < 500 else "Backend"
        kind = _TEI_TYPES.get(refusal.status, default)
        return {"error": refusal.message, "error_type": kind, "code": refusal.code}
    default = "invalid_request_error" if refusal.status < 500 else "server_error"
    kind = _OPENAI_TYPES.get(refusal.status, default)
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}
