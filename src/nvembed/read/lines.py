"""Records of files, each with its place, so that reading can begin anywhere and an error has a line.

====================  =====================================================================
.txt                  one record per line: ``{"text": line}``
.jsonl                one object per line
.csv .tsv             a header line, then one record per row
.parquet .arrow       one record per row (extra ``search``)
====================  =====================================================================
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from nvembed.errors import DataError, MissingExtraError
from nvembed.files import Line, located_lines, open_binary

LINE_KINDS = ("txt", "jsonl", "csv", "tsv")
TABLE_KINDS = ("parquet", "arrow")
TABLE_ROWS = 1024  # rows of a table in memory at a time


class Place(NamedTuple):
    """Where a record begins."""

    offset: int = 0  # bytes of the (unzipped) file before it; of a table always 0
    line: int = 1  # of a table always 1
    row: int = 0  # records before it


START = Place()


class Record(NamedTuple):
    """The fields of a record, or what is wrong with it."""

    place: Place
    where: str  # how a message names it: ``corpus.jsonl:17``
    fields: Mapping[str, Any] | DataError


def file_records(
    path: Path, kind: str, *, start: Place = START, field: str = "text", others: Sequence[str] | None = None
) -> Iterator[Record]:
    """Yield the records of a file from ``start`` on, which is the place of one of its records.

    Args:
        kind: one of ``LINE_KINDS`` (gzipped or not) or ``TABLE_KINDS``.
        field: the column that a table must have.
        others: its columns that are read too, where it has them; None is all that hold plain values.

    Raises:
        DataError: from here on nothing more can be read of the file; a malformed record alone comes as such.
        MissingExtraError: a table without the extra ``search``.
    """
    with open_binary(path) as stream:
        if kind in TABLE_KINDS:
            yield from _table(stream, path, kind, start.row, (field, others))
        else:
            yield from stream_records(stream, str(path), kind, start=start)


def stream_records(stream: BinaryIO, name: str, kind: str, *, start: Place = START) -> Iterator[Record]:
    """Yield the records of an open binary stream, one of ``LINE_KINDS``; see ``file_records``."""
    if kind in ("csv", "tsv"):
        yield from _csv(stream, name, "," if kind == "csv" else "\t", start)
        return
    if start.offset:
        stream.seek(start.offset)
    lines = located_lines(stream, name, offset=start.offset, number=start.line)
    yield from (_txt if kind == "txt" else _jsonl)(lines, name, start.row)


def _txt(lines: Iterator[Line], name: str, first_row: int) -> Iterator[Record]:
    for row, line in enumerate(lines, start=first_row):
        text = line.text
        fields = text if isinstance(text, DataError) else {"text": text.rstrip("\r\n")}
        yield Record(Place(line.offset, line.number, row), f"{name}:{line.number}", fields)


def _jsonl(lines: Iterator[Line], name: str, row: int) -> Iterator[Record]:
    for line in lines:
        if isinstance(line.text, DataError) or line.text.strip():
            where = f"{name}:{line.number}"
            fields = line.text if isinstance(line.text, DataError) else _json_object(line.text, where)
            yield Record(Place(line.offset, line.number, row), where, fields)
            row += 1


def _json_object(line: str, where: str) -> dict[str, Any] | DataError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return DataError(f"{where}: not JSON ({reason}): {shown(line)}; expected one object per line")
    if not isinstance(record, dict):
        example = '{"_id": "1", "text": "..."}'
        return DataError(f"{where}: a JSON {kind_of(record)}; expected one object per line, like {example}")
    return record


def _csv(stream: BinaryIO, name: str, delimiter: str, start: Place) -> Iterator[Record]:
    rows = _csv_rows(located_lines(stream, name), name, delimiter)
    _, header = next(rows, (None, []))
    if start.offset:
        stream.seek(start.offset)
        lines = located_lines(stream, name, offset=start.offset, number=start.line)
        rows = _csv_rows(lines, name, delimiter)
    number = start.row
    for line, values in rows:
        if values:  # a blank line is no row
            where = f"{name}:{line.number}"
            fields: dict[str, Any] | DataError = dict(zip(header, values, strict=False))
            if len(values) != len(header):
                fields = DataError(
                    f"{where}: {len(values)} fields; expected {len(header)}, as the header has: "
                    "a text with a delimiter or a quote in it must stand in double quotes"
                )
            yield Record(Place(line.offset, line.number, number), where, fields)
            number += 1


def _csv_rows(lines: Iterator[Line], name: str, delimiter: str) -> Iterator[tuple[Line, list[str]]]:
    """Yield each row with the line on which it begins. Where a row ends is lost with a malformed one."""
    # csv's own limit of 131,072 characters per field is the process's; a text may be longer.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    begins: list[Line] = []

    def texts() -> Iterator[str]:
        for line in lines:
            if isinstance(line.text, DataError):
                raise line.text
            if not begins:
                begins.append(line)
            yield line.text

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        begins.clear()
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{name}:{begins[0].number}: not CSV ({error})") from error
        yield begins[0], values


Wanted = tuple[str, Sequence[str] | None]


def _table(stream: BinaryIO, path: Path, kind: str, first_row: int, wanted: Wanted) -> Iterator[Record]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs the package pyarrow: install the extra with  pip install 'nvembed[search]'"
        ) from error
    batches = _parquet_batches if kind == "parquet" else _arrow_batches
    try:
        for row, batch in batches(stream, path, first_row, wanted):
            skip = max(0, first_row - row)
            for number, fields in enumerate(batch.slice(skip).to_pylist(), start=row + skip):
                yield Record(Place(row=number), f"{path}, row {number}", fields)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a whole {kind.capitalize()} file ({error})") from error


def _parquet_batches(
    stream: BinaryIO, path: Path, first_row: int, wanted: Wanted
) -> Iterator[tuple[int, Any]]:
    """Yield (rows before it, batch), from the row group on that holds ``first_row``."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(stream) as file:
        row = group = 0
        while group < file.num_row_groups and row + file.metadata.row_group(group).num_rows <= first_row:
            row += file.metadata.row_group(group).num_rows
            group += 1
        columns = _columns(file.schema_arrow, path, wanted)
        groups = list(range(group, file.num_row_groups))
        for batch in file.iter_batches(TABLE_ROWS, row_groups=groups, columns=columns):
            yield row, batch
            row += batch.num_rows


