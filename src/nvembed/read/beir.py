"""Texts in BEIR's layout: passages, queries, judgements (qrels).

A folder in this layout has ``corpus.jsonl`` and ``queries.jsonl`` of ``{"_id", "title", "text"}``, and
``qrels/SPLIT.tsv`` of query-id, corpus-id, score. The same rules apply to files of other formats: the text is
``title`` and ``text``, or a named field; the id is ``_id`` or ``id``, or else the row's number from 0.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from nvembed.errors import DataError, InputError
from nvembed.read import fields
from nvembed.read.lines import FORMATS, LINE_KINDS, UTF8, TextLayout, file_records, format_of, stream_records
from nvembed.read.streams import COMPRESSIONS, FileRecord, in_utf8, no_field, open_binary, text_lines

ID_FIELDS = ("_id", "id")
CORPUS_NAMES = ("corpus.jsonl", *(f"corpus.jsonl.{suffix}" for suffix in COMPRESSIONS), "corpus.parquet")


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to embed. ``id`` names it in results.

    ``title``, and where the text after it begins in ``text``: 0 if the title is not part of ``text``.
    """

    id: str
    text: str
    title: str = ""
    body_start: int = 0


def read_texts(
    path: str | Path,
    *,
    format: str | None = None,
    field: str | None = None,
    unique: bool = False,
    layout: TextLayout = UTF8,
) -> Iterator[Passage]:
    """Yield the texts of a file in order, without reading the whole file into memory.

    Args:
        path: the file.
        format: one of ``lines.FORMATS``; None: by the file's name.
        field: the field or column with the text. None: ``title`` and ``text``.
        unique: refuse repeated ids.
        layout: delimiter and encoding of a text file.

    Raises:
        DataError: the file cannot be read, is empty, or has a malformed line, which the message names.
        InputError: the format is unknown.
    """
    path = Path(path)
    kind = format or format_of(path)
    _check_format(kind)
    records = file_records(path, kind, field=field or "text", others=(*ID_FIELDS, "title"), layout=layout)
    return _passages(records, str(path), field, unique)


def read_stream(
    stream: BinaryIO,
    *,
    format: str = "txt",
    field: str | None = None,
    layout: TextLayout = UTF8,
    name: str = "standard input",
) -> Iterator[Passage]:
    """Yield the texts of an open binary stream, as ``read_texts`` does those of a file.

    Raises:
        DataError: as ``read_texts``.
        InputError: the format is unknown, or is that of a table, which must be a file.
    """
    _check_format(format)
    if format not in LINE_KINDS:
        raise InputError(f"{format.capitalize()} cannot be read from {name}: pass the path of a file")
    records = stream_records(in_utf8(stream, name, layout.encoding), name, format, layout=layout)
    return _passages(records, name, field, False)


def _check_format(kind: str) -> None:
    if kind not in FORMATS:
        raise InputError(f"unknown format {kind!r}; expected one of {', '.join(FORMATS)}")


def _passages(records: Iterable[FileRecord], name: str, field: str | None, unique: bool) -> Iterator[Passage]:
    first_places: dict[str, str] = {}
    empty = True
    for record in records:
        if isinstance(record.fields, DataError):
            raise record.fields
        passage = to_passage(record.fields, record.place.row, field, record.where)
        empty = False
        if unique:
            first = first_places.setdefault(passage.id, record.where)
            if first is not record.where:
                raise id_twice(record.where, passage.id, first)
        yield passage
    if empty:
        raise DataError(f"{name}: no text in it; expected at least one")


def id_twice(where: str, id_: str, first: str) -> DataError:
    """Return the error about an id at ``where`` that ``first`` has as well."""
    return DataError(f"{where}: the id {id_!r} occurs twice, first at {first}; expected unique ids")


def to_passage(row: Mapping[str, Any], number: int, field: str | None, where: str) -> Passage:
    """Return the text of a record with its id, or with its ``number`` if it has none.

    Raises:
        DataError: the field of the text is missing or is not a text.
    """
    text = passage_text(row, where) if field is None else _text(row, field, where)
    id_ = fields.identifier(row, ID_FIELDS, where)
    title = title_of(row)
    body_start = min(len(title) + 1, len(text)) if title and field is None else 0
    return Passage(str(number) if id_ is None else id_, text, title, body_start)


def title_of(row: Mapping[str, Any]) -> str:
    """Return the title of a record or document, as it stands before the text; "" without one."""
    title = row.get("title")
    return title.lstrip() if isinstance(title, str) and title.strip() else ""


def passage_text(row: Mapping[str, Any], where: str) -> str:
    """Return title and text, joined as in BEIR and MTEB; without a title, the unchanged text."""
    text = _text(row, "text", where)
    if row.get("title") is None:
        return text
    title = fields.text(row, "title", where)
    return f"{title} {text}".strip() if title else text


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise no_field(where, field, row)
    return fields.text(row, field, where)


# --- the layout of a folder


