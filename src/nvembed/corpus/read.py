"""Texts from files, one at a time: a file is never whole in memory.

====================  =====================================================================
.txt                  one text per line
.jsonl                one object per line: a string field; ``_id`` or ``id`` where there is one
.csv .tsv             a header line, then one row per text
.parquet              a string column (extra ``search``)
====================  =====================================================================

All but Parquet may be gzipped (``.jsonl.gz``) or come from a binary stream. A text without an id of its own
gets its row number, counted from 0, which is its row in the vectors' file. Folders are in ``folder.py``.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nvembed.errors import DataError, InputError, MissingExtraError
from nvembed.files import open_binary, text_lines

FORMATS = ("txt", "jsonl", "csv", "tsv", "parquet")
ID_FIELDS = ("_id", "id")


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to embed. ``id`` names it in results; ``text`` is exactly what the model is given."""

    id: str
    text: str


def read_texts(
    path: str | Path, *, format: str | None = None, field: str | None = None, unique: bool = False
) -> Iterator[Passage]:
    """Yield the texts of one file in order.

    Args:
        path: the file.
        format: one of ``FORMATS``; None takes it from the file's name.
        field: the field or column that holds the text. None takes ``text``, with a non-empty ``title`` put
            before it as BEIR does: ``"{title} {text}"``, stripped.
        unique: refuse an id that stands twice (a corpus needs ids that name one passage).

    Raises:
        DataError: the file cannot be read, is empty, or has a malformed line; names the file and the line.
        InputError: the format is unknown.
        MissingExtraError: Parquet without the extra ``search``.
    """
    path = Path(path)
    kind = format or format_of(path)
    _known(kind)
    passages = _parquet(path, field) if kind == "parquet" else _file(path, kind, field)
    return _checked(passages, str(path), unique)


def read_stream(
    stream: BinaryIO, *, format: str = "txt", field: str | None = None, name: str = "standard input"
) -> Iterator[Passage]:
    """Yield the texts of an open binary stream, as ``read_texts`` does those of a file.

    Raises:
        DataError: as ``read_texts``.
        InputError: the format is unknown, or is Parquet, which needs a file.
    """
    _known(format)
    if format == "parquet":
        raise InputError(f"Parquet cannot be read from {name}: give the file's path")
    return _checked(_parse(stream, name, format, field), name, False)


def format_of(path: Path) -> str:
    """Return the format a file name stands for.

    Raises:
        InputError: the extension is none of the known ones.
    """
    suffixes = [suffix.lower().lstrip(".") for suffix in path.suffixes]
    if suffixes and suffixes[-1] == "gz":
        suffixes.pop()
    kind = {"ndjson": "jsonl"}.get(suffixes[-1], suffixes[-1]) if suffixes else ""
    if kind not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(
            f"{path}: the format cannot be told from the name; expected one of {known}, or say it"
        )
    return kind


def _known(kind: str) -> None:
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; expected one of {', '.join(FORMATS)}")


def _checked(located: Iterator[tuple[str, Passage]], name: str, unique: bool) -> Iterator[Passage]:
    """Refuse an input without a text, and (``unique``) an id that stands twice."""
    seen: dict[str, str] = {}
    empty = True
    for where, passage in located:
        empty = False
        if unique:
            first = seen.setdefault(passage.id, where)
            if first is not where:
                raise DataError(
                    f"{where}: the id {passage.id!r} stood before, at {first}: "
                    "every passage needs an id of its own"
                )
        yield passage
    if empty:
        raise DataError(f"{name}: no text in it; expected at least one")


def _file(path: Path, kind: str, field: str | None) -> Iterator[tuple[str, Passage]]:
    with open_binary(path) as stream:
        yield from _parse(stream, str(path), kind, field)