def _arrow_batches(stream: BinaryIO, path: Path, first_row: int, wanted: Wanted) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    with pa.ipc.open_stream(stream) as reader:
        columns = _columns(reader.schema, path, wanted)
        row = 0
        for whole in reader:
            for start in range(0, whole.num_rows, TABLE_ROWS):
                batch = whole.slice(start, TABLE_ROWS)
                if row + batch.num_rows > first_row:
                    yield row, batch.select(columns)
                row += batch.num_rows


def _columns(schema: Any, path: Path, wanted: Wanted) -> list[str]:
    field, others = wanted
    if field not in schema.names:
        raise no_field(str(path), field, schema.names)
    return [
        column.name
        for column in schema
        if column.name == field or (_plain(column.type) if others is None else column.name in others)
    ]


def _plain(kind: Any) -> bool:
    """Whether values of an Arrow type are worth keeping beside a text: no images, no vectors."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind):
        return not types.is_floating(kind.value_type) and _plain(kind.value_type)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_dictionary(kind)
    return bool(text or types.is_primitive(kind) or types.is_decimal(kind) or types.is_null(kind))


def no_field(where: str, field: str, names: Iterable[str]) -> DataError:
    """Return the error about a record or table that lacks the field with the text."""
    has = ", ".join(sorted(repr(name) for name in names)) or "none"
    return DataError(
        f"{where}: no field {field!r}; the fields here are {has}: choose the one that holds the text"
    )


def kind_of(value: object) -> str:
    """Return what JSON calls the kind of a value."""
    kinds = {dict: "object", list: "list", str: "string", bool: "truth value", type(None): "null"}
    return kinds.get(type(value), "number")


def shown(value: object) -> str:
    """Return the beginning of a value, fit for a message."""
    text = ascii(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