def file_of(folder: Path, name: str) -> Path | None:
    """Return ``name.jsonl`` (compressed or not) or ``name.parquet`` of a folder, if it exists."""
    endings = (".jsonl", *(f".jsonl.{suffix}" for suffix in COMPRESSIONS), ".parquet")
    return next((path for ending in endings if (path := folder / f"{name}{ending}").is_file()), None)


def read_identified(path: Path, what: str, *, keep_text: bool = True) -> dict[str, str]:
    """Return id -> text of a corpus or a file of queries, in order.

    Args:
        what: ``passage`` or ``query``.
        keep_text: False returns "" in place of each text.

    Raises:
        DataError: an id is missing, blank or repeated, or a text is not a string.
    """
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for record in file_records(path, format_of(path)):
        row, where = record.fields, record.where
        if isinstance(row, DataError):
            raise row
        id_ = fields.identifier(row, ID_FIELDS, where)
        if id_ is None:
            raise DataError(f"{where}: no field '_id'; expected the id of the {what}")
        if id_ in texts:
            raise id_twice(where, id_, places[id_])
        text = passage_text(row, where) if what == "passage" else _text(row, "text", where)
        texts[id_] = text if keep_text else ""
        places[id_] = where
    if not texts:
        raise DataError(f"{path}: the file is empty; expected at least one {what}")
    return texts


class QrelsLine(NamedTuple):
    """A line of qrels."""

    where: str
    query: str
    passage: str
    grade: int


_HEADER = ("query-id", "corpus-id", "score")
# names of the three columns in files
_COLUMNS = {"query-id": 0, "query_id": 0, "qid": 0, "query": 0}
_COLUMNS |= {"corpus-id": 1, "corpus_id": 1, "passage-id": 1, "passage_id": 1, "pid": 1, "docid": 1}
_COLUMNS |= {"score": 2, "grade": 2, "relevance": 2, "label": 2}


def read_judgements(path: Path) -> Iterator[QrelsLine]:
    """Yield the judgements of a qrels file: query-id, corpus-id, score, separated by tabs.

    A header line may name the columns, in any order. Scores are whole numbers; ``1.0`` is 1.

    Raises:
        DataError: the file is missing, or a line is malformed, has a blank id or a score that is not a whole
            number, or repeats a pair.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; expected lines of query-id, corpus-id, score, separated by tabs")
    order = (0, 1, 2)
    places: dict[tuple[str, str], str] = {}
    with open_binary(path) as stream:
        for number, raw in text_lines(stream, str(path)):
            line, where = raw.rstrip("\r\n"), f"{path}:{number}"
            if not line.strip():
                continue
            cells = line.split("\t")
            if len(cells) != 3:
                raise DataError(f"{where}: {len(cells)} fields; expected 3, separated by tabs: {line[:60]!r}")
            if number == 1 and _is_header(cells):
                order = _order(cells, where)
                continue
            query, passage, grade = (cells[index] for index in order)
            if not query.strip() or not passage.strip():
                raise DataError(f"{where}: a blank id; expected query-id, corpus-id, score")
            first = places.setdefault((query, passage), where)
            if first is not where:
                raise DataError(
                    f"{where}: query {query!r} and passage {passage!r} are judged twice, first at {first}"
                )
            yield QrelsLine(where, query, passage, _grade(grade, where))
    if not places:
        raise DataError(f"{path}: no judgement in the file; expected at least one")


def _is_header(cells: list[str]) -> bool:
    names = [cell.strip().strip('"').lower() for cell in cells]
    if sum(name in _COLUMNS for name in names) >= 2:
        return True
    try:
        float(cells[2])
    except ValueError:
        return cells[2].strip() != ""
    return False


def _order(cells: list[str], where: str) -> tuple[int, int, int]:
    names = [cell.strip().strip('"').lower() for cell in cells]
    places = {_COLUMNS[name]: index for index, name in enumerate(names) if name in _COLUMNS}
    if len(places) == 2:  # the third column, whatever it is called
        places[3 - sum(places)] = 3 - sum(places.values())
    if len(places) != 3:
        raise DataError(f"{where}: the header is {', '.join(cells)}; expected {', '.join(_HEADER)}")
    return places[0], places[1], places[2]


def _grade(text: str, where: str) -> int:
    try:
        value = float(text)
        if value.is_integer() and abs(value) < 2**31:
            return int(value)
    except ValueError:
        pass
    raise DataError(f"{where}: the score is {text!r}; expected a whole number")


def read_qrels(
    path: Path, *, queries: Collection[str], passages: Collection[str]
) -> dict[str, dict[str, int]]:
    """Return the grades of a qrels file: of each query, those of its passages.

    Raises:
        DataError: as ``read_judgements``, or an id that is not in the queries or the corpus.
    """
    grades: dict[str, dict[str, int]] = {}
    for where, query, passage, grade in read_judgements(path):
        if query not in queries:
            raise DataError(f"{where}: the query {query!r} is not in the file of queries")
        if passage not in passages:
            raise DataError(f"{where}: the passage {passage!r} is not in the corpus")
        grades.setdefault(query, {})[passage] = grade
    return grades
