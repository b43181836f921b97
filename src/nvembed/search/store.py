"""What a store of passages must do, whoever keeps them: LanceDB, Qdrant or PostgreSQL.

D numbers of a vector. A store finds candidates; ``retrieve`` scores them exactly, from their own vectors.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from nvembed.errors import DataError, NvembedError, OutputError
from nvembed.search.where import Condition, Kind

if TYPE_CHECKING:
    import pyarrow as pa

# Below this many passages every vector is compared: an index would save milliseconds and lose recall.
EXACT_ROWS = 20_000


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
    """One index's passages. ``put`` and ``delete`` are whole or not at all, and may be repeated."""

    def fill(self, batches: Iterator["pa.RecordBatch"], fields: dict[str, Kind]) -> None:
        """Make the table from all the documents of a corpus; there is none before."""

    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        """Return at least the ``count`` nearest passages that match, or all there are."""

    def matching(self, query: str, count: int, where: Sequence[Condition]) -> list[Row]:
        """Return up to ``count`` passages with words of the query that match, best first."""

    def put(self, batch: "pa.RecordBatch", fields: dict[str, Kind]) -> None:
        """Add whole documents; one that is there already is replaced, all of it."""

    def delete(self, documents: Sequence[str]) -> None:
        """Remove documents; one that is not there is passed over."""

    def known(self, documents: Sequence[str]) -> set[str]:
        """Return which of these documents are there."""

    def finish(self) -> None:
        """Bring the indexes up to date with what was put and deleted."""

    def count(self) -> tuple[int, int]:
        """Return how many documents and passages there are."""

    def drop(self) -> None:
        """Remove everything this store keeps."""

    def close(self) -> None:
        """Let go of files and connections."""


@contextmanager
def errors_of(library: str, kinds: tuple[type[Exception], ...], *, writing: bool = False) -> Iterator[None]:
    """Turn a library's errors into ours: DataError, or OutputError while ``writing``. Also a decorator."""
    try:
        yield
    except NvembedError:
        raise
    except kinds as error:
        said = f"{library} said: {str(error).strip()}"
        if writing:
            raise OutputError(
                f"{said}; the index is as it was before this step: run the command again"
            ) from error
        raise DataError(f"{said}; if the index was built again since, open it again") from error
