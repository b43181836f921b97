"""Records of files: the one place that parses JSONL, CSV, TSV, Parquet, Arrow and lines of text.

====================  =====================================================================
.txt                  one record per line: ``{"text": line}``
.jsonl .ndjson        one object per line
.csv                  a header line, then one record per row; the header's delimiter: , ; | or tab
.tsv                  the same with tabs; quotes are plain characters unless the file quotes as CSV does
.parquet              one record per row
.arrow .feather       one record per row
====================  =====================================================================

All but the tables may be compressed: ``.gz``, ``.bz2``, ``.xz``, ``.zst``. Every record has its place, so
that reading can begin anywhere and errors name file and line. Memory holds one record of a text file, or a
few of a table, however large the file is when expanded.
"""

import codecs
import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from nvembed.errors import DataError, InputError
from nvembed.read.streams import (
    COMPRESSIONS,
    START,
    FileRecord,
    Line,
    Place,
    located_lines,
    open_binary,
)

LINE_KINDS = ("txt", "jsonl", "csv", "tsv")
TABLE_KINDS = ("parquet", "arrow")
FORMATS = (*LINE_KINDS, *TABLE_KINDS)
OTHER_NAMES = {"ndjson": "jsonl", "feather": "arrow"}
DELIMITERS = ",;\t|"

ROW_CHARACTERS = 16 << 20  # limit of a CSV row of several lines; csv needs four bytes for each
MAX_DEPTH = 100  # of JSON: a server could not return deeper values
SAMPLE_BYTES = 1 << 20  # of a .tsv file, to find out whether it has quotes

Row = dict[str, Any]


@dataclass(frozen=True)
class TextLayout:
    """The format of a text file, as far as its name does not determine it."""

    delimiter: str | None = None  # of .csv and .tsv with CSV's quotes; None: from the header
    encoding: str | None = None  # None: UTF-8


UTF8 = TextLayout()


def format_of(path: Path) -> str:
    """Return the format of a file by its name: one of ``FORMATS``.

    Raises:
        InputError: the ending of the name is unknown.
    """
    kind = known_format(path)
    if kind is None:
        supported = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(f"{path}: unknown file type {path.suffix!r}. Supported: {supported}")
    return kind


def known_format(path: Path) -> str | None:
    """Return the format of a file by its name, or None if it is unknown."""
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if compressed:
        suffixes.pop()
    kind = OTHER_NAMES.get(suffixes[-1], suffixes[-1]) if suffixes else ""
    return kind if kind in (LINE_KINDS if compressed else FORMATS) else None


def file_records(
    path: Path,
    kind: str,
    *,
    start: Place = START,
    field: str | None = None,
    others: Sequence[str] | None = None,
    layout: TextLayout = UTF8,
) -> Iterator[FileRecord]:
    """Yield the records of a file from ``start`` on, the place of a record.

    Args:
        kind: one of ``FORMATS``.
        field: a column that a table must have.
        others: optional columns of a table to read too. None: with ``field``, all columns of plain values;
            without it, all columns.

    Raises:
        DataError: the rest of the file cannot be read. A malformed record is yielded as its error.
    """
    if kind in TABLE_KINDS:
        from nvembed.read.tables import table_records

        yield from table_records(path, kind, start, field, others)
        return
    with open_binary(path, encoding=layout.encoding) as stream:
        yield from stream_records(stream, str(path), kind, start=start, layout=layout)


def stream_records(
    stream: BinaryIO, name: str, kind: str, *, start: Place = START, layout: TextLayout = UTF8
) -> Iterator[FileRecord]:
    """Yield the records of an open UTF-8 stream, one of ``LINE_KINDS``; otherwise as ``file_records``."""
    if kind in ("csv", "tsv"):
        yield from _csv(stream, name, kind, start, layout)
        return
    if start.offset:
        stream.seek(start.offset)
    lines = located_lines(stream, name, offset=start.offset, number=start.line)
    yield from (_txt if kind == "txt" else _jsonl)(lines, name, start.row)


def read_rows(
    path: str | os.PathLike[str], *, columns: Sequence[str] | None = None, layout: TextLayout = UTF8
) -> Iterator[tuple[str, Row]]:
    """Yield ``("file:line", fields)`` of each record of a file.

    Args:
        columns: the columns of a table to read; None reads all.
        layout: of a text file.

    Raises:
        DataError: the file cannot be read, has no record, or a record is malformed.
        InputError: the ending of the name is unknown.
    """
    path = Path(path)
    kind = format_of(path)
    empty = True
    for record in file_records(path, kind, others=columns, layout=layout):
        empty = False
        if isinstance(record.fields, DataError):
            raise record.fields
        yield record.where, cast(Row, record.fields)
    if empty:
        raise DataError(f"{path}: the file is empty; expected at least one record")


