"""Write one shard of an embedded corpus (docs/reference/embedded-corpus.md).  n passages, D numbers each."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvembed.embed.passages import TEXT_SCHEMA, Passages
from nvembed.embed.records import FORMAT, ShardEntry, ShardFooter, Storage
from nvembed.embed.write import as_output_error
from nvembed.errors import DataError, NumericsError, OutputError
from nvembed.files import atomic_path, file_digest, parse_json

ROW_GROUP = 1024
METADATA_KEY = b"nvembed"

DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


class Embedded(Protocol):
    """Vectors of some texts, their token counts, and which texts were cut."""

    @property
    def vectors(self) -> np.ndarray: ...  # float32 (n, D)

    @property
    def num_tokens(self) -> np.ndarray: ...  # (n,), tokens read, after any cut

    @property
    def truncated(self) -> np.ndarray: ...  # (n,) bool


# texts, or documents of late chunking -> their vectors in parts, in order; the same input always gives the
# same parts
Encode = Callable[[Sequence[Any]], Iterable[Embedded]]


def schema(dim: int, storage: Storage) -> pa.Schema:
    """Return the columns of a shard."""
    number = pa.float16() if storage == "float16" else pa.float32()
    vector = pa.list_(pa.field("element", number, nullable=False), dim)
    fields = {field.name: field for field in TEXT_SCHEMA}
    fields["tokens"] = pa.field("tokens", pa.int32(), nullable=False)
    fields["truncated"] = pa.field("truncated", pa.bool_(), nullable=False)
    order = ("id", "document", "start", "end", "text", "tokens", "truncated", "metadata")
    return pa.schema([*(fields[name] for name in order), pa.field("vector", vector, nullable=False)])


def shard_path(out: Path, number: int) -> Path:
    return out / "shards" / f"{number:05d}.parquet"


def digest_path(shard: Path) -> Path:
    """Return the file with the SHA-256 of a shard; it is removed when the manifest is written."""
    return shard.with_suffix(".sha256")


def write_shard(
    target: Path,
    passages: Passages,
    encode: Encode,
    inputs: Sequence[Any],
    made_by: dict[str, Any],
    *,
    dim: int,
    storage: Storage,
    advance: Callable[[float], None] = lambda _: None,
) -> None:
    """Embed the passages of a shard and write it, whole or not at all.

    Memory holds the vectors of two parts of ``encode`` at a time.

    Args:
        inputs: the argument of ``encode``: ``passages.inputs`` or ``passages.whole``.
        made_by: ``job`` and ``shard``, for the file's metadata.
        advance: called after each part with the finished share of the shard, 0 to 1.

    Raises:
        DataError: ``encode`` returns another number of vectors, or vectors of another length.
        NumericsError: a vector is not finite in ``storage``.
        OutputError: the shard cannot be written.
    """
    columns = schema(dim, storage)
    counts = {"documents": passages.documents, "tokens": 0, "truncated": 0, "empty": 0}
    done = 0
    with (
        atomic_path(target) as temporary,
        _writer(temporary, target, columns) as writer,
        ThreadPoolExecutor(1, "write") as background,  # writes a part while the next one is computed
    ):

        def write(table: pa.Table) -> None:
            with _as_output_error(target):
                writer.write_table(table, row_group_size=ROW_GROUP)

        writing: Future[None] | None = None
        for part in encode(inputs):
            rows = passages.table.slice(done, len(part.vectors))
            done += len(part.vectors)
            counts["tokens"] += int(part.num_tokens.sum())
            counts["truncated"] += int(part.truncated.sum())
            counts["empty"] += sum(not text or text.isspace() for text in rows["text"].to_pylist())
            table = _with_vectors(rows, part, columns, dim, storage)
            if writing is not None:
                writing.result()
            writing = background.submit(write, table)
            advance(done / max(1, passages.table.num_rows))
        if writing is not None:
            writing.result()
        if done != passages.table.num_rows:
            raise DataError(f"{done:,} vectors of {passages.table.num_rows:,} passages")
        about = json.dumps({"format": FORMAT, **made_by, **counts})
        writer.add_key_value_metadata({METADATA_KEY: about.encode()})


@contextmanager
def _writer(path: Path, target: Path, columns: pa.Schema) -> Iterator[pq.ParquetWriter]:
    compression = {name: "zstd" for name in columns.names if name != "vector"}
    with _as_output_error(target):
        stream = path.open("wb")
        writer = pq.ParquetWriter(
            stream,
            columns,
            compression={**compression, "vector.list.element": "none"},
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        )
    try:
        yield writer
    except BaseException:
        with suppress(Exception):  # this writes the footer, which may fail as the write did
            writer.close()
        with suppress(OSError):
            stream.close()
        raise
    with _as_output_error(target):
        writer.close()
        stream.close()


@contextmanager
def _as_output_error(target: Path) -> Iterator[None]:
    """Turn Arrow's errors while writing into OutputError, too."""
    try:
        with as_output_error(target):
            yield
    except pa.ArrowException as error:
        raise OutputError(f"could not write {target}: {error}; nothing was left behind") from error


def _with_vectors(rows: pa.Table, part: Embedded, columns: pa.Schema, dim: int, storage: Storage) -> pa.Table:
    if part.vectors.shape != (rows.num_rows, dim):
        raise DataError(f"vectors of shape {part.vectors.shape}; expected ({rows.num_rows}, {dim})")
    vectors = part.vectors.astype(DTYPES[storage])
    if not np.isfinite(vectors).all():
        raise NumericsError(f"a vector is not finite as {storage}: check the weights with  nvembed check")
    numbers = pa.array(vectors.reshape(-1))
    arrays = {name: rows[name] for name in rows.column_names}
    arrays["tokens"] = pa.array(np.asarray(part.num_tokens, dtype=np.int32))
    arrays["truncated"] = pa.array(np.asarray(part.truncated, dtype=bool))
    arrays["vector"] = pa.FixedSizeListArray.from_arrays(numbers, type=columns.field("vector").type)
    return pa.table([arrays[name] for name in columns.names], schema=columns)


def is_shard(path: Path, job: str, number: int) -> bool:
    """Whether there is the finished shard of this number of this job, with its digest.

    Without a file with its digest, its pages are read and compared with their checksums.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            footer = _footer(file, path)
            if (footer.job, footer.shard) != (job, number):
                return False
            if digest_path(path).exists():
                return digest_path(path).read_text(encoding="ascii") == file_digest(path)
            rows: int = file.metadata.num_rows
            read: int = sum(batch.num_rows for batch in file.iter_batches(ROW_GROUP))
            return read == rows
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return False


def shard_entry(path: Path) -> ShardEntry:
    """Return a finished shard's entry in the manifest.

    Raises:
        OutputError: it cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            footer, rows = _footer(file, path), file.metadata.num_rows
        return ShardEntry(
            name=path.name,
            documents=footer.documents,
            rows=rows,
            tokens=footer.tokens,
            truncated=footer.truncated,
            empty=footer.empty,
            bytes=path.stat().st_size,
            sha256=file_digest(path),
        )
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise OutputError(
            f"cannot read {path} ({error}). Remove it and run the same command again"
        ) from error


def _footer(file: pq.ParquetFile, path: Path) -> ShardFooter:
    raw = (file.metadata.metadata or {})[METADATA_KEY]
    return parse_json(raw, str(path), ShardFooter, cure="Remove it and run the same command again")
