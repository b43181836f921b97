"""A stand-in for an OpenAI-compatible chat endpoint, on a real socket: it sends the replies of a list."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Endpoint:
    """``replies``: texts, (status, body), or raw bytes, one per request; the last is repeated.

    A text comes as one JSON answer or, if the request asks for it, as a stream of its words.
    """

    url: str = ""
    replies: list[Any] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)

    @property
    def keys(self) -> list[str | None]:
        return [headers["Authorization"] for headers in self.headers]


@contextmanager
def chat_server(*replies: Any) -> Iterator[Endpoint]:
    endpoint = Endpoint(replies=list(replies))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.requests.append(request)
            endpoint.headers.append(self.headers)
            reply = endpoint.replies[min(len(endpoint.requests), len(endpoint.replies)) - 1]
            if callable(reply):
                reply = reply(request)
            if isinstance(reply, bytes):
                self.wfile.write(reply)
                return
            kind = "application/json"
            if isinstance(reply, tuple):
                (status, body), kind = reply, "text/html" if reply[1].startswith(b"<") else kind
            elif request.get("stream"):
                status, body, kind = 200, stream(reply), "text/event-stream"
            else:
                status, body = 200, _completion(reply)
            self.send_response(status)
            if status == 302:
                self.send_header("Location", endpoint.url + "/elsewhere")
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    """Return one event of a stream."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    body = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def stream(text: str) -> bytes:
    """Return a text as the stream of a chat completion, word by word."""
    words = [word if i == 0 else f" {word}" for i, word in enumerate(text.split(" "))]
    parts = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": word}) for word in words)]
    usage = (
        b'data: {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}\n\n'
    )
    return b"".join([*parts, chunk({}, "stop"), usage, b"data: [DONE]\n\n"])


def _completion(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return json.dumps(body).encode()
