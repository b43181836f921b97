"""Checks of every request before any API: host, key, size, time; and its line in the log."""

import asyncio
import hmac
import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from fastapi import FastAPI
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nvembed.serve.refusal import RefusedError, envelope
from nvembed.serve.settings import LOOPBACK
from nvembed.serve.state import State, Ticket

BODIES_AT_ONCE = 8  # bodies of the largest size that may be held in memory together
SMALL_BODY = 65_536  # bytes; always read, whatever large bodies are held
UNLOGGED = ("/metrics", "/v1/metrics", "/stats")
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: FastAPI,
        state: State,
        *,
        public: Sequence[str],
        note: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """``public``: paths that need no key. ``note`` is called with the fields of each log line."""
        self.app: ASGIApp = app
        self.routes = app.routes
        self.state = state
        self.settings = state.settings
        self.public = public
        self.note = note
        self.keys = state.settings.keys()
        local = state.settings.host in LOOPBACK and not self.keys
        self.hosts = {"localhost", *state.settings.allowed_host} if local else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        client_id = headers.get("x-request-id", "")
        now = monotonic()
        request_id = client_id if _ID.fullmatch(client_id) else uuid4().hex
        ticket = Ticket(request_id, now, now + self._allowed_s(headers))
        scope.setdefault("state", {})["ticket"] = ticket
        status = 0
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope  # uvicorn drops the body

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.note is not None:
                    self.note(_fields(scope["method"], inner, ticket, status))
                message["headers"] = [*message["headers"], (b"x-request-id", ticket.id.encode())]
            async with asyncio.timeout(self.settings.timeout_s):  # the client may not read
                await send(message)

        self.state.at_work += 1
        try:
            self._check_host(headers)
            self._check_key(inner, headers)
            body = await self._body(headers, receive, ticket) if self._takes_body(inner) else b""
            await self.app(inner, _replay(body, receive), sending)
        except RefusedError as refusal:
            ticket.code = refusal.code
            await respond(scope["path"], refusal, sending)
        except Exception as error:
            self.state.watch.crashed(error, ticket.id)
        finally:
            self.state.at_work -= 1
            self.state.body_bytes -= ticket.body_bytes
            self._log(scope["method"], inner, ticket, status)

    def _allowed_s(self, headers: Mapping[str, str]) -> float:
        """Return the time limit of a request: the server's, or a lower one that the client sent."""
        try:
            limit_s = float(headers.get("x-timeout-s", "inf"))
        except ValueError:
            limit_s = float("inf")
        return min(limit_s, self.settings.timeout_s) if limit_s > 0 else self.settings.timeout_s

    def _check_host(self, headers: Mapping[str, str]) -> None:
        """Without a key on loopback, refuse names of other hosts: a web page may use one for this host."""
        host = headers.get("host")
        if self.hosts is None or host is None:
            return
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if name in self.hosts or name.endswith(".localhost"):
            return
        try:
            if ipaddress.ip_address(name).is_loopback:
                return
        except ValueError:
            pass
        cure = "use http://127.0.0.1, set an API key, or start the server with --allowed-host"
        raise RefusedError(403, "bad_host", f"the Host header does not name this machine: {cure}")

    def _check_key(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if not self.keys or (scope["method"] == "GET" and scope["path"] in self.public):
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # Every key is compared, each in constant time, so that the time reveals nothing about any of them.
        matches = [hmac.compare_digest(key.encode("latin-1"), known) for known in self.keys]
        if not any(matches):
            what = "unknown API key" if key else "no API key: expected Authorization: Bearer KEY"
            raise RefusedError(401, "invalid_api_key", what)

    def _takes_body(self, scope: Scope) -> bool:
        """Whether a route takes this request, and its body."""
        if scope["method"] != "POST":
            return False
        return any(route.matches(scope)[0] is Match.FULL for route in self.routes)

    async def _body(self, headers: Mapping[str, str], receive: Receive, ticket: Ticket) -> bytes:
        """Read the whole body, within limits of bytes and time.

        Raises:
            RefusedError: 413, 408, or 429 if the server holds too many bodies already.
        """
        limit = self.settings.max_body_bytes
        small = min(SMALL_BODY, limit // 2)
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
                    if self.state.body_bytes > BODIES_AT_ONCE * limit and len(body) > small:
                        what = "the requests at work are as large as this server holds: try again"
                        raise RefusedError(429, "busy", what, retry_after_s=1)
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError as error:
            limit_s = self.settings.body_timeout_s
            what = f"the body had not arrived after {limit_s:g} s (body_timeout_s): send it faster"
            raise RefusedError(408, "body_timeout", what) from error

    def _log(self, method: str, scope: Scope, ticket: Ticket, status: int) -> None:
        seconds = monotonic() - ticket.started
        route = getattr(scope.get("route"), "path", "other")
        watch = self.state.watch
        watch.requests.labels(route, status).inc()
        watch.request_s.labels(route).observe(seconds)
        if ticket.code:
            watch.refused.labels(ticket.code).inc()
        if (route not in self.public or scope["method"] != "GET") and route not in UNLOGGED:
            watch.event("info", "request", _fields(method, scope, ticket, status))


def _fields(method: str, scope: Scope, ticket: Ticket, status: int) -> dict[str, Any]:
    return {
        "id": ticket.id,
        "method": method,
        "route": getattr(scope.get("route"), "path", "other"),
        "status": status,
        "code": ticket.code,
        "texts": ticket.texts,
        "tokens": ticket.tokens,
        "cut": ticket.cut,
        "queue_ms": round(1000 * ticket.queue_s, 1),
        "total_ms": round(1000 * (monotonic() - ticket.started), 1),
    }


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives ``body``, which was read already, and then the messages after it."""
    sent = False

    async def replayed() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def respond(path: str, refusal: RefusedError, send: Send) -> None:
    """Send a refusal in the format of the API of ``path``, and close the connection."""
    body = json.dumps(envelope(path, refusal)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in refusal.headers().items()]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