def _txt(lines: Iterator[Line], name: str, first_row: int) -> Iterator[FileRecord]:
    for row, line in enumerate(lines, start=first_row):
        text = line.text
        fields = text if isinstance(text, DataError) else {"text": text.rstrip("\r\n")}
        yield FileRecord(Place(line.offset, line.number, row), f"{name}:{line.number}", fields)


# --- JSON


def _jsonl(lines: Iterator[Line], name: str, row: int) -> Iterator[FileRecord]:
    for line in lines:
        if isinstance(line.text, DataError) or line.text.strip():
            where = f"{name}:{line.number}"
            fields: Mapping[str, Any] | DataError
            try:
                fields = line.text if isinstance(line.text, DataError) else json_object(where, line.text)
            except DataError as error:
                fields = error
            yield FileRecord(Place(line.offset, line.number, row), where, fields)
            row += 1


# A line without any of these has no value that is refused: 19 digits, half a surrogate pair, a NUL.
_SUSPECT = re.compile(r"\d{19}|\\u(?:[dD][89a-fA-F]|0000)|[\ud800-\udfff]")


def json_object(where: str, line: str | bytes) -> Row:
    """Parse one JSON object and check every value of it.

    Args:
        where: the place of the line, for errors.

    Raises:
        DataError: it is not a JSON object, is nested deeper than ``MAX_DEPTH``, or has an integer above 64
            bits, a NUL, or half a surrogate pair.
    """
    try:
        text = line if isinstance(line, str) else line.decode("utf-8")
        row = json.loads(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1})") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(
            f"{where}: not JSON ({reason}): {shown(line)}; expected one object per line"
        ) from error
    if not isinstance(row, dict):
        example = '{"_id": "1", "text": "..."}'
        raise DataError(f"{where}: a JSON {kind_of(row)}; expected one object per line, like {example}")
    if text.count("{") + text.count("[") > MAX_DEPTH or _SUSPECT.search(text):
        check_values(row, where)
    return row


def check_values(row: Mapping[str, Any], where: str) -> None:
    """Raise DataError if a value cannot be stored and returned; see ``json_object``."""
    level: list[tuple[str, Any]] = [(f"the field {name!r}", value) for name, value in row.items()]
    for key in row:
        _check_string(f"the field name {key!r}", key, where)
    for _ in range(MAX_DEPTH):
        below: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, str):
                _check_string(name, value, where)
            elif isinstance(value, dict):
                for key, item in value.items():
                    _check_string(name, key, where)
                    below.append((name, item))
            elif isinstance(value, list):
                below += ((name, item) for item in value)
            elif isinstance(value, int) and not -(2**63) <= value < 2**64:
                cure = "expected at most 64 bits: write it as a string"
                raise DataError(f"{where}: {name} is the integer {shown(value)}; {cure}")
        level = below
        if not level:
            return
    raise DataError(f"{where}: {level[0][0]} is nested more than {MAX_DEPTH} deep: flatten it")


def _check_string(name: str, value: str, where: str) -> None:
    if "\0" in value:
        raise DataError(f"{where}: {name} has a NUL character (\\u0000): remove it")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise DataError(
                f"{where}: {name} has half a surrogate pair ({half}), which is not a character: remove it"
            ) from error


# --- CSV


def _csv(stream: BinaryIO, name: str, kind: str, start: Place, layout: TextLayout) -> Iterator[FileRecord]:
    delimiter, quoted = _dialect(stream, name, kind, layout)
    rows = _csv_rows(located_lines(stream, name), name, delimiter, quoted)
    _, header = next(rows, (None, []))
    if twice := [column for column, count in Counter(header).items() if count > 1]:
        raise DataError(f"{name}:1: two columns are called {twice[0]!r}; expected unique names")
    if start.offset:
        stream.seek(start.offset)
        lines = located_lines(stream, name, offset=start.offset, number=start.line)
        rows = _csv_rows(lines, name, delimiter, quoted)
    number = start.row
    for line, values in rows:
        if values:  # a blank line is not a row
            where = f"{name}:{line.number}"
            fields: dict[str, Any] | DataError = dict(zip(header, values, strict=False))
            if len(values) != len(header):
                fields = DataError(
                    f"{where}: {len(values)} fields; expected {len(header)}, as the header has, separated by "
                    f"{delimiter!r}. {_QUOTES if quoted else _NO_QUOTES}"
                )
            yield FileRecord(Place(line.offset, line.number, number), where, fields)
            number += 1


_QUOTES = "Put texts that contain a delimiter or a quote in double quotes"
_NO_QUOTES = "Quotes are plain characters in this file; to read it with CSV's quotes, pass --delimiter tab"


