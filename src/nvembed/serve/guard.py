"""What every request passes before any API sees it: key, size, time; and its line in the log afterwards."""

import asyncio
import hmac
import json
import re
import traceback
from collections.abc import Mapping
from time import monotonic
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvembed.serve.pages import PAGE_PATHS
from nvembed.serve.refusal import RefusedError, envelope
from nvembed.serve.state import State, Ticket
from nvembed.serve.trace import Tracing

PUBLIC = ("/health", "/health/live", "/health/ready", *PAGE_PATHS)  # the page asks for a key itself
BODIES_AT_ONCE = 8  # bodies of the largest size that may be held in memory together
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, state: State, tracing: Tracing | None) -> None:
        self.app = app
        self.state = state
        self.settings = state.settings
        self.keys = state.settings.keys()
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        now = monotonic()
        ticket = Ticket(given if _ID.fullmatch(given) else uuid4().hex, now, now + self._allowed_s(headers))
        scope.setdefault("state", {})["ticket"] = ticket
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", ticket.id.encode())]
            async with asyncio.timeout(
                self.settings.timeout_s
            ):  # a client that does not read is not waited for
                await send(message)

        self.state.at_work += 1
        try:
            self._check_key(scope["path"], headers)
            body = await self._body(scope["method"], headers, receive, ticket)
            await self.app(scope, _replay(body, receive), sending)
        except RefusedError as refusal:
            ticket.code = refusal.code
            await respond(scope["path"], refusal, sending, close=True)
        except Exception as error:
            self._log_crash(error, ticket)
        finally:
            self.state.at_work -= 1
            self.state.body_bytes -= ticket.body_bytes
            self._log(scope, ticket, status, headers)

    def _allowed_s(self, headers: Mapping[str, str]) -> float:
        """Return the request's time: the server's limit, or less where the client says so."""
        try:
            asked = float(headers.get("x-timeout-s", "inf"))
        except ValueError:
            asked = float("inf")
        return min(asked, self.settings.timeout_s) if asked > 0 else self.settings.timeout_s

    def _check_key(self, path: str, headers: Mapping[str, str]) -> None:
        if not self.keys or path in PUBLIC:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, each in constant time, so that time tells nothing of any.
        matches = [hmac.compare_digest(given.encode("latin-1"), key) for key in self.keys]
        if not any(matches):
            what = "the API key is not known" if given else "no API key: expected Authorization: Bearer KEY"
            raise RefusedError(401, "invalid_api_key", what)

    async def _body(self, method: str, headers: Mapping[str, str], receive: Receive, ticket: Ticket) -> bytes:
        """Read the whole body, bounded in bytes and in time.

        Raises:
            RefusedError: 413, 408, or 429 where the server holds too many bodies already.
        """
        if method not in ("POST", "PUT", "PATCH"):
            return b""
        limit = self.settings.max_body_bytes
        too_large = f"the body is larger than max_body_bytes, {limit:,} bytes: send it in parts"
        length = headers.get("content-length", "")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise RefusedError(413, "body_too_large", too_large)
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusedError(499, "gone", "the client closed the connection")
                    part = message.get("body", b"")
                    body += part
                    ticket.body_bytes += len(part)
                    self.state.body_bytes += len(part)
                    if len(body) > limit:
                        raise RefusedError(413, "body_too_large", too_large)
                    if self.state.body_bytes > BODIES_AT_ONCE * limit:
                        what = "the requests at work are as large as this server holds: try again"
                        raise RefusedError(429, "busy", what, retry_after_s=1)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            limit_s = self.settings.body_timeout_s
            what = f"the body had not arrived after {limit_s:g} s (body_timeout_s): send it faster"
            raise RefusedError(408, "body_timeout", what) from error

    def _log(self, scope: Scope, ticket: Ticket, status: int, headers: Mapping[str, str]) -> None:
        seconds = monotonic() - ticket.started
        route = getattr(scope.get("route"), "path", "other")
        watch = self.state.watch
        watch.requests.labels(route, status).inc()
        watch.request_s.labels(route).observe(seconds)
        if ticket.code:
            watch.refused.labels(ticket.code).inc()
        if route in PUBLIC or route in ("/metrics", "/stats"):
            return
        if self.tracing is not None:
            self.tracing.record(scope["method"], route, status, ticket, headers)
        fields = {
            "id": ticket.id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "code": ticket.code,
            "texts": ticket.texts,
            "tokens": ticket.tokens,
            "cut": ticket.cut,
            "queue_ms": round(1000 * ticket.queue_s, 1),
            "total_ms": round(1000 * seconds, 1),
        }
        watch.log.write("info", "request", fields)

    def _log_crash(self, error: Exception, ticket: Ticket) -> None:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        fields = {"id": ticket.id, "error": type(error).__name__, "where": where}
        self.state.watch.log.write("error", "crash", fields)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the body that was read already, and then what comes after it."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def respond(path: str, refusal: RefusedError, send: Send, *, close: bool = False) -> None:
    """Send a refusal in the words of the API that ``path`` belongs to."""
    body = json.dumps(envelope(path, refusal)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers().items()]
    if close:  # what is left of the request is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
