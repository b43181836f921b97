"""A client for ``nvembed serve`` with the methods of ``Encoder``.

The integrations accept both, so that several components of a program can share a model.
"""

import base64
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from ssl import SSLContext
from typing import Any, Protocol

import httpx
import numpy as np

from nvembed.errors import DownloadError, InputError, NumericsError

REQUEST_TEXTS = 256
REQUEST_CHARACTERS = 1_000_000
BUSY = (429, 503)  # what the server answers with Retry-After
TOO_LARGE = 413

DEFAULT_TASK = "NQ"  # the model card's instruction for questions


class Encodes(Protocol):
    """An ``nvembed.Encoder`` or a ``RemoteEncoder``: texts to float32 unit rows (n, d).

    ``instruction`` describes the task of queries; ``task`` is the name of a known one. ``fingerprint`` and
    ``max_length`` belong in the key of every cache of vectors.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def max_length(self) -> int: ...

    def encode_query(
        self, texts: Iterable[str], *, instruction: str | None = None, task: str | None = None
    ) -> np.ndarray: ...

    def encode_document(self, texts: Iterable[str], *, task: str | None = None) -> np.ndarray: ...


class RemoteEncoder:
    """The model of an ``nvembed serve`` process.

    >>> model = RemoteEncoder("http://127.0.0.1:8000", api_key="secret")
    >>> model.encode_query(["who wrote it?"], instruction="Given a question, retrieve passages")

    Several threads can share it. Copies, also in other processes, open their own connections. Call ``close``,
    or use it in a ``with`` statement.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str = "",
        truncate: bool = True,
        truncate_dim: int | None = None,
        timeout_s: float = 300.0,
        verify: bool | SSLContext = True,
    ) -> None:
        """Set the server's address; the first request connects.

        Args:
            url: the server's address, such as ``http://127.0.0.1:8000``.
            model: the model's name on the server; ``""`` accepts the model it serves.
            truncate: cut the end of longer texts and warn with their number; ``False`` raises InputError.
            truncate_dim: number of leading dimensions to keep; vectors are normalised again.
            timeout_s: limit for a request, including the wait for a busy server.
            verify: check the server's certificate, or an SSL context that checks it.

        Raises:
            InputError: ``url`` is not an HTTP address, or the key is not printable ASCII.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}: expected the server's address, such as http://127.0.0.1:8000")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise InputError("api_key is not printable ASCII: remove line breaks and control characters")
        self.api_key = api_key
        self.model = model
        self.truncate = truncate
        self.truncate_dim = truncate_dim
        self.timeout_s = timeout_s
        self.verify = verify
        self._facts: dict[str, Any] = {}  # the answer of /info
        self._open()

    def _open(self) -> None:
        api_key = self.api_key
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Proxies and .netrc of the environment are ignored: texts and key are sent only to this server.
        self._http = httpx.Client(
            headers=headers, timeout=self.timeout_s, verify=self.verify, trust_env=False
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without connections: a copy opens its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_http"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the server's model, requested once.

        Raises:
            InputError, DownloadError: as ``encode_query``.
        """
        return str(self._info()["model_sha"])

    @property
    def max_length(self) -> int:
        """Tokens the server reads of one text; raises what ``fingerprint`` does."""
        return int(self._info()["max_input_length"])

    @property
    def dim(self) -> int:
        """Length of a vector; raises what ``fingerprint`` does."""
        return self.truncate_dim or int(self._info()["dim"])

    def _info(self) -> dict[str, Any]:
        if not self._facts:
            response = self._send("GET", "/info")
            if response.status_code != 200:
                raise self._refusal(response)
            self._facts = _json(response, "model_sha", "max_input_length", "dim")
        return self._facts

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> "RemoteEncoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def encode_query(
        self, texts: Iterable[str], *, instruction: str | None = None, task: str | None = None
    ) -> np.ndarray:
        """Encode queries, as ``Encoder.encode_query`` does: (n, d) float32, unit rows.

        Raises:
            InputError: the server refused the texts, the options or the key; the message has its reason.
            DownloadError: the server cannot be reached, stays busy, or fails.
        """
        _check_one(instruction, task)
        prompt = {"instruction": instruction or ""} if task is None else {"task": task}
        return self._encode(texts, {"input_type": "query", **prompt})

    def encode_document(self, texts: Iterable[str], *, task: str | None = None) -> np.ndarray:
        """Encode passages, as ``Encoder.encode_document`` does; raises what ``encode_query`` does."""
        return self._encode(texts, {"input_type": "passage"} | ({"task": task} if task else {}))

    def _encode(self, texts: Iterable[str], options: dict[str, str]) -> np.ndarray:
        if isinstance(texts, str | bytes):
            raise InputError("expected a list of texts, got one text: pass [text]")
        rows, cut, total = [], 0, 0
        for part in _parts(texts):
            total += len(part)
            for answer in self._answers(part, options):
                self._check_model(answer)
                rows += [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]]
                cut += len(answer["details"]["truncated"])
        if not rows:
            return np.empty((0, self.dim), dtype=np.float32)
        if cut:
            warnings.warn(f"{cut:,} of {total:,} texts were cut to the server's max_length", stacklevel=3)
        vectors = np.stack(rows).astype(np.float32, copy=False)
        if len(vectors) != total or not np.isfinite(vectors).all():
            raise NumericsError(f"{self.url} sent {len(vectors):,} vectors for {total:,} texts, or NaN")
        return vectors

    def _answers(self, texts: Sequence[str], options: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the server's answers; a request above its limits is split into halves."""
        response = self._post(texts, options)
        if response.status_code == 200:
            yield _json(response, "data", "details")
        elif response.status_code == TOO_LARGE and len(texts) > 1:
            middle = len(texts) // 2
            yield from self._answers(texts[:middle], options)
            yield from self._answers(texts[middle:], options)
        else:
            raise self._refusal(response)

    def _check_model(self, answer: dict[str, Any]) -> None:
        """Raise InputError if the server's model has changed since its fingerprint was read."""
        fingerprint = answer["details"].get("fingerprint")
        if self._facts and fingerprint != self._facts["model_sha"]:
            raise InputError(
                f"{self.url} now serves another model (fingerprint {fingerprint}; "
                f"expected {self._facts['model_sha']}): create a new RemoteEncoder"
            )

    def _refusal(self, response: httpx.Response) -> DownloadError | InputError:
        message = f"{self.url} answered {response.status_code}: {_message(response)}"
        broken = response.status_code in BUSY or response.status_code >= 500
        return DownloadError(message) if broken else InputError(message)

    def _post(self, texts: Sequence[str], options: dict[str, str]) -> httpx.Response:
        body: dict[str, Any] = {"input": texts, "model": self.model, "encoding_format": "base64", **options}
        body["truncate"] = "END" if self.truncate else "NONE"
        if self.truncate_dim is not None:
            body["dimensions"] = self.truncate_dim
        return self._send("POST", "/v1/embeddings", body)

    def _send(self, method: str, path: str, body: object = None) -> httpx.Response:
        """Send a request, and again while the server is busy, until the timeout."""
        end = time.monotonic() + self.timeout_s
        while True:
            try:
                response = self._http.request(method, f"{self.url}{path}", json=body)
            except httpx.HTTPError as error:
                reason = error or type(error).__name__
                raise DownloadError(f"{self.url} cannot be reached: {reason}") from error
            except UnicodeEncodeError as error:
                where = f"U+{ord(error.object[error.start]):04X}"
                raise InputError(
                    f"a text or the instruction has a lone surrogate ({where}), which is not valid Unicode: "
                    "read its source as UTF-8 with errors='replace'"
                ) from error
            after = response.headers.get("retry-after", "")
            wait_s = float(after) if after.isdecimal() else 1.0  # a proxy may send a date
            if response.status_code not in BUSY or time.monotonic() + wait_s > end:
                return response
            time.sleep(wait_s)


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of texts for one request each."""
    part: list[str] = []
    characters = 0
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"text {row} is a {kind} ({text!r:.60}): expected str; convert or drop it")
        if part and (len(part) == REQUEST_TEXTS or characters + len(text) > REQUEST_CHARACTERS):
            yield part
            part, characters = [], 0
        part.append(text)
        characters += len(text)
    if part:
        yield part


def _json(response: httpx.Response, *keys: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = response.json()
        for key in keys:
            answer[key]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{response.url} is not an nvembed server: {response.text[:100]!r}") from error
    return answer


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def cache_key(encoder: Encodes, unnamed: str) -> str:
    """Return a name of an encoder's vectors: fingerprint, length limit and dimensions.

    ``unnamed`` replaces the fingerprint of a model that was made in memory and has none.
    """
    try:
        fingerprint = encoder.fingerprint
    except InputError:
        if isinstance(encoder, RemoteEncoder):
            raise
        fingerprint = unnamed
    parts = [fingerprint, f"length {encoder.max_length}"]
    if dimensions := getattr(encoder, "truncate_dim", None):
        parts.append(f"dimensions {dimensions}")
    return " ".join(["nvembed", *parts])


def query_task(instruction: str | None, task: str | None) -> tuple[str | None, str | None]:
    """Return instruction and task for queries; without either, the task is ``DEFAULT_TASK``.

    Raises:
        InputError: both were passed.
    """
    _check_one(instruction, task)
    return instruction, DEFAULT_TASK if instruction is None and task is None else task


def _check_one(instruction: str | None, task: str | None) -> None:
    if instruction is not None and task is not None:
        raise InputError(f"expected instruction or task, got both (task {task!r}): pass one of them")
