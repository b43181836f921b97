"""Where a document can be cut, and how good each place is: headings, blocks, rows and items, sentences.

Everything is found in one pass over lines and one over sentence ends, in time linear in the text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

# How strongly a place divides a text. A heading of level n (1 to 6) has HEADING + 6 - n.
CLAUSE, SENTENCE, ITEM, BLOCK, HEADING = 0, 1, 2, 3, 4

# Kinds of documents (``documents.DOCUMENT_KINDS``) whose headings are lines that begin with #.
_MARKED = frozenset(("markdown", "html", "xhtml", "docx", "pptx", "odt", "epub", "eml"))
_LINES = frozenset(("json", "workbook"))  # every line is a record

_HEADING = re.compile(r"(#{1,6})[ \t]+(\S[^\n]*)")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_LIST_ITEM = re.compile(r"[ \t]{0,20}(?:[*+\-\u2022\u2023\u25e6]|\d{1,3}[.)]|[a-z][.)])[ \t]+\S")
_ADORNMENT = re.compile(r"([=\-`:'\"~^_*+#<>.])\1{2,}\s*\Z")
_CLOSING = ")\\]\"'\u201d\u2019»"
# After an end mark and what closes quotes: white space in scripts with spaces, anything after CJK marks.
_SENTENCE_END = re.compile(
    rf"[.!?…\u061f\u06d4\u0964\u0965\u0589\u1362\u104b\u17d4\u17d5][{_CLOSING}]*+\s++"
    rf"|[\u3002\uff01\uff1f\uff61\uff0e][{_CLOSING}\u300d\u300f\uff09\u3009\u300b\u3011]*+\s*+"
)
# Thai, Lao, Khmer and Burmese put spaces between clauses and sentences only.
_SPACE_CLAUSE = re.compile(
    r"(?<=[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])[ \u00a0\u200b]++"
    r"(?=[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff])"
)
_ABBREVIATIONS = frozenset(
    (
        "dr",
        "mr",
        "mrs",
        "ms",
        "prof",
        "st",
        "vs",
        "e.g",
        "i.e",
        "fig",
        "vol",
        "pp",
        "ca",
        "cf",
        "al",
        "approx",
        "dept",
        "inc",
        "jr",
        "sr",
        "bzw",
        "z.b",
        "d.h",
        "u.a",
        "mme",
    )
)
_WORD_CHARACTERS = 12  # looked at before a full stop


class HeadingLine(NamedTuple):
    """A heading, where its line begins, and the number of the heading above it (-1: none)."""

    start: int
    level: int
    title: str
    above: int = -1


class Structure(NamedTuple):
    """Where a text can be cut: places in order, the strength of each, and its headings."""

    places: list[int]
    strengths: list[int]
    headings: list[HeadingLine]

    def path(self, place: int) -> list[str]:
        """Return the titles of the headings that a character stands under, those that begin at it too."""
        path: list[str] = []
        at = bisect_right(self.headings, place, key=lambda heading: heading.start) - 1
        while at >= 0:
            path.insert(0, self.headings[at].title)
            at = self.headings[at].above
        return path


def structure_of(text: str, kind: str) -> Structure:
    """Return where a document can be cut.

    Args:
        kind: of the document: one of ``documents.DOCUMENT_KINDS``' values or a kind of records.
    """
    marks: dict[int, int] = {}
    headings: list[HeadingLine] = []
    if kind not in _LINES and kind != "code":
        marks.update((match.start() + len(match[0]), CLAUSE) for match in _SPACE_CLAUSE.finditer(text))
        marks.update((match.end(), SENTENCE) for match in _SENTENCE_END.finditer(text) if _ends(text, match))
    lines = _code_lines(text) if kind == "code" else _prose_lines(text, kind, headings)
    for place, strength in lines:
        marks[place] = max(strength, marks.get(place, 0))
    for heading in headings:
        marks[heading.start] = HEADING + 6 - heading.level
    places = sorted(place for place in marks if 0 < place < len(text))
    return Structure(places, [marks[place] for place in places], headings)


def _ends(text: str, match: re.Match[str]) -> bool:
    """Whether a full stop ends a sentence, and not an abbreviation or the number of a list item."""
    if text[match.start()] != ".":
        return True
    if text[match.end() : match.end() + 1].islower():
        return False
    line = text.rfind("\n", max(0, match.start() - _WORD_CHARACTERS), match.start()) + 1
    before = text[max(line, match.start() - _WORD_CHARACTERS) : match.start()]
    word = before.rpartition(" ")[2].lstrip("([\"'")
    if line and before.strip().isdecimal():
        return False
    return not (word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isalpha()))


def _code_lines(text: str) -> Iterator[tuple[int, int]]:
    """Yield the lines of source code: a blank line before one without indentation divides most."""
    start, blank = 0, False
    for line in text.split("\n"):
        if line.strip():
            top = not line[0].isspace() and line[0] not in ")]}"
            yield start, BLOCK if blank and top else ITEM if blank else SENTENCE
        blank = not line.strip()
        start += len(line) + 1


def _prose_lines(text: str, kind: str, headings: list[HeadingLine]) -> Iterator[tuple[int, int]]:
    """Yield where lines divide a text, and append its headings. A heading is never divided from its text."""
    lines = text.split("\n")
    levels: dict[str, int] = {}  # of the adornments of reStructuredText, in order of appearance
    start = 0
    fence = ""
    blank, after_heading, in_list, skip = True, False, False, 0
    for number, line in enumerate(lines):
        content = line.strip()
        strength = -1
        if skip:  # the rest of a heading
            skip -= 1
        elif fence:
            strength = CLAUSE
            fence = "" if content.startswith(fence) else fence
        elif content:
            heading = _heading(lines, number, kind, levels, blank=blank)
            opening = _FENCE.match(line) if kind == "markdown" else None
            if heading is not None:
                level, title, skip = heading
                headings.append(HeadingLine(start, level, title, _above(headings, level)))
            else:
                fence = opening[1] if opening else ""
                strength = _line_strength(line, kind, blank=blank, opening=opening is not None)
                item = _LIST_ITEM.match(line) is not None
                if strength == BLOCK and item and in_list:
                    strength = ITEM
                in_list = item or (in_list and line[0].isspace())
            if after_heading:
                strength = -1
            after_heading = heading is not None
        if strength >= 0:
            yield start, strength
        blank = not content
        start += len(line) + 1


def _above(headings: list[HeadingLine], level: int) -> int:
    """Return the number of the last heading of a lower level."""
    at = len(headings) - 1
    while at >= 0 and headings[at].level >= level:
        at = headings[at].above
    return at


def _line_strength(line: str, kind: str, *, blank: bool, opening: bool) -> int:
    if opening or (blank and not line.startswith(("    ", "\t"))):
        return BLOCK
    if blank or kind in _LINES or " | " in line or _LIST_ITEM.match(line):
        return ITEM
    return -1


def _heading(
    lines: list[str], number: int, kind: str, levels: dict[str, int], *, blank: bool
) -> tuple[int, str, int] | None:
    """Return level and title of the heading that begins with a line, and how many more lines it takes."""
    line = lines[number]
    if kind in _MARKED:
        marked = _HEADING.match(line)
        if marked is not None:
            return len(marked[1]), marked[2].rstrip("# \t").strip() or marked[2], 0
    if kind not in ("markdown", "text") or not blank:
        return None
    below = lines[number + 1] if number + 1 < len(lines) else ""
    under = _ADORNMENT.match(below)
    if kind == "markdown":
        if under is None or under[1] not in "=-" or line.startswith(("    ", "\t", "-", "*", "|", ">")):
            return None
        return (1 if under[1] == "=" else 2), line.strip(), 1
    if under is not None and _ADORNMENT.match(line) is None and len(below.rstrip()) >= len(line.rstrip()) > 0:
        return levels.setdefault(under[1], min(len(levels) + 1, 6)), line.strip(), 1
    over = _ADORNMENT.match(line)
    if (
        over is not None
        and below.strip()
        and number + 2 < len(lines)
        and lines[number + 2].rstrip() == line.rstrip()
    ):
        return levels.setdefault(over[1] * 2, min(len(levels) + 1, 6)), below.strip(), 2
    return None
