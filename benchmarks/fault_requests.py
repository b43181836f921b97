"""Hostile requests to a server on the loopback address, beside a client that sends short ones."""

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fault_inputs import TOKENS, mutate

SHORT_S = 1.0  # a short request may take this long beside any other
LONG_S = 30.0
MEMORY_BYTES = 512 << 20

BODIES: dict[str, list[Any]] = {
    "/v1/embeddings": [
        {"input": ["one", "two"], "model": "model", "encoding_format": "base64", "dimensions": 8},
        {"input": "one", "input_type": "query", "instruction": "Find it"},
        {"input": [[1, 2, 3], [4]]},
    ],
    "/v1/embed": [{"texts": ["one"], "input_type": "search_query"}],
    "/v2/embed": [
        {"texts": ["one", "two"], "input_type": "search_document", "embedding_types": ["float", "int8"]}
    ],
    "/embed": [{"inputs": ["one", "two"], "normalize": True, "truncate": True}],
    "/": [{"inputs": "one"}],
    "/similarity": [{"inputs": {"source_sentence": "one", "sentences": ["two", "three"]}}],
    "/tokenize": [{"inputs": ["one two"], "add_special_tokens": True}],
    "/search": [
        {"query": "document 2", "top": 3, "mode": "hybrid", "where": ["year >= 2003", 'document = "b.txt"']},
        {"query": "sentence", "mode": "text"},
    ],
}
GETS = [
    "/health",
    "/health/live",
    "/v1/models",
    "/stats",
    "/metrics",
    "/index",
    "/index/map",
    "/info",
    "/page",
    "/x",
]
PADS = [b"a", b"[1],", b"[", b'"a",', b" ", b'{"a":', b"\\u0000", b"9"]


@contextlib.contextmanager
def server(model: Path, index: Path, root: Path) -> Iterator[tuple[int, int]]:
    """Run a server; yields its port and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from nvembed.cli.main import main; main()", "serve", str(model)]
    command += ["--index", str(index), "--port", str(port), "--device", "cpu"]
    variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log, env=variables)
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError):
                if _get(port, "/health/ready")[0] == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit((root / "server.log").read_text()[-2000:])
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _get(port: int, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONG_S)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


def _rss(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Beside:
    """A client that sends a short request again and again; keeps the slowest and every failure."""

    def __init__(self, port: int) -> None:
        self._port, self._end = port, threading.Event()
        self.slowest, self.count, self.failure = 0.0, 0, ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        body = json.dumps({"input": "a short text"})
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LONG_S)
        while not self._end.is_set():
            start = time.monotonic()
            try:
                connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    self.failure = f"a short request got {answer.status}"
            except (OSError, http.client.HTTPException) as error:
                self.failure = f"a short request failed: {error!r}"
                connection.close()
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.count += 1
            time.sleep(0.02)

    def take(self) -> tuple[float, str]:
        """Return the slowest request and the last failure since the last call."""
        outcome = self.slowest, self.failure
        self.slowest, self.failure = 0.0, ""
        return outcome

    def stop(self) -> None:
        self._end.set()
        self._thread.join(LONG_S)


def make(number: int) -> tuple[bytes, str]:
    """Return the bytes of a request by its number, and what kind it is."""
    draw = random.Random(f"http/{number}")
    kind = draw.choices(("body", "json", "large", "head", "get"), (50, 25, 3, 12, 10))[0]
    path = draw.choice(list(BODIES))
    seeds = tuple(json.dumps(body).encode() for body in BODIES[path])
    body, extra, method = draw.choice(seeds), b"", b"POST"
    if kind == "body":
        body = mutate(seeds, draw)
    elif kind == "json":
        value = json.loads(body)
        key = draw.choice(list(value))
        value[key] = draw.choice(
            [
                None,
                [],
                {},
                "",
                -1,
                2**70,
                [[]],
                [None],
                ["a"] * 3000,
                [[1]] * 3000,
                "e " * 20000,
                ["\0"],
                [1e308],
                "\ud800",
            ]
        )
        body = json.dumps(value).encode()
    elif kind == "large":
        pad = draw.choice(PADS) * draw.choice((10_000, 200_000, 2_000_000))
        body = b'{"input": [' + pad + b"]}" if draw.random() < 0.5 else body[:-1] + b', "x": "' + pad + b'"}'
    elif kind == "get":
        method = draw.choice((b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"PUT", b"TRACE", b"BREW"))
        path = draw.choice(GETS) + draw.choice(
            ("", "?x=1", "?" + "a" * 3000, "/../..", "%00", "%2e%2e/", "#x")
        )
        body = b""
    else:
        names = [
            b"X-Timeout-S",
            b"Authorization",
            b"X-Api-Key",
            b"X-Request-Id",
            b"Content-Type",
            b"Expect",
            b"Accept",
        ]
        values = [
            *(token.replace(b"\n", b"").replace(b"\r", b"") for token in TOKENS),
            b"a" * 9000,
            b"100-continue",
        ]
        extra = b"".join(
            draw.choice(names) + b": " + draw.choice(values) + b"\r\n"
            for _ in range(draw.choice((1, 3, 200)))
        )
    head = method + b" " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    if b"Content-Type" not in extra:
        head += b"Content-Type: application/json\r\n"
    length = len(body) if draw.random() < 0.97 else draw.choice((0, 1, len(body) + 1, 10**12, -1))
    return head + extra + b"Content-Length: %d\r\n\r\n" % length + body, kind


def _send(port: int, raw: bytes) -> tuple[int, bytes]:
    """Send bytes and half-close; return the status (0 for none) and the answer."""
    parts: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), timeout=LONG_S) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(raw)
        with contextlib.suppress(OSError):  # the server has closed it
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 16):
                parts.append(part)
    answer = b"".join(parts)
    status = answer.split(b" ", 2)[1:2]
    return int(status[0]) if status and status[0].isdigit() else 0, answer


def campaign(address: tuple[int, int], first: int, bound: Any) -> Iterator[tuple[str, str]]:
    """Send requests until the bound is reached; yields the outcome of each."""
    port, pid = address
    for number in range(10_000_000, 10_000_050):  # warm-up, not counted
        _send(port, make(number)[0])
    memory = _rss(pid)
    beside = Beside(port)
    number = first
    try:
        while bound.left():
            raw, kind = make(number)
            outcome, detail = "accepted", ""
            try:
                status, answer = _send(port, raw)
                if status >= 500 and status != 503:
                    outcome, detail = "server error", f"{status}: {answer[-300:]!r}"
                elif status >= 400 or status == 0:
                    outcome = "refused"
                if b"Traceback" in answer or b"/src/nvembed" in answer:
                    outcome, detail = "traceback", repr(answer[-300:])
                if len(answer) > 4096 and 400 <= status < 500:
                    outcome, detail = "long refusal", f"{len(answer):,} bytes"
            except TimeoutError:
                outcome, detail = "hang", f"no answer in {LONG_S} s"
            except ConnectionError as error:
                outcome, detail = "crash", repr(error)
            slowest, failure = beside.take()
            if failure:
                outcome, detail = "others failed", failure
            elif slowest > SHORT_S:
                outcome, detail = "others waited", f"a short request took {slowest:.1f} s"
            grown = _rss(pid) - memory
            if grown > MEMORY_BYTES:
                outcome, detail = "memory", f"the server grew by {grown >> 20} MiB"
                memory += grown
            yield outcome, f"request {number} ({kind}, {len(raw):,} bytes): {detail}" if detail else ""
            bound.done += 1
            number += 1
            if not Path(f"/proc/{pid}").exists():
                return
    finally:
        beside.stop()
