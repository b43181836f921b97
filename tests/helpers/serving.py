"""A server of a three-line model on a real socket, in a thread of the test."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from nvembed.errors import InputError
from nvembed.serve.model import Device, Find, IndexFacts, ServedChat, ServedIndex, ServedIndexes, ServedModel
from nvembed.serve.run import Server
from nvembed.serve.settings import ServerSettings
from nvembed.text.prompt import TEMPLATE
from nvembed.text.tokenize import Piece, Tokens, check_texts

DIM = 8
PATIENCE_S = 120.0  # on a busy machine
CARD = TEMPLATE.format(instruction="Given a question, retrieve passages that answer the question")
TEXTS = ["one", "two and three", "ñ 🦊"]


def tokenise(
    texts: Sequence[str], *, prompt: str = "", max_length: int | None = None, cut: str = "end"
) -> list[Tokens]:
    """One token per character."""
    check_texts(texts)
    found = []
    for text in texts:
        full = [ord(char) % 1000 for char in prompt + text]
        kept = full[: max_length or 512] if cut == "end" else full[-(max_length or 512) :]
        found.append(Tokens(np.array(kept, dtype=np.int32), 0, len(full)))
    return found


def vector(ids: np.ndarray) -> np.ndarray:
    counts = np.bincount(ids % DIM, minlength=DIM).astype(np.float32) + 0.1
    return counts / np.linalg.norm(counts)


def text_of(ids: Sequence[int]) -> str:
    if max(ids) >= 1000:
        raise InputError("token id is not in this model's vocabulary of 1,000")
    return "".join(map(chr, ids))


@dataclass
class Fake:
    """A device that can be slow, fail or be out of memory; it notes its batches, in texts' lengths."""

    batches: list[list[int]] = field(default_factory=list)
    steps: int = 4  # pauses of a batch
    step_s: float = 0.0
    memory_tokens: int = 10**9
    broken: bool = False
    touchy: bool = True  # raises for texts with "!", gives NaN for those with "?"
    hold: threading.Event | None = None  # nothing is computed before it is set

    def __call__(self, tokens: Sequence[Tokens], *, pause: Callable[[], None] | None) -> np.ndarray:
        hold = self.hold
        pause = pause or (lambda: None)
        lengths = [len(item.input_ids) for item in tokens]
        self.batches.append(lengths)
        if sum(lengths) > self.memory_tokens:
            raise MemoryError("no memory")
        for _ in range(self.steps):
            time.sleep(self.step_s)
            pause()
        while hold is not None and not hold.wait(0.01):
            pause()
        if self.broken or any(self.touchy and ord("!") in item.input_ids for item in tokens):
            raise RuntimeError("secret text")
        vectors = np.stack([vector(item.input_ids) for item in tokens])
        for row, item in enumerate(tokens):
            if self.touchy and ord("?") in item.input_ids:
                vectors[row] = np.nan
        return vectors


def fake_model(*devices: Fake, batch_tokens: int = 64) -> ServedModel:
    return ServedModel(
        dim=DIM,
        max_length=512,
        dtype="float32",
        pooling="mean",
        fingerprint="0" * 32,
        tokenise=tokenise,
        text_of=text_of,
        pieces=lambda text, prompt: [
            Piece(ord(c), c, False, i, i + 1, True) for i, c in enumerate(prompt + text)
        ],
        devices=tuple(
            Device(f"fake:{n}", device, batch_tokens) for n, device in enumerate(devices or (Fake(),))
        ),
    )


def fake_index(
    find: Find,
    check: Callable[[], None] = lambda: None,
    fields: Callable[[], dict[str, str]] = dict,
    name: str = "fake",
) -> ServedIndexes:
    """One index that finds what ``find`` returns, as the server takes it."""
    return ServedIndexes([ServedIndex(name, lambda: IndexFacts("", 64, fields()), check)], find)


@contextmanager
def served(
    model: ServedModel | Callable[[], ServedModel],
    /,
    *,
    index_of: ServedIndexes | None = None,
    chat: ServedChat | None = None,
    **settings: Any,
) -> Iterator[Server]:
    """Run a server in a thread; yields it once it is ready."""
    load = model if callable(model) else lambda: model
    server = Server(ServerSettings(**{"model": "fake", "port": 0, **settings}), load, index_of, chat)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        end = time.monotonic() + PATIENCE_S
        while server.state.phase == "loading" and time.monotonic() < end and thread.is_alive():
            time.sleep(0.005)
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: Server,
    path: str,
    body: object = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> Got:
    """Send one request: GET without a body, else POST of JSON, or of bytes as they are."""
    where = urlsplit(server.url)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    with closing(
        http.client.HTTPConnection(where.hostname or "", where.port, timeout=PATIENCE_S)
    ) as connection:
        connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
        response = connection.getresponse()
        return Got(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def openai(server: Server, body: dict[str, Any], **headers: str) -> Got:
    return ask(server, "/v1/embeddings", body, headers)


def expected(texts: list[str], prompt: str = "", **settings: Any) -> np.ndarray:
    return np.stack([vector(item.input_ids) for item in tokenise(texts, prompt=prompt, **settings)])


def vectors(got: Got) -> np.ndarray:
    assert got.status == 200, got.body
    assert [row["index"] for row in got.json["data"]] == list(range(len(got.json["data"])))
    return np.array([row["embedding"] for row in got.json["data"]], dtype=np.float32)


def until(condition: Any, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def post(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {size}"
    )
    return f"{head}\r\n\r\n".encode() + body


def raw(server: Server, data: bytes) -> socket.socket:
    where = urlsplit(server.url)
    connection = socket.create_connection((where.hostname, where.port), timeout=PATIENCE_S)
    connection.sendall(data)
    return connection


def answer(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    connection.close()
    return b"".join(parts)
