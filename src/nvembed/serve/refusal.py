"""What a request is told that cannot be served, in the words of the API that it came by."""

import math
from typing import Any


class RefusedError(Exception):
    """An answer other than 200. ``code`` is for programs, ``message`` for people; neither holds a text."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """Return the HTTP headers that go with it."""
        headers = {} if self.retry_after_s is None else {"retry-after": str(math.ceil(self.retry_after_s))}
        return {**headers, "www-authenticate": "Bearer"} if self.status == 401 else headers


TEI_PATHS = ("/embed", "/tokenize", "/similarity", "/info")
_OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
_TEI_TYPES = {401: "Unauthorized", 413: "Validation", 424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


def envelope(path: str, refusal: RefusedError) -> dict[str, Any]:
    """Return the error body of the API that ``path`` belongs to: Cohere's, TEI's, or else OpenAI's."""
    if path.startswith("/v2/"):
        return {"message": refusal.message, "code": refusal.code}
    if path in TEI_PATHS:
        default = "Validation" if refusal.status < 500 else "Backend"
        kind = _TEI_TYPES.get(refusal.status, default)
        return {"error": refusal.message, "error_type": kind, "code": refusal.code}
    default = "invalid_request_error" if refusal.status < 500 else "server_error"
    kind = _OPENAI_TYPES.get(refusal.status, default)
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}
