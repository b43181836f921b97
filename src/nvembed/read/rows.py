"""Rows of a table as self-contained lines: ``Price: 491.29 | Stock: 2``."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# A longer cell is not the name of a column.
NAME_CHARACTERS = 60
# If the file does not mark the header, this many rows decide whether the first one is the header.
SAMPLE_ROWS = 50
# An HTML table with longer or more cells is read as other text.
CELL_CHARACTERS, MAX_CELLS, MAX_SPAN = 1000, 1_000_000, 1000

_VALUE = re.compile(r"[-+]?[\d.,:/\s%€$£¥-]*\d[\d.,:/\s%€$£¥-]*(?:T[\d:]+)?|true|false", re.IGNORECASE)


def row_lines(rows: Sequence[Sequence[str]], *, marked: bool = False) -> Iterator[str]:
    """Yield a line for each row of a table: its cells with the names of their columns.

    Without a header the cells are joined by `` | ``. Empty cells are omitted if the cells have names; the
    header has a line only if a column is empty.

    Args:
        marked: the file marks the first row as the header. Otherwise it is one if its cells are distinct,
        none
            of them looks like a value, and there are three columns or more, or a column of values.
    """
    if not rows:
        return
    names = rows[0] if marked or _is_header(rows) else None
    if names is None:
        for row in rows:
            if line := plain_line(row):
                yield line
        return
    used = {at for row in rows[1:] for at, cell in enumerate(row) if cell.strip()}
    if any(name.strip() for at, name in enumerate(names) if at not in used):  # it would be lost
        yield plain_line(names)
    for row in rows[1:]:
        if line := named_line(names, row):
            yield line


def named_line(names: Sequence[str], row: Sequence[str]) -> str:
    """Return the cells of a row that are not empty, each with the name of its column."""
    padded = [*names, *[""] * (len(row) - len(names))]
    cells = ((name.strip(), cell.strip()) for name, cell in zip(padded, row, strict=False))
    return " | ".join(f"{name}: {cell}" if name else cell for name, cell in cells if cell)


def plain_line(row: Sequence[str]) -> str:
    """Return the joined cells of a row, without empty cells at its end."""
    return " | ".join(cell.strip() for cell in row).rstrip(" |")


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    names = [name.strip() for name in rows[0]]
    filled = names[1:] if names and not names[0] else names  # a corner may be empty
    if len(names) < 2 or len(rows) < 2 or not all(filled) or len(set(names)) < len(names):
        return False
    if any(len(name) > NAME_CHARACTERS or "\n" in name or _VALUE.fullmatch(name) for name in filled):
        return False
    if len(names) > 2:
        return True
    columns = zip(*(row[: len(names)] for row in rows[1:SAMPLE_ROWS] if len(row) >= len(names)), strict=True)
    return any(_are_values(column) for column in columns)


def _are_values(column: Sequence[str]) -> bool:
    filled = [cell.strip() for cell in column if cell.strip()]
    return bool(filled) and 2 * sum(_VALUE.fullmatch(cell) is not None for cell in filled) > len(filled)


def data_table(table: Any, text_of: Callable[[Any], str]) -> str | None:
    """Return the lines of an HTML table; None if it is layout: one column, inner tables, long cells.

    Args:
        table: the element.
        text_of: the text of a cell's element.
    """
    if len(table.css("table")) > 1:
        return None
    rows: list[list[str]] = []
    header: list[list[str]] = []
    below: dict[int, tuple[int, str]] = {}  # columns of cells above that span rows: remaining rows, text
    cells = 0
    for row in table.css("tr"):
        line: list[str] = []
        marks = []
        for cell in row.iter():
            if cell.tag not in ("td", "th"):
                continue
            _fill(line, below)
            text = text_of(cell)
            if len(text) > CELL_CHARACTERS:
                return None
            marks.append(cell.tag == "th")
            is_header = not rows and all(marks)
            width, height = _span(cell, "colspan"), _span(cell, "rowspan")
            for at in range(width):
                if height > 1:
                    below[len(line)] = (height, text)
                line.append(text if at == 0 or is_header else "")
            if cells + len(line) > MAX_CELLS:
                return None
        _fill(line, below)
        cells += len(line)
        below = {at: (left - 1, text) for at, (left, text) in below.items() if left > 1}
        (header if marks and all(marks) and not rows else rows).append(line)
    if max(map(len, header + rows), default=0) < 2:
        return None
    if len(header) > 0 and rows:
        widest = max(map(len, header))
        padded = [line + [""] * (widest - len(line)) for line in header]
        names = [" ".join(dict.fromkeys(filter(None, column))) for column in zip(*padded, strict=True)]
        return "\n".join(row_lines([names, *rows], marked=True))
    return "\n".join(row_lines(header + rows))


def _fill(line: list[str], below: dict[int, tuple[int, str]]) -> None:
    """Repeat the cells of rows above that reach into this row."""
    while len(line) in below:
        line.append(below[len(line)][1])


def _span(cell: Any, name: str) -> int:
    value = cell.attributes.get(name) or ""
    return min(max(int(value), 1), MAX_SPAN) if value.isdecimal() and len(value) < 9 else 1