def _parse(stream: BinaryIO, name: str, kind: str, field: str | None) -> Iterator[tuple[str, Passage]]:
    lines = text_lines(stream, name)
    if kind == "txt":
        return ((f"{name}:{number}", Passage(str(number - 1), line.rstrip("\r\n"))) for number, line in lines)
    if kind == "jsonl":
        return _jsonl(lines, name, field)
    return _csv(lines, name, "," if kind == "csv" else "\t", field)


def _jsonl(lines: Iterator[tuple[int, str]], name: str, field: str | None) -> Iterator[tuple[str, Passage]]:
    row = 0
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{name}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise DataError(
                f"{where}: not JSON ({reason}): {_shown(line)}; expected one object per line"
            ) from error
        if not isinstance(record, dict):
            raise DataError(f"{where}: a JSON {_kind(record)}; expected one object per line, like {_EXAMPLE}")
        yield where, _passage(record, row, field, where)
        row += 1


def _csv(
    lines: Iterator[tuple[int, str]], name: str, delimiter: str, field: str | None
) -> Iterator[tuple[str, Passage]]:
    # csv's own limit of 131,072 characters per field is the process's; a text may be longer.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    row = 0
    while True:
        start = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{name}:{start}: not CSV ({error})") from error
        if header is None:
            header = values
        elif values:  # a blank line is no row
            if len(values) != len(header):
                raise DataError(
                    f"{name}:{start}: {len(values)} fields; expected {len(header)}, as the header has: "
                    "a text with a delimiter or a quote in it must stand in double quotes"
                )
            where = f"{name}:{start}"
            yield where, _passage(dict(zip(header, values, strict=True)), row, field, where)
            row += 1


def _parquet(path: Path, field: str | None) -> Iterator[tuple[str, Passage]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            "Parquet needs the package pyarrow: install the extra with  pip install 'nvembed[search]'"
        ) from error
    with open_binary(path) as stream:
        try:
            with pq.ParquetFile(stream) as file:
                names = file.schema_arrow.names
                wanted = [name for name in (field or "text", *ID_FIELDS, "title") if name in names]
                if (field or "text") not in names:
                    raise DataError(_no_field(str(path), field or "text", names))
                row = 0
                for batch in file.iter_batches(batch_size=1024, columns=wanted):
                    for record in batch.to_pylist():
                        where = f"{path}, row {row}"
                        yield where, _passage(record, row, field, where)
                        row += 1
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a whole Parquet file ({error})") from error


_EXAMPLE = '{"_id": "1", "text": "..."}'


def _passage(record: Mapping[str, Any], row: int, field: str | None, where: str) -> Passage:
    text = _string(record, field or "text", where)
    if field is None and record.get("title"):
        text = f"{_string(record, 'title', where)} {text}".strip()
    return Passage(_id(record, row, where), text)


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise DataError(_no_field(where, field, list(record)))
    value = record[field]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: the field {field!r} is a {_kind(value)} ({_shown(value)}); expected a string"
        )
    if "\0" in value:
        raise DataError(f"{where}: the field {field!r} holds a NUL character (\\u0000): take it out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the field {field!r} holds half a surrogate pair "
            f"(\\u{ord(value[error.start]):04x}), which is no character: take it out"
        ) from error
    return value


def _id(record: Mapping[str, Any], row: int, where: str) -> str:
    for name in ID_FIELDS:
        value = record.get(name)
        if isinstance(value, str):
            return _string(record, name, where)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None:
            raise DataError(f"{where}: {name!r} is a {_kind(value)}; expected a string or a whole number")
    return str(row)


def _no_field(where: str, field: str, names: list[str]) -> str:
    has = ", ".join(sorted(repr(name) for name in names)) or "none"
    return f"{where}: no field {field!r}; the fields here are {has}: choose the one that holds the text"


def _kind(value: object) -> str:
    kinds = {dict: "object", list: "list", str: "string", bool: "truth value", type(None): "null"}
    return kinds.get(type(value), "number")


def _shown(value: object) -> str:
    text = ascii(value.strip() if isinstance(value, str) else value)
    return text if len(text) <= 60 else f"{text[:60]}..."
