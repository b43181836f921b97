"""Reading an embedded corpus (docs/reference/embedded-corpus.md).  n rows of a block, D numbers each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvembed.embed.records import plain, read_manifest
from nvembed.embed.shard import ROW_GROUP, schema
from nvembed.errors import DataError

CURE = "Run the nvembed embed command of this corpus again: it computes damaged shards again"


@dataclass(frozen=True)
class EmbeddedCorpus:
    """A finished folder, opened by ``open_embedded``; ``manifest`` is the content of ``manifest.json``."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of passages."""
        return int(self.manifest["counts"]["passages"])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.manifest["dim"])

    def batches(
        self, columns: Sequence[str] | None = None, *, rows: int = ROW_GROUP
    ) -> Iterator[pa.RecordBatch]:
        """Yield record batches of at most ``rows`` rows, in the corpus's order; page checksums are verified.

        Args:
            columns: the columns to read; None reads all.

        Raises:
            DataError: a shard cannot be read, or is damaged.
        """
        for shard in self.manifest["shards"]:
            path = self.folder / "shards" / shard["name"]
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    yield from file.iter_batches(rows, columns=None if columns is None else list(columns))
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path} cannot be read ({error}). {CURE}") from error

    def vectors(self, *, rows: int = ROW_GROUP) -> Iterator[np.ndarray]:
        """Yield the vectors as blocks (n, D) of at most ``rows`` rows, in the dtype they are stored in."""
        for batch in self.batches(["vector"], rows=rows):
            yield vectors_of(batch)


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    """Return the column ``vector`` of a record batch as (n, D), float16 or float32 as it is stored."""
    column = batch.column("vector")
    values: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), column.type.list_size)


def open_embedded(folder: str | Path) -> EmbeddedCorpus:
    """Open a folder that ``nvembed embed`` wrote; ``check.check_embedded`` compares checksums too.

    Raises:
        DataError: the job has not finished, the manifest is damaged or of another version, or a shard is
            missing, or has another size or other columns.
    """
    folder = Path(folder)
    record = read_manifest(folder)
    if record is None:
        started = any((folder / name).exists() for name in ("job.json", "plan.json"))
        state = "is an unfinished job. Run its command again" if started else "is not an embedded corpus"
        raise DataError(f"{folder} {state}: nvembed embed CORPUS {folder} --model MODEL")
    for shard in record.shards:
        path = folder / "shards" / shard.name
        if not path.is_file():
            raise DataError(f"{path} is missing. {CURE}")
        if (size := path.stat().st_size) != shard.bytes:
            raise DataError(f"{path} has {size:,} bytes; expected {shard.bytes:,}. {CURE}")
    first = folder / "shards" / record.shards[0].name
    expected = schema(record.dim, record.settings.storage)
    try:
        columns = pq.read_schema(first)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{first} cannot be read ({error}). {CURE}") from error
    if not columns.equals(expected):
        raise DataError(f"{first} has the columns {columns.names}; expected {expected.names}. {CURE}")
    return EmbeddedCorpus(folder, plain(record))
