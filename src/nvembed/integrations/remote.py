"""An encoder that lives in a server: the verbs of ``Encoder``, over HTTP.

What the integrations are handed is either of them, so that one model serves several components of a program.
"""

import base64
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from ssl import SSLContext
from typing import Any, Protocol

import numpy as np

from nvembed.errors import DownloadError, InputError, MissingExtraError, NumericsError

try:
    import httpx
except ImportError as error:
    raise MissingExtraError("pip install 'nvembed[client]' to use a server (httpx is missing)") from error

REQUEST_TEXTS = 256
REQUEST_CHARACTERS = 1_000_000
BUSY = (429, 503)  # what the server answers with Retry-After
TOO_LARGE = 413

# of the integrations, where neither an instruction nor a task is given: the model card's for questions
DEFAULT_TASK = "NQ"


class Encodes(Protocol):
    """What the integrations need: an ``nvembed.Encoder``, or a ``RemoteEncoder``.

    Texts to float32 unit rows (n, d). ``instruction`` describes a query's task; ``task`` names a known one.
    """

    def encode_query(
        self, texts: Iterable[str], *, instruction: str | None = None, task: str | None = None
    ) -> np.ndarray: ...

    def encode_document(self, texts: Iterable[str], *, task: str | None = None) -> np.ndarray: ...


class RemoteEncoder:
    """A model that ``nvembed serve`` serves.

    >>> model = RemoteEncoder("http://127.0.0.1:8000", api_key="secret")
    >>> model.encode_query(["who wrote it?"], instruction="Given a question, retrieve passages")

    It may be used from several threads at once. ``close`` it, or use it in a ``with`` statement.
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
        """Connect on the first use.

        Args:
            url: of the server: ``http://127.0.0.1:8000``.
            model: the name the server gives it; ``""`` is the one it serves.
            truncate: cut longer texts at their end and warn how many; ``False`` refuses them.
            truncate_dim: keep the first so many dimensions and normalise again.
            timeout_s: of one request, waiting for a busy server included.
            verify: check the server's certificate; or the context that does.

        Raises:
            InputError: ``url`` is none, or the key cannot stand in a header.
        """
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")):
            raise InputError(f"url is {url!r}: expected the server's, such as http://127.0.0.1:8000")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise InputError("api_key is not printable ASCII: look for a line break at its end, and strip it")
        self.api_key = api_key
        self.model = model
        self.truncate = truncate
        self.truncate_dim = truncate_dim
        self.timeout_s = timeout_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # no proxy or .netrc of the environment: texts and key go to this server alone
        self._http = httpx.Client(headers=headers, timeout=timeout_s, verify=verify, trust_env=False)

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
            InputError: the server refuses the texts, the options or the key, and says why.
            DownloadError: it cannot be reached, is busy for too long, or breaks.
        """
        chosen = {"instruction": instruction or ""} if task is None else {"task": task}
        if instruction is not None and task is not None:
            raise InputError(f"instruction and task ({task!r}) are both given: pass one of them")
        return self._encode(texts, {"input_type": "query", **chosen})

    def encode_document(self, texts: Iterable[str], *, task: str | None = None) -> np.ndarray:
        """Encode passages, as ``Encoder.encode_document`` does; raises what ``encode_query`` does."""
        return self._encode(texts, {"input_type": "passage"} | ({"task": task} if task else {}))

    def _encode(self, texts: Iterable[str], options: dict[str, str]) -> np.ndarray:
        if isinstance(texts, str | bytes):
            raise InputError("expected texts, got one: pass a list")
        rows, cut, total = [], 0, 0
        for part in _parts(texts):
            total += len(part)
            for answer in self._answers(part, options):
                rows += [np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in answer["data"]]
                cut += len(answer["details"]["truncated"])
        if not rows:
            raise InputError("there is nothing to encode: expected at least one text, got none")
        if cut:
            warnings.warn(f"{cut:,} of {total:,} texts: cut to what the server reads", stacklevel=3)
        vectors = np.stack(rows).astype(np.float32, copy=False)
        if len(vectors) != total or not np.isfinite(vectors).all():
            raise NumericsError(f"{self.url} sent {len(vectors):,} vectors for {total:,} texts, or NaN")
        return vectors

    def _answers(self, texts: Sequence[str], options: dict[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the server's answer, or those to each half of a request that is above its limits."""
        response = self._post(texts, options)
        if response.status_code == 200:
            yield _json(response)
        elif response.status_code == TOO_LARGE and len(texts) > 1:
            middle = len(texts) // 2
            yield from self._answers(texts[:middle], options)
            yield from self._answers(texts[middle:], options)
        else:
            message = f"{self.url} answered {response.status_code}: {_said(response)}"
            broken = response.status_code in BUSY or response.status_code >= 500
            raise DownloadError(message) if broken else InputError(message)

    def _post(self, texts: Sequence[str], options: dict[str, str]) -> httpx.Response:
        """Send one request, again while the server is busy and time is left."""
        body: dict[str, Any] = {"input": texts, "model": self.model, "encoding_format": "base64", **options}
        body["truncate"] = "END" if self.truncate else "NONE"
        if self.truncate_dim is not None:
            body["dimensions"] = self.truncate_dim
        end = time.monotonic() + self.timeout_s
        while True:
            try:
                response = self._http.post(f"{self.url}/v1/embeddings", json=body)
            except httpx.HTTPError as error:
                raise DownloadError(
                    f"{self.url} cannot be reached: {error or type(error).__name__}"
                ) from error
            except UnicodeEncodeError as error:
                where = f"U+{ord(error.object[error.start]):04X}"
                raise InputError(
                    f"a text or the instruction has a lone surrogate ({where}), "
                    "which is not valid Unicode: read its source as UTF-8 with errors='replace'"
                ) from error
            after = response.headers.get("retry-after", "")
            wait_s = float(after) if after.isdecimal() else 1.0  # a proxy may name a date
            if response.status_code not in BUSY or time.monotonic() + wait_s > end:
                return response
            time.sleep(wait_s)


def _parts(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield lists of texts, each small enough for one request."""
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


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = response.json()
        answer["data"], answer["details"]["truncated"]
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{response.url} is no server of nvembed: {response.text[:100]!r}") from error
    return answer


def _said(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def query_task(instruction: str | None, task: str | None) -> tuple[str | None, str | None]:
    """Return instruction and task for queries; with neither, the task ``DEFAULT_TASK``.

    Raises:
        InputError: both are given.
    """
    if instruction is not None and task is not None:
        raise InputError(f"instruction and task ({task!r}) are both given: pass one of them")
    return instruction, DEFAULT_TASK if instruction is None and task is None else task
