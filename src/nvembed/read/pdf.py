"""The text of a PDF: PDFium's characters, arranged in lines, table rows and columns.

PDFium returns the characters of a page in the order of its content, with spaces and line ends of its own. For
search this has two faults: cells of a table row are separate lines or run together, and rotated text is in
reverse order. Therefore the page is rotated until its text is upright, and characters are grouped into runs
by their boxes: adjacent runs are the cells of a line (``a | b``), unless they form columns of prose.
Coordinates are points of the upright text: x to the right, y upwards.
"""

import ctypes
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import pypdfium2 as pdfium
import pypdfium2.raw as raw_api
from spellchecker import SpellChecker

# As a share of the line height: a wider gap begins a new run, or separates cells.
RUN_GAP, CELL_GAP = 0.8, 1.3
# Columns of prose have at least this many lines, with this many characters and words on average.
COLUMN_LINES, COLUMN_CHARACTERS, COLUMN_WORDS = 4, 22, 3.5

_CJK = 0x2E80
_HYPHENS = "-\u00ad\u2010"
_LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_WORD = re.compile(r"[^\W\d_]+")
_WORDS = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_HIDDEN_FLAGS = raw_api.FPDF_ANNOT_FLAG_HIDDEN | raw_api.FPDF_ANNOT_FLAG_NOVIEW
_NOTES = {
    raw_api.FPDF_ANNOT_TEXT,
    raw_api.FPDF_ANNOT_FREETEXT,
    raw_api.FPDF_ANNOT_HIGHLIGHT,
    raw_api.FPDF_ANNOT_UNDERLINE,
    raw_api.FPDF_ANNOT_SQUIGGLY,
    raw_api.FPDF_ANNOT_STRIKEOUT,
    raw_api.FPDF_ANNOT_CARET,
    raw_api.FPDF_ANNOT_SQUARE,
    raw_api.FPDF_ANNOT_CIRCLE,
    raw_api.FPDF_ANNOT_LINE,
    raw_api.FPDF_ANNOT_STAMP,
}

Box = tuple[float, float, float, float]  # left, bottom, right, top


@dataclass(slots=True)
class Run:
    """A run of adjacent characters."""

    text: str
    first: Box
    last: Box
    turned: int = 0  # rotation of the text in quarter turns, counter-clockwise

    @property
    def height(self) -> float:
        return max(self.first[3] - self.first[1], 0.1)


@dataclass
class PdfText:
    """The text of each page, and warnings about pages."""

    pages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_pdf(raw: bytes, *, max_characters: int, progress: Callable[[], None]) -> PdfText:
    """Return the text of every page.

    Args:
        raw: the file.
        max_characters: limit of the whole text.
        progress: called after each page.

    Raises:
        ValueError: the file is damaged, incomplete or encrypted, or has more text than ``max_characters``.
    """
    _check_end(raw)
    try:
        document = pdfium.PdfDocument(raw)
    except pdfium.PdfiumError as error:
        if "assword" in str(error):
            raise ValueError("encrypted; save a copy without a password") from error
        raise ValueError(f"damaged or not a PDF ({error}); export or download it again") from error
    with document:
        document.init_forms()
        return _read_pages(document, max_characters, progress)


def _check_end(raw: bytes) -> None:
    """Raise ValueError if the end is missing: a PDF ends with ``%%EOF``, and no objects come after it."""
    end = raw.rfind(b"%%EOF")
    length = re.search(rb"/Linearized.{0,200}?/L\s+(\d{1,12})\b", raw[:2048], re.DOTALL)
    cut = end < 0 or raw.find(b" obj", end) >= 0 or (length is not None and int(length[1]) > len(raw))
    if cut and b"%PDF-" in raw[:1024]:
        raise ValueError("cut off, the end of the file is missing; download it again")


