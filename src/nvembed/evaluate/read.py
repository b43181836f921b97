"""Lines of evaluation files, checked one by one: errors say file, line, expected and got."""

import json
import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from nvembed.errors import DataError
from nvembed.files import json_lines, open_binary, text_lines

Row = dict[str, Any]


def jsonl_path(folder: Path, name: str) -> Path | None:
    """Return ``name.jsonl`` or ``name.jsonl.gz`` of ``folder``, whichever is there."""
    return next((p for p in (folder / f"{name}.jsonl", folder / f"{name}.jsonl.gz") if p.is_file()), None)


def rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, object) for every line of a JSON-lines file, gzipped or not, but the blank ones.

    Raises:
        DataError: the file cannot be read, a line is no JSON object, or no line is there at all.
    """
    empty = True
    for numbered in json_lines(path):
        empty = False
        yield numbered
    if empty:
        raise DataError(f"{path}: the file is empty; expected one JSON object per line")


def first_row(folder: Path, split: str = "test") -> Row | None:
    """Return the first object of the folder's ``split`` (else ``train``) file, or None without one."""
    path = jsonl_path(folder, split) or jsonl_path(folder, "train")
    return next(rows(path))[1] if path else None


def text(path: Path, line: int, row: Row, key: str) -> str:
    value = row.get(key)
    if not _is_text(value):
        raise DataError(f"{path}:{line}: expected a string under {key!r}, got {_shown(row, key)}")
    return value


def texts(path: Path, line: int, row: Row, key: str) -> list[str]:
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(map(_is_text, value)):
        raise DataError(f"{path}:{line}: expected a list of strings under {key!r}, got {_shown(row, key)}")
    return value


def _is_text(value: object) -> TypeGuard[str]:
    """Whether it is a string, and free of half a surrogate pair, which is no character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def number(path: Path, line: int, row: Row, key: str) -> float:
    value = row.get(key)
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number beyond any float
        pass
    raise DataError(f"{path}:{line}: expected a finite number under {key!r}, got {_shown(row, key)}")


def label(path: Path, line: int, row: Row, key: str = "label") -> str | int:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(
            f"{path}:{line}: expected a string or whole number under {key!r}, got {_shown(row, key)}"
        )
    return value


def identified(path: Path, what: str, *, keep_text: bool = False) -> dict[str, str]:
    """Read ``_id`` (and ``text``, if kept) of every line, in order.

    Raises:
        DataError: a missing or repeated id, or a text that is no string.
    """
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in json_lines(path):
        key = text(path, line, row, "_id")
        if key in found:
            raise DataError(
                f"{path}:{line}: {what} id {key!r} stands on line {lines[key]} already; ids are unique"
            )
        found[key] = text(path, line, row, "text") if keep_text else ""
        lines[key] = line
    return found


def passages(path: Path) -> Iterator[str]:
    """Yield every passage of a corpus as it is embedded."""
    for line, row in rows(path):
        yield passage_text(path, line, row)


def passage_text(path: Path, line: int, row: Row) -> str:
    """Return title and text of a passage in one string, joined and stripped as MTEB does it."""
    body = text(path, line, row, "text")
    title = row.get("title") or ""
    if not isinstance(title, str):
        raise DataError(f"{path}:{line}: expected a string under 'title', got {_shown(row, 'title')}")
    return f"{title} {body}".strip() if title else body.strip()


def qrels(path: Path, *, queries: Collection[str], passages: Collection[str]) -> dict[str, dict[str, int]]:
    """Read a qrels file (``query-id  corpus-id  score``, tab-separated, with or without a header line).

    Raises:
        DataError: no such file, a malformed line, a grade that is no whole number, an id that is not in the
            corpus or the queries, or a pair that is judged twice.
    """
    if not path.is_file():
        raise DataError(f"{path}: not found; expected tab-separated lines of query-id, corpus-id, score")
    found: dict[str, dict[str, int]] = {}
    for line, (query, passage, grade) in _judgements(path):
        try:
            value = int(grade)
        except ValueError as error:
            raise DataError(f"{path}:{line}: expected a whole number as grade, got {grade!r}") from error
        for what, key, known in (("query", query, queries), ("passage", passage, passages)):
            if key not in known:
                raise DataError(f"{path}:{line}: {what} {key!r} is not in the {_FILE[what]} file")
        if passage in found.setdefault(query, {}):
            raise DataError(f"{path}:{line}: query {query!r} and passage {passage!r} are judged twice")
        found[query][passage] = value
    if not found:
        raise DataError(f"{path}: no judgement in the file")
    return found


def _judgements(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, its three cells) of a qrels file, without header and blank lines."""
    with open_binary(path) as stream:
        for line, raw in text_lines(stream, str(path)):
            content = raw.rstrip("\r\n")
            cells = content.split("\t")
            if not content.strip() or (line == 1 and cells[0] in ("query-id", "query_id")):
                continue
            if len(cells) != 3:
                raise DataError(
                    f"{path}:{line}: expected 3 tab-separated cells, got {len(cells)}: {content[:60]!r}"
                )
            yield line, cells


_FILE = {"query": "queries", "passage": "corpus"}


def _shown(row: Row, key: str) -> str:
    if key not in row:
        return "nothing"
    shown = json.dumps(row[key], ensure_ascii=False)
    return (shown if _is_text(shown) else json.dumps(row[key]))[:60]