def _csv_rows(
    lines: Iterator[Line], name: str, delimiter: str, quoted: bool
) -> Iterator[tuple[Line, list[str]]]:
    """Yield each row with its first line. After a malformed row, the beginning of the next is unknown."""
    if not quoted:
        for line in lines:
            if isinstance(line.text, DataError):
                raise line.text
            text = line.text.rstrip("\r\n")
            yield line, text.split(delimiter) if text else []
        return
    # csv's default limit of 131,072 characters in a field is global; texts may be longer.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    begins: list[Line] = []
    size = 0

    def texts() -> Iterator[str]:
        nonlocal size
        for line in lines:
            if isinstance(line.text, DataError):
                raise line.text
            if not begins:
                begins.append(line)
                size = 0
            size += len(line.text)
            if size > ROW_CHARACTERS and len(line.text) < size:
                raise DataError(
                    f"{name}:{begins[0].number}: a row of more than {ROW_CHARACTERS:,} characters: is a "
                    "closing quote missing?"
                )
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


def csv_delimiter(path: Path, kind: str, layout: TextLayout) -> str:
    """Return the character that separates the columns of a .csv or .tsv file."""
    with open_binary(path, encoding=layout.encoding) as stream:
        return _dialect(stream, str(path), kind, layout)[0]


def _dialect(stream: BinaryIO, name: str, kind: str, layout: TextLayout) -> tuple[str, bool]:
    """Return the delimiter of a CSV or TSV file, and whether it quotes as CSV does; rewind it."""
    if layout.delimiter is not None:
        delimiter = {"tab": "\t", "\\t": "\t"}.get(layout.delimiter, layout.delimiter)
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise InputError(f"--delimiter {layout.delimiter!r}; expected one character, or tab")
        return delimiter, True
    return ("\t", _is_quoted_tsv(stream, name)) if kind == "tsv" else (_header_delimiter(stream), True)


def _peek(stream: BinaryIO, size: int) -> bytes:
    """Return the next bytes of a stream without consuming them."""
    if not stream.seekable():
        head: bytes = stream.peek(size)[:size] if hasattr(stream, "peek") else b""
        return head
    place = stream.tell()
    head = stream.read(size)
    stream.seek(place)
    return head


def _header_delimiter(stream: BinaryIO) -> str:
    """Return the most frequent delimiter of the header, outside of quotes; a comma if there is none."""
    header = _peek(stream, SAMPLE_BYTES).partition(b"\n")[0].decode("utf-8", "replace")
    counts = Counter(re.sub(r'"[^"]*"', "", header))
    return max(DELIMITERS, key=lambda mark: counts[mark])


_CSV_CELL = re.compile(r'"(?:[^"]|"")*"')


def _is_quoted_tsv(stream: BinaryIO, name: str) -> bool:
    """Whether a .tsv file has CSV's quotes.

    It has if its header begins with one; or if it can be read with quotes, and without them its rows do not
    fit the header or have quoted fields with doubled quotes.
    """
    sample = _peek(stream, SAMPLE_BYTES)
    header = sample.partition(b"\n")[0].removeprefix(codecs.BOM_UTF8)
    if header.startswith(b'"'):
        return True
    if b'\t"' not in sample and b'\n"' not in sample:
        return False
    whole = sample if len(sample) < SAMPLE_BYTES else sample[: sample.rfind(b"\n") + 1]
    width = header.count(b"\t") + 1
    evident = False
    for line in whole.decode("utf-8", "replace").split("\n"):
        cells = line.rstrip("\r").split("\t")
        evident |= line.strip() != "" and len(cells) != width
        evident |= any('""' in cell[1:-1] and _CSV_CELL.fullmatch(cell) for cell in cells)
    if not evident:
        return False
    rows = _csv_rows(located_lines(io.BytesIO(whole), name), name, "\t", quoted=True)
    try:
        return all(not values or len(values) == width for _, values in rows)
    except DataError:
        return False


# --- messages


def kind_of(value: object) -> str:
    """Return JSON's name for the kind of a value."""
    kinds = {dict: "object", list: "list", str: "string", bool: "truth value", type(None): "null"}
    return kinds.get(type(value), "number")


def shown(value: object) -> str:
    """Return the beginning of a value, for a message."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 400:
        return f"of {value.bit_length():,} bits"
    if isinstance(value, str | bytes):
        value = value[:80].strip()
    elif isinstance(value, dict | list):
        text = json.dumps(value, default=str) if not _deep(value) else f"a nested {kind_of(value)}"
        return text if len(text) <= 60 else f"{text[:60]}..."
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _deep(value: object) -> bool:
    for _ in range(MAX_DEPTH):
        if not isinstance(value, dict | list) or not value:
            return False
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return True
