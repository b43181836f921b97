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

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nvembed.errors import DataError, InputError
from nvembed.read.lines import Record, file_records, kind_of, no_field, shown, stream_records

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
    records = file_records(path, kind, field=field or "text", others=(*ID_FIELDS, "title"))
    return _passages(records, str(path), field, unique)


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
    return _passages(stream_records(stream, name, format), name, field, False)


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


def _passages(records: Iterator[Record], name: str, field: str | None, unique: bool) -> Iterator[Passage]:
    """Make passages; refuse an input without a text, and (``unique``) an id that stands twice."""
    seen: dict[str, str] = {}
    empty = True
    for record in records:
        if isinstance(record.fields, DataError):
            raise record.fields
        passage = to_passage(record.fields, record.place.row, field, record.where)
        empty = False
        if unique:
            first = seen.setdefault(passage.id, record.where)
            if first is not record.where:
                raise id_twice(record.where, passage.id, first)
        yield passage
    if empty:
        raise DataError(f"{name}: no text in it; expected at least one")


def id_twice(where: str, id_: str, first: str) -> DataError:
    """Return the error about an id at ``where`` that stood before, at ``first``."""
    return DataError(
        f"{where}: the id {id_!r} stood before, at {first}: every passage needs an id of its own"
    )


def to_passage(record: Mapping[str, Any], row: int, field: str | None, where: str) -> Passage:
    """Return the text of a record's fields, with its id or else ``row``.

    Raises:
        DataError: no such field, or one that is no text; ``where`` names the record.
    """
    text = _string(record, field or "text", where)
    if field is None and record.get("title"):
        text = f"{_string(record, 'title', where)} {text}".strip()
    return Passage(_id(record, row, where), text)


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise no_field(where, field, record)
    value = record[field]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: the field {field!r} is a {kind_of(value)} ({shown(value)}); expected a string"
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
            raise DataError(f"{where}: {name!r} is a {kind_of(value)}; expected a string or a whole number")
    return str(row)
