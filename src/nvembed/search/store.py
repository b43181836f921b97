"""What a store of passages must do: LanceDB or PostgreSQL.

D numbers of a vector. A store finds candidates; ``retrieve`` scores them exactly, from their own vectors.
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

# Below this many passages every vector is compared: an index would save milliseconds and lose recall.
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


@dataclass(frozen=True)
class Near:
    """Candidates for the nearest passages, in no order. ``vectors``: float16 or float32 (rows, D)."""

    rows: list[Row]
    vectors: np.ndarray


class Store(Protocol):
    """The passages of one index. Searches may run on several threads at once.

    A batch has the columns of an embedded corpus and ``words``: the passage's words, ready to be indexed,
    separated by spaces. ``put`` and ``delete`` happen whole or not at all, and may be repeated.
    """

    def fill(self, batches: Iterator["pa.RecordBatch"], fields: dict[str, Kind]) -> list[str]:
        """Make the table from all the documents of a corpus; there is none before. Return warnings."""

    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        """Return at least the ``count`` nearest passages that match, or all there are."""

    def matching(self, words: Sequence[str], count: int, where: Sequence[Condition]) -> list[Row]:
        """Return up to ``count`` passages with any of the words that match, best first."""

    def put(self, batch: "pa.RecordBatch", fields: dict[str, Kind]) -> list[str]:
        """Add whole documents; a document that is there already is replaced, all of it. Return warnings."""

    def delete(self, documents: Sequence[str]) -> None:
        """Remove documents; unknown ones are ignored."""

    def known(self, documents: Sequence[str]) -> set[str]:
        """Return which of these documents are there."""

    def finish(self) -> None:
        """Bring the indexes up to date with what was put and deleted."""

    def change(self) -> AbstractContextManager[None]:
        """Put and delete in a ``with`` statement. An error there restores a LanceDB table as it was."""

    def count(self) -> tuple[int, int]:
        """Return how many documents and passages there are."""

    def read_through(self) -> int:
        """Read every passage, and return how many there are."""

    def ping(self) -> None:
        """Raise DataError if the table cannot be reached."""

    def drop(self) -> None:
        """Remove everything this store keeps."""

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
        cure = "If that fails too, the index is damaged: build it again with nvembed index CORPUS --rebuild"
        if writing:
            raise OutputError(f"{message}. Run the command again. {cure}") from error
        raise DataError(f"{message}. Try again. {cure}") from error