def _read_pages(document: Any, max_characters: int, progress: Callable[[], None]) -> PdfText:
    result = PdfText()
    pages: list[list[str]] = []
    unreadable: list[int] = []
    unmapped: Counter[int] = Counter()
    size = 0
    for number in range(len(document)):
        lines: list[str] = []
        try:
            lines, unknown = _page_lines(document, number)
            unmapped[number + 1] += unknown
        except pdfium.PdfiumError:
            unreadable.append(number + 1)
        pages.append(lines)
        size += sum(map(len, lines))
        if size > max_characters:
            raise ValueError(f"more than {max_characters:,} characters of text; split it")
        progress()
    if not pages:
        raise ValueError("no pages; export or download it again")
    dehyphenate(pages)
    result.pages = [_whole_characters("\n".join(lines)) for lines in pages]
    empty = [n for n, text in enumerate(result.pages, 1) if not text.strip() and n not in unreadable]
    count = f"of {len(pages)} pages"
    if unreadable:
        result.warnings.append(f"{len(unreadable)} {count} cannot be read: {_numbers(unreadable)}")
    if empty:
        result.warnings.append(f"{len(empty)} {count} have no text (scanned?): {_numbers(empty)}")
    if garbled := [page for page, unknown in unmapped.items() if unknown]:
        what = f"{sum(unmapped.values())} characters without a Unicode value were left out on"
        result.warnings.append(f"{what} {len(garbled)} {count}: {_numbers(garbled)}")
    return result


