"""An embedded corpus, read: docs/reference/embedded-corpus.md.  n rows of a block, D numbers each."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvembed.embed.shard import FORMAT, ROW_GROUP, Storage, schema
from nvembed.errors import DataError


@dataclass(frozen=True)
class EmbeddedCorpus:
    """A finished folder; ``manifest`` is the content of ``manifest.json``. Made by ``open_embedded``."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def rows(self) -> int:
        """Passages."""
        return int(self.manifest["counts"]["passages"])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.manifest["dim"])

    @property
    def storage(self) -> Storage:
        """What the vectors are stored as."""
        storage: Storage = self.manifest["settings"]["storage"]
        return storage

    def batches(
        self, columns: Sequence[str] | None = None, *, rows: int = ROW_GROUP
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches of at most ``rows`` rows, in the corpus's order.

        Args:
            columns: the columns that are read; None is all.

        Raises:
            DataError: a shard cannot be read.
        """
        for shard in self.manifest["shards"]:
            path = self.folder / "shards" / shard["name"]
            try:
                with pq.ParquetFile(path) as file:
                    yield from file.iter_batches(rows, columns=None if columns is None else list(columns))
            except (OSError, pa.ArrowException) as error:
                raise _damaged(path, f"cannot be read ({error})") from error

    def vectors(self, *, rows: int = ROW_GROUP) -> Iterator[np.ndarray]:
        """Yield the vectors as blocks (n, D) of at most ``rows`` rows, in the dtype they are stored in."""
        for batch in self.batches(["vector"], rows=rows):
            yield vectors_of(batch)

    def verify(self) -> None:
        """Read every shard and compare it with its checksum.

        Raises:
            DataError: one differs.
        """
        for shard in self.manifest["shards"]:
            path = self.folder / "shards" / shard["name"]
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
            if digest.hexdigest() != shard["sha256"]:
                raise _damaged(path, "is not what was written (its sha256 differs)")


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    """Return the column ``vector`` of a record batch as (n, D), float16 or float32 as it is stored."""
    column = batch.column("vector")
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def open_embedded(folder: str | Path) -> EmbeddedCorpus:
    """Open what ``nvembed embed`` wrote.

    Shards are there, as large as they were written and have the columns of their format; their checksums
    are compared by ``verify`` only.

    Raises:
        DataError: there is no manifest (the job has not finished), it is of another format, or a shard is
            missing, or of another size.
    """
    folder = Path(folder)
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        begun = (folder / "job.json").exists()
        state = "an unfinished job: run its command again" if begun else "no embedded corpus: make one"
        raise DataError(f"{folder} holds {state} (nvembed embed CORPUS {folder} --model MODEL)") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): embed the corpus again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise DataError(
            f"{path} has format {found!r}; expected {FORMAT}: embed the corpus again, or update nvembed"
        )
    for shard in manifest["shards"]:
        _check_shard(folder / "shards" / shard["name"], shard["bytes"])
    corpus = EmbeddedCorpus(folder, manifest)
    first = folder / "shards" / manifest["shards"][0]["name"]
    expected = schema(corpus.dim, corpus.storage)
    try:
        columns = pq.read_schema(first)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(first, f"cannot be read ({error})") from error
    if not columns.equals(expected):
        raise DataError(
            f"{first} has columns {columns.names}; expected {expected.names} "
            "(docs/reference/embedded-corpus.md)"
        )
    return corpus


def _check_shard(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} is missing: run the command that embedded the corpus again") from error
    if found != size:
        raise _damaged(path, f"has {found:,} bytes; expected {size:,}")


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path} {what}: remove it, and run the command that embedded the corpus again")
