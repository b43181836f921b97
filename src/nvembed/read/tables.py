"""Records of Parquet and Arrow files; ``lines.file_records`` calls this.

Dictionaries are not expanded and batches are small, so that the memory depends on the size of the file and
not on the size of its values when expanded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from nvembed.errors import DataError
from nvembed.read.streams import (
    FREE_BYTES,
    LINE_BYTES,
    MAX_EXPANSION,
    FileRecord,
    Place,
    no_field,
    open_binary,
    too_large,
)

BATCH_ROWS = 1024  # in memory at a time
BATCH_BYTES = 64 << 20

# (rows before it, batch)
Batches = Iterator[tuple[int, pa.RecordBatch]]


def table_records(
    path: Path, kind: str, start: Place, field: str | None, others: Sequence[str] | None
) -> Iterator[FileRecord]:
    """Yield the rows of a Parquet or Arrow file from row ``start.row`` on; see ``lines.file_records``."""
    batches = _parquet_batches if kind == "parquet" else _arrow_batches
    size = 0
    with open_binary(path) as stream, _as_data_error(path, kind):
        limit = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
        for row, batch in batches(stream, path, start.row, (field, others)):
            skip = max(0, start.row - row)
            names = batch.schema.names
            columns = batch.columns
            batch_size = sum(map(_expanded_bytes, columns))
            size += batch_size
            if size > limit:
                raise too_large(path, limit)
            for index in range(skip, batch.num_rows):
                place, where = Place(row=row + index), f"{path}, row {row + index}"
                if batch_size > LINE_BYTES:
                    row_size = sum(_expanded_bytes(column.slice(index, 1)) for column in columns)
                    if row_size > LINE_BYTES:
                        fault = f"{where}: a record of {row_size:,} bytes; expected at most {LINE_BYTES:,}"
                        yield FileRecord(place, where, DataError(fault))
                        continue
                try:
                    fields = {
                        name: column[index].as_py() for name, column in zip(names, columns, strict=True)
                    }
                except UnicodeDecodeError as error:
                    yield FileRecord(place, where, DataError(f"{where}: a string is not UTF-8 ({error})"))
                    continue
                yield FileRecord(place, where, fields)


def _expanded_bytes(array: pa.Array) -> int:
    """Return the size of the values of an array; a value of a dictionary counts each time it occurs."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        if not _has_length(kind.value_type):
            return len(array) * _expanded_bytes(array.dictionary) // max(1, len(array.dictionary))
        return pc.sum(pc.binary_length(array.dictionary).take(array.indices)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(map(_expanded_bytes, array.flatten()))
    if pa.types.is_nested(kind) and hasattr(array, "flatten"):
        return _expanded_bytes(array.flatten())
    return (pc.sum(pc.binary_length(array)).as_py() or 0) if _has_length(kind) else array.nbytes


def _has_length(kind: pa.DataType) -> bool:
    types = pa.types
    text = types.is_string(kind) or types.is_large_string(kind)
    return bool(text or types.is_binary(kind) or types.is_large_binary(kind))


@contextmanager
def _as_data_error(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:  # usually a damaged length
        raise DataError(f"{path}: damaged, or too large for the memory ({error})") from error
    except (pa.ArrowException, ValueError, LookupError, OverflowError, TypeError) as error:
        raise DataError(f"{path}: not a whole {kind.capitalize()} file ({error})") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise DataError(f"{path}: not a whole {kind.capitalize()} file ({error})") from error


Selection = tuple[str | None, Sequence[str] | None]


def _parquet_batches(stream: BinaryIO, path: Path, first_row: int, selection: Selection) -> Batches:
    """Yield the batches from the row group with ``first_row`` on."""
    with pq.ParquetFile(stream) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    chunks = [group.column(i) for group in groups for i in range(group.num_columns)]
    limit = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
    if any(chunk.total_uncompressed_size > limit for chunk in chunks):
        raise too_large(path, limit)
    strings = {
        chunk.path_in_schema
        for chunk in chunks
        if chunk.physical_type == "BYTE_ARRAY" and chunk.has_dictionary_page
    }
    stream.seek(0)
    with pq.ParquetFile(stream, read_dictionary=sorted(strings)) as file:
        columns = _columns(file.schema_arrow, path, selection)
        row = first = 0
        while first < len(groups) and row + groups[first].num_rows <= first_row:
            row += groups[first].num_rows
            first += 1
        for number in range(first, len(groups)):
            group = groups[number]
            mean = max(1, group.total_byte_size // max(1, group.num_rows))
            rows = max(1, min(BATCH_ROWS, BATCH_BYTES // mean))
            for batch in file.iter_batches(rows, row_groups=[number], columns=columns):
                yield row, batch
                row += batch.num_rows


def _arrow_batches(stream: BinaryIO, path: Path, first_row: int, selection: Selection) -> Batches:
    """Yield the batches of an Arrow stream, or of an Arrow file, which begins with ARROW1."""
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    with pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream) as reader:
        columns = _columns(reader.schema, path, selection)
        parts = map(reader.get_batch, range(reader.num_record_batches)) if is_file else chain(reader)
        row = 0
        for part in parts:
            if row + part.num_rows > first_row:
                part.validate(full=True)  # a damaged offset would be read past the end of the memory
                yield row, part.select(columns)
            row += part.num_rows


def _columns(columns: pa.Schema, path: Path, selection: Selection) -> list[str]:
    field, others = selection
    names = columns.names
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: two columns are called {twice[0]!r}; expected unique names")
    if field is not None and field not in names:
        raise no_field(str(path), field, names)
    if others is not None:
        return [name for name in names if name == field or name in others]
    return [
        column.name for column in columns if field is None or column.name == field or _is_plain(column.type)
    ]


def _is_plain(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type are metadata of a text: not images or vectors."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        return not types.is_floating(kind.value_type) and _is_plain(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind)
    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
    return bool(text or types.is_primitive(kind) or types.is_decimal(kind) or types.is_null(kind))