def _whole_characters(text: str) -> str:
    """Join halves of surrogate pairs; a single half becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _numbers(pages: list[int]) -> str:
    return ", ".join(map(str, pages[:10])) + (", ..." if len(pages) > 10 else "")


def _page_lines(document: Any, number: int) -> tuple[list[str], int]:
    """Return the lines of a page, and the number of its unknown characters."""
    page = document[number]
    page.set_rotation(0)
    page.close()
    runs, unknown = _runs(document, number)
    counts: Counter[int] = Counter()
    for run in runs:
        counts[run.turned] += len(run.text)
    lines: list[str] = []
    notes = _annotations(document, number)
    for turned in [quarter for quarter, _ in counts.most_common()] or [0]:
        if turned:  # PDFium orders only upright text well
            page = document[number]
            page.set_rotation(turned * 90)
            page.close()
            runs, _ = _runs(document, number)
        upright = [_upright(run, turned) for run in runs if run.turned == turned]
        rows = _by_rows(_rows(upright))
        for note in notes:
            _place(rows, _upright(note, turned))
        notes = []
        lines += _lines(rows)
    return lines, unknown


def _runs(document: Any, number: int) -> tuple[list[Run], int]:
    """Return the runs of a page in the order of its content, and the number of unknown characters."""
    page = document[number]
    try:
        text_page = page.get_textpage()
        try:
            return _split(text_page.raw, text_page.count_chars())
        finally:
            text_page.close()
    finally:
        page.close()


def _split(handle: Any, count: int) -> tuple[list[Run], int]:
    runs: list[Run] = []
    rect = raw_api.FS_RECTF()
    pointer = ctypes.byref(rect)
    letters: list[str] = []
    unknown = 0
    space = ends = False
    first = last = (0.0, 0.0, 0.0, 0.0)
    turned = 0

    def end() -> None:
        if letters:
            runs.append(Run("".join(letters).translate(_LIGATURES), first, last, turned))
            letters.clear()

    for place in range(count):
        code = raw_api.FPDFText_GetUnicode(handle, place)
        if code in (10, 13):
            ends = True
            continue
        if code in (9, 32, 0xA0) or 0x2000 <= code <= 0x200B:
            space = True
            continue
        hyphen = code in (2, 0xFFFE)  # PDFium's mark of a hyphen at the end of a line
        if code == 0xFFFD or (code < 32 and not hyphen):
            unknown += 1
            continue
        raw_api.FPDFText_GetLooseCharBox(handle, place, pointer)
        box = (rect.left, rect.bottom, rect.right, rect.top)
        if not letters or ends or _is_apart(turned, last, box, code):
            end()
            first = box
            turned = round(-raw_api.FPDFText_GetCharAngle(handle, place) / (math.pi / 2)) % 4
        elif space:
            letters.append(" ")
        if code != 0xAD or box[2] - box[0] > 0.1:
            letters.append("-" if hyphen else chr(code))
        last, space, ends = box, False, hyphen
    end()
    return runs, unknown


def _turn(box: Box, turned: int) -> Box:
    left, bottom, right, top = box
    return (
        box,
        (bottom, -right, top, -left),
        (-right, -top, -left, -bottom),
        (-top, left, -bottom, right),
    )[turned]


def _upright(run: Run, turned: int) -> Run:
    return Run(run.text, _turn(run.first, turned), _turn(run.last, turned)) if turned else run


def _is_apart(turned: int, last: Box, box: Box, code: int) -> bool:
    """Whether a character does not continue the run that ends with ``last``."""
    last, box = _turn(last, turned), _turn(box, turned)
    height = max(last[3] - last[1], box[3] - box[1], 0.1)
    if min(last[3], box[3]) <= max(last[1], box[1]):  # only Chinese and Japanese go on below
        return code < _CJK or abs(box[0] - last[0]) > height / 2 or last[1] - box[3] > RUN_GAP * height
    return not -height < box[0] - last[2] < RUN_GAP * height


def _rows(runs: list[Run]) -> list[list[Run]]:
    """Group successive runs that are beside each other into rows."""
    rows: list[list[Run]] = []
    for run in runs:
        if rows and _beside(rows[-1][-1], run):
            rows[-1].append(run)
        else:
            rows.append([run])
    return rows


def _by_rows(rows: list[list[Run]]) -> list[list[Run]]:
    """Put the cells of a table that is written column by column into rows.

    A column is a descent of single runs; the next one has runs at the same heights, further to the right.
    Columns of prose stay as they are.
    """
    descents: list[list[list[Run]]] = []
    for row in rows:
        before = descents[-1][-1] if descents else None
        if before is None or len(row) > 1 or len(before) > 1 or not _below(before[0], row[0]):
            descents.append([])
        descents[-1].append(row)
    result: list[list[Run]] = []
    at = 0
    while at < len(descents):
        first, end = _table_of(descents, at)
        if end - at < 2:
            result += descents[at]
            at += 1
            continue
        count = len(descents[at]) - first
        columns = [descents[at][first:], *(descent[:count] for descent in descents[at + 1 : end])]
        result += descents[at][:first]
        result += [[run for (run,) in cells] for cells in zip(*columns, strict=True)]
        descents[end - 1] = descents[end - 1][count:]  # what follows the table below its last column
        at = end - 1
    return result


def _table_of(descents: list[list[list[Run]]], at: int) -> tuple[int, int]:
    """Return where in its first descent a table begins, and the number of the descent after its last one."""
    column = descents[at]
    if at + 1 == len(descents):
        return 0, at + 1
    top = descents[at + 1][0][0]
    first = next((number for number, (run, *_) in enumerate(column) if _level(run, top)), len(column))
    count = len(column) - first
    end = at + 1
    while end < len(descents) and (end == at + 1 or len(descents[end - 1]) == count) and count > 1:
        cells = descents[end][:count]
        pairs = list(zip(descents[end - 1][first if end == at + 1 else 0 :][:count], cells, strict=False))
        if len(cells) < count or not all(
            len(one) == len(two) == 1 and _level(one[0], two[0]) for one, two in pairs
        ):
            break
        end += 1
    columns = [column[first:], *(descent[:count] for descent in descents[at + 1 : end])]
    prose = any(_is_prose([run for (run, *_) in cells]) for cells in columns)
    return first, at + 1 if prose else end


def _below(above: Run, run: Run) -> bool:
    return run.first[3] < above.first[3] - 0.3 * above.height


def _level(left: Run, right: Run) -> bool:
    return abs(left.first[1] - right.first[1]) < 0.3 * left.height and right.first[0] > left.last[2]


def _is_prose(column: list[Run]) -> bool:
    """Whether the runs of a column are lines of prose, and not cells."""
    characters = sum(len(run.text) for run in column)
    words = sum(run.text.count(" ") + 1 for run in column)
    return characters >= COLUMN_CHARACTERS * len(column) and words >= COLUMN_WORDS * len(column)


def _beside(left: Run, right: Run) -> bool:
    overlap = min(left.last[3], right.first[3]) - max(left.last[1], right.first[1])
    least = min(left.last[3] - left.last[1], right.first[3] - right.first[1])
    return overlap > 0.5 * least and right.first[0] - left.last[2] > -0.3 * right.height


def _place(rows: list[list[Run]], note: Run) -> None:
    """Insert the value of a form field into the row at its height, or as a row above the ones below it."""
    for row in rows:
        for at in range(len(row), 0, -1):
            if _beside(row[at - 1], note) and (at == len(row) or row[at].first[0] >= note.first[0]):
                row.insert(at, note)
                return
    below = (at for at, row in enumerate(rows) if row[0].first[3] < note.first[3])
    rows.insert(next(below, len(rows)), [note])


def _lines(rows: list[list[Run]]) -> list[str]:
    lines: list[str] = []
    at = 0
    while at < len(rows):
        columns, end = _columns(rows, at)
        for column in columns:
            lines += [run.text for run in column]
        if not columns:
            lines += [_line(row) for row in rows[at:end]]
        at = end
    return lines


def _line(row: list[Run]) -> str:
    text = row[0].text
    for before, run in pairwise(row):
        wide = run.first[0] - before.last[2] > CELL_GAP * max(before.height, run.height)
        text += (" | " if wide else " ") + run.text
    return text


def _columns(rows: list[list[Run]], start: int) -> tuple[list[list[Run]], int]:
    """Return the columns of prose that begin at a row, and the row after them; no columns for other rows."""
    if len(rows[start]) < 2:
        return [], start + 1
    lefts = [run.first[0] for run in rows[start]]
    columns: list[list[Run]] = [[] for _ in lefts]
    full = 0
    end = start
    for row in rows[start:]:
        places = [_column(run, lefts) for run in row]
        if -1 in places or len(set(places)) < len(places):
            break
        full += len(row) == len(lefts)
        for place, run in zip(places, row, strict=True):
            columns[place].append(run)
        end += 1
    prose = full >= COLUMN_LINES and all(map(_is_prose, columns))
    return columns if prose else [], max(end, start + 1)


def _column(run: Run, lefts: list[float]) -> int:
    return next((at for at, left in enumerate(lefts) if abs(left - run.first[0]) < 2 * run.height), -1)


def _annotations(document: Any, number: int) -> list[Run]:
    """Return the values of form fields and the texts of notes."""
    page = document[number]
    form = document.formenv.raw if document.formenv else None
    notes: list[Run] = []
    try:
        for place in range(raw_api.FPDFPage_GetAnnotCount(page.raw)):
            note = raw_api.FPDFPage_GetAnnot(page.raw, place)
            if not note:
                continue
            if not raw_api.FPDFAnnot_GetFlags(note) & _HIDDEN_FLAGS and (text := _note_text(form, note)):
                rect = raw_api.FS_RECTF()
                raw_api.FPDFAnnot_GetRect(note, ctypes.byref(rect))
                box = (rect.left, rect.bottom, rect.right, rect.top)
                notes.append(Run(text, box, box))
            raw_api.FPDFPage_CloseAnnot(note)
    finally:
        page.close()
    return notes


def _note_text(form: Any, note: Any) -> str:
    kind = raw_api.FPDFAnnot_GetSubtype(note)
    if kind in _NOTES:
        return _string(lambda *rest: raw_api.FPDFAnnot_GetStringValue(note, b"Contents", *rest))
    if kind != raw_api.FPDF_ANNOT_WIDGET or form is None:
        return ""
    field_kind = raw_api.FPDFAnnot_GetFormFieldType(form, note)
    if field_kind in (raw_api.FPDF_FORMFIELD_CHECKBOX, raw_api.FPDF_FORMFIELD_RADIOBUTTON):
        return "[x]" if raw_api.FPDFAnnot_IsChecked(form, note) else ""
    if field_kind in (raw_api.FPDF_FORMFIELD_COMBOBOX, raw_api.FPDF_FORMFIELD_LISTBOX):
        options = range(max(raw_api.FPDFAnnot_GetOptionCount(form, note), 0))
        labels = [
            _string(lambda *rest, at=at: raw_api.FPDFAnnot_GetOptionLabel(form, note, at, *rest))
            for at in options
            if raw_api.FPDFAnnot_IsOptionSelected(form, note, at)
        ]
        if labels:
            return ", ".join(labels)
    elif field_kind != raw_api.FPDF_FORMFIELD_TEXTFIELD:
        return ""
    return _string(lambda *rest: raw_api.FPDFAnnot_GetFormFieldValue(form, note, *rest))


def _string(call: Callable[[Any, int], int]) -> str:
    """Return a string that PDFium writes as UTF-16 into a buffer, with normalised white space."""
    size = call(None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    call(ctypes.cast(buffer, ctypes.POINTER(raw_api.FPDF_WCHAR)), size)
    return " ".join(buffer.raw[: size - 2].decode("utf-16-le", "replace").split())


def dehyphenate(pages: list[list[str]]) -> None:
    """Join words that are hyphenated at the end of a line or page.

    A hyphen that belongs to the word remains: if both parts are words and together they are not
    ("well-known"), before capitals, and at digits.
    """
    words: Counter[str] | None = None
    before: tuple[list[str], int] | None = None
    for lines in pages:
        for at, line in enumerate(lines):
            place, number = lines, at
            if before is not None and line and " | " not in line:
                words = words or _vocabulary(pages)
                earlier, last = before
                earlier[last], lines[at] = _rejoin(earlier[last], line, words)
                if not lines[at]:  # the line was only a part of the word, which may continue
                    place, number = before
            text = place[number]
            if len(text) > 1 and text[-1] in _HYPHENS and text[-2].isalnum() and " | " not in text:
                before = place, number
            elif text:
                before = None
    for lines in pages:
        lines[:] = [line for line in lines if line]


def _vocabulary(pages: list[list[str]]) -> Counter[str]:
    return Counter(word.lower() for lines in pages for line in lines for word in _WORDS.findall(line))


def _rejoin(line: str, following: str, words: Counter[str]) -> tuple[str, str]:
    """Move the rest of a hyphenated word from the following line to the end of ``line``."""
    if not following[0].isalnum():
        return line, following
    rest, _, remainder = following.partition(" ")
    head, tail = _WORD.match(line[-2::-1]), _WORD.match(rest)
    if line[-1] == "\u00ad" or (rest[-1] in _HYPHENS and not remainder):  # a soft hyphen, or two breaks
        keep = False
    elif head is None or tail is None or tail[0][0].isupper():
        keep = True
    else:
        keep = _keeps_hyphen(head[0][::-1].lower(), tail[0].lower(), words)
    return line[:-1] + ("-" if keep else "") + rest, remainder


def _keeps_hyphen(head: str, tail: str, words: Counter[str]) -> bool:
    known = _english()
    joined, hyphenated = head + tail, f"{head}-{tail}"
    if words[joined] or words[hyphenated]:
        return words[hyphenated] > words[joined]
    return joined not in known and head in known and tail in known


@cache
def _english() -> Any:
    """Return the English words as an object that supports ``in``; loading takes a third of a second."""
    return SpellChecker(language="en").word_frequency
