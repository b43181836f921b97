"""The interface of a store of passages: LanceDB or PostgreSQL.  D numbers of a vector.

A store finds candidates; ``retrieve`` computes their exact scores from their vectors.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nvembed.errors import DataError, NvembedError, OutputError
from nvembed.search.fields import Kind
from nvembed.search.where import Condition

if TYPE_CHECKING:
    import pyarrow as pa

# Below this number of passages every vector is compared: an index would save milliseconds and lose recall.
EXACT_ROWS = 20_000
# Errors of the library's own code on damaged files; their classes cannot be imported.
_PANICS = ("RustPanic", "PanicException")


class Row(NamedTuple):
    """A stored passage; see docs/reference/embedded-corpus.md."""

    id: str
    document: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]


Scored = tuple[Row, float]  # a passage and its score: higher is better


@dataclass(frozen=True)
class Near:
    """Candidates for the nearest passages, in any order. ``vectors``: float16 or float32 (rows, D)."""

    rows: list[Row]
    vectors: np.ndarray


class Store(Protocol):
    """The passages of one index. Searches may run on several threads at once.

    A batch has the columns of an embedded corpus and ``words``: the words to index, separated by spaces.
    ``put`` and ``delete`` are transactions and may be repeated.
    """

    def fill(self, batches: Iterator["pa.RecordBatch"], fields: dict[str, Kind]) -> list[str]:
        """Create the table from all documents of a corpus. Return warnings."""

    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        """Return at least the ``count`` nearest passages that match, or all of them."""

    def matching(self, words: Sequence[str], count: int, where: Sequence[Condition]) -> list[Scored]:
        """Return the ``count`` best of the passages that match and have any of the words, or all of them."""

    def put(self, batch: "pa.RecordBatch", fields: dict[str, Kind]) -> list[str]:
        """Add whole documents; existing ones are replaced as a whole. Return warnings."""

    def delete(self, documents: Sequence[str]) -> None:
        """Remove documents; unknown ones are ignored."""

    def known(self, documents: Sequence[str]) -> set[str]:
        """Return those of these documents that exist."""

    def documents(self) -> set[str]:
        """Return the names of all documents."""

    def passages(self, documents: Sequence[str]) -> "pa.Table":
        """Return the passages of some documents, with their vectors, in any order."""

    def texts(self) -> Iterator[tuple[str, str, str]]:
        """Yield id, text and metadata of every passage, in any order."""

    def finish(self) -> None:
        """Update the indexes after ``put`` and ``delete``."""

    def change(self) -> AbstractContextManager[None]:
        """Put and delete in a ``with`` statement. An error in it restores a LanceDB table."""

    def count(self) -> tuple[int, int]:
        """Return the numbers of documents and passages."""

    def read_through(self) -> int:
        """Read every passage; return their number."""

    def ping(self) -> None:
        """Raise DataError if the table cannot be reached."""

    def drop(self) -> None:
        """Remove the table."""

    def close(self) -> None:
        """Release files and connections."""


@contextmanager
def errors_of(library: str, kinds: tuple[type[Exception], ...], *, writing: bool = False) -> Iterator[None]:
    """Turn a library's errors into ours: DataError, or OutputError while ``writing``. Also a decorator."""
    try:
        yield
    except NvembedError:
        raise
    except BaseException as error:
        if not isinstance(error, kinds) and type(error).__name__ not in _PANICS:
            raise
        message = f"{library}: {str(error).strip() or type(error).__name__}"
        cure = "If this fails again, the index is damaged: build it with nvembed index CORPUS --rebuild"
        if writing:
            raise OutputError(f"{message}. Run the command again. {cure}") from error
        raise DataError(f"{message}. Try again. {cure}") from error
