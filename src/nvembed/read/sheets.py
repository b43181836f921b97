"""Workbooks (.xlsx, .xlsm, .xlsb, .xls, .ods) with ``calamine``: a line for each row, sheets as sections."""

import datetime
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import python_calamine as calamine

from nvembed.read.archive import Archive
from nvembed.read.extracted import DocumentText, count_of, joined
from nvembed.read.rows import plain_line, row_lines

_ZIP = b"PK"


def read_workbook(raw: bytes, max_bytes: int, progress: Callable[[], None]) -> DocumentText:
    """Return the rows of a workbook's sheets, with the names of their columns if there is a header row.

    A formula is read as its last computed value. Hidden sheets, comments and charts are omitted.

    Raises:
        ValueError: damaged, encrypted or too large.
    """
    metadata: dict[str, Any] = {}
    if raw.startswith(_ZIP):
        archive = Archive(raw, max_bytes=max_bytes)
        _count(archive, max_bytes)
        metadata = archive.properties()
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(io.BytesIO(raw))
    except calamine.PasswordError as error:
        raise ValueError("encrypted; save a copy without the password") from error
    except (calamine.CalamineError, zipfile.BadZipFile) as error:
        raise ValueError(f"damaged or not a workbook ({error}); save it again") from error
    parts: list[tuple[dict[str, Any], str]] = []
    hidden = size = 0
    for about in workbook.sheets_metadata:
        if about.typ != calamine.SheetTypeEnum.WorkSheet:
            continue
        if about.visible != calamine.SheetVisibleEnum.Visible:
            hidden += 1
            continue
        rows = workbook.get_sheet_by_name(about.name).to_python()
        progress()
        text = "\n\n".join("\n".join(_lines(block)) for block in _blocks(rows))
        size += len(text)
        if size > max_bytes:
            raise ValueError(f"more than {max_bytes:,} characters of text; split it")
        parts.append(({"sheet": about.name}, text))
        progress()
    warnings = [count_of(hidden, "hidden sheet")] if hidden else []
    return joined(parts, metadata, warnings)


def _count(archive: Archive, max_bytes: int) -> None:
    size = sum(archive.size(name) for name in archive.names if name.endswith((".xml", ".bin")))
    if size > 4 * max_bytes:
        raise ValueError(f"its parts expand to more than {4 * max_bytes >> 20} MiB; split it")


def _blocks(rows: Sequence[Sequence[Any]]) -> Iterator[list[list[str]]]:
    """Yield the runs of rows between empty rows, as text, without their empty columns at the left."""
    block: list[list[str]] = []
    for row in [*rows, []]:
        cells = [_cell(value) for value in row]
        while cells and not cells[-1]:
            cells.pop()
        if cells:
            block.append(cells)
        elif block:
            left = min(next(at for at, cell in enumerate(line) if cell) for line in block)
            yield [line[left:] for line in block]
            block = []


def _lines(block: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a block: titles above a table, then its rows."""
    first = 0
    while first < len(block) and len(block[first]) == 1 and any(len(row) > 1 for row in block):
        yield plain_line(block[first])
        first += 1
    rows = block[first:]
    width = max(map(len, rows), default=0)
    yield from row_lines([row + [""] * (width - len(row)) for row in rows])


def _cell(value: Any) -> str:
    """Return a value as text: whole numbers without a point, dates in ISO 8601, text on one line."""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}" if not value.is_integer() or abs(value) >= 1e15 else str(int(value))
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
