"""Citations in the text of an answer, in every form that chat models write them, made uniform: ``[2]``.

Nothing in code is a citation, nor are years, indices of arrays, numbered lists and exponents. Time is linear.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

ABSENT = "[no such passage]"
YEARS = range(1000, 3000)  # "[2020]" is a citation only if there are that many passages

# Brackets with short content, which other patterns then match: the time is linear.
_BRACKETS = re.compile(
    r"\\?\[([^\[\]]{1,200})\]|\u3010([^\u3010\u3011]{1,200})\u3011|\uff3b([^\uff3b\uff3d]{1,200})\uff3d"
)
_ROUND = re.compile(r"\(([^()]{1,200})\)|\uff08([^\uff08\uff09]{1,200})\uff09")
_WORD = (
    r"(?:passages?|sources?|documents?|docs?|references?|refs?|citations?|"
    r"quellen?|passagen?|fuentes?|fonti?|\u6bb5\u843d|\u6765\u6e90|\u6587\u6863|\u8cc7\u6599|\u51fa\u5178)"
)
_LABEL = rf"(?:(?:{_WORD}|see|nos?\.?)(?: ?:)?[ _-]?)"
_NUMBER = rf"(?:[\^#]|{_LABEL})*+\d{{1,20}}(?:(?::\d+)?\u2020[^,;]*)?"
_RANGE = r" ?(?:[-\u2010-\u2015~]|to|through) ?"
_LIST = rf"{_NUMBER}(?:(?: ?(?:, ?and|[,;&/\u3001\uff0c]|and|or) ?|{_RANGE}){_NUMBER})* ?,? ?\\?"
_CITATION = re.compile(_LIST, re.IGNORECASE)
_PARTS = re.compile(
    rf"(?P<first>\d+){_RANGE}(?:[\^#]|{_LABEL})*+(?P<last>\d+)|(?P<one>\d+)(?:(?::\d+)?\u2020[^,;]*)?",
    re.IGNORECASE,
)
_PAGE = re.compile(r",? ?\b(?:pp?\.?|pages?) ?\d{1,9}(?: ?[-\u2010-\u2015] ?\d{1,9})?", re.IGNORECASE)
_LABELLED = re.compile(rf"(?:see )?{_WORD}", re.IGNORECASE)
_FENCES = re.compile(r"`+|^ {0,3}~{3,}", re.MULTILINE)
# Before the index of an array (x[1], rows_a[1], args[1]) or a list (x = [1]); after an index (x[1] = 2).
_CODE_BEFORE = re.compile(
    r"(?:(?<![\w'\u2019])[a-z]|[a-z]\w*_\w*|\b(?:arr|array|argv|args|buf|df|dict|lst|nums|str|tuple)|= *)\Z"
)
_CODE_AFTER = re.compile(r" ?[-+*/|&]?=(?![=>])")
# A number alone in round brackets cites only at the end of a statement, and not after a word that it numbers.
_ENDS = re.compile(r"[ \t]*(?:\Z|[.,;:!?\u3002\uff0c\uff1b\uff01\uff1f\r\n]|[(\uff08]\d{1,3}[)\uff09])")
_NUMBERED = re.compile(
    r"(?:\b(?:eqn?|equations?|fig|figures?|tables?|sections?|steps?|items?|options?|chapters?|articles?|points?|"
    r"paragraphs?|cases?|rules?|examples?|clauses?|notes?|parts?|nos?(?=\.)|numbers?|pairs?|coordinates?)"
    r"\.?[ \xa0]*|[A-Za-z0-9_)\]]|(?:\A|\n)\s*)\Z",
    re.IGNORECASE,
)
_RAISED = "\u00b9\u00b2\u00b3\u2070\u2074-\u2079"
_SUPERSCRIPT = re.compile(
    rf"(?P<raised>[{_RAISED}]+(?:[, \u02d2\u00b7][{_RAISED}]+)*)|<sup>(?P<tag>[\d, ]{{1,40}})</sup>"
)
_DIGITS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u02d2\u00b7", "0123456789,,"
)
# A superscript cites after the end of a sentence or a word, but not after a unit or a variable.
_BEFORE_SUPERSCRIPT = re.compile(r"(?:[.,;:!?\"\u201d\u3002\uff0c]|(?P<word>[^\W\d_]{4,40}))\Z")
_UNITS = re.compile(r"feet|foot|inch(?:es)?|miles?|yards?|acres?|\w*met(?:er|re)s?", re.IGNORECASE)
_PROSE = re.compile(r"\b[Pp]assages? (\d{1,4}(?:(?:, and | and |, | & |-|\u2013)\d{1,4})*)\b")


@dataclass(frozen=True)
class Citation:
    """A part of a text that cites: its span, the numbers of passages, and the numbers without a passage."""

    start: int
    end: int
    present: tuple[int, ...]
    missing: tuple[int, ...]


def find_citations(text: str, count: int) -> list[Citation]:
    """Return the citations of ``count`` passages in a text, in order, without those in code.

    Round brackets without a label, superscripts and "passage 2" count only in a text that cites in no other
    way.
    """
    code = _code_spans(text)
    for forms in (_in_brackets, _in_round_brackets, _raised, _in_prose):
        outside = _Spans(code)
        citations = [one for one in forms(text, count) if not outside.has(one.start)]
        if citations:
            return citations
    return []


def uniform(text: str, citations: list[Citation]) -> tuple[str, list[tuple[int, int, int]]]:
    """Return the text with citations as ``[2]`` or ``ABSENT``, and start, end and number of each ``[2]``."""
    pieces: list[str] = []
    places: list[tuple[int, int, int]] = []
    end = length = 0
    for citation in citations:
        pieces.append(text[end : citation.start])
        length += citation.start - end
        for number in dict.fromkeys(citation.present):
            mark = f"[{number}]"
            places.append((length, length + len(mark), number))
            pieces.append(mark)
            length += len(mark)
        if citation.missing:
            pieces.append(f" {ABSENT}" if citation.present else ABSENT)
            length += len(pieces[-1])
        end = citation.end
    return "".join([*pieces, text[end:]]), places


class _Spans:
    """Sorted spans that are asked for ascending places."""

    def __init__(self, spans: list[tuple[int, int]]) -> None:
        self._spans = iter(spans)
        self._start, self._end = next(self._spans, (1 << 62, 1 << 62))

    def has(self, place: int) -> bool:
        while self._end <= place:
            self._start, self._end = next(self._spans, (1 << 62, 1 << 62))
        return self._start <= place


def _in_brackets(text: str, count: int) -> Iterator[Citation]:
    """Yield citations in square and corner brackets, and labelled ones in round brackets."""
    for match in sorted((*_BRACKETS.finditer(text), *_ROUND.finditer(text)), key=lambda match: match.start()):
        content = _content(match)
        if content is None or (match[0][0] in "(\uff08" and not _LABELLED.match(content)):
            continue
        if not _is_code(text, match):
            present, missing = _numbers(content, count)
            if present or any(number not in YEARS for number in missing):
                yield Citation(*match.span(), tuple(present), tuple(missing))


def _in_round_brackets(text: str, count: int) -> Iterator[Citation]:
    end = -1  # of the last citation
    for match in _ROUND.finditer(text):
        content = _content(match)
        if content is None or re.search(_RANGE, content) or not _ENDS.match(text, match.end()):
            continue
        present, missing = _numbers(content, count)
        before = text[max(0, match.start() - 30) : match.start()]
        if present and not missing and (match.start() == end or not _NUMBERED.search(before)):
            end = match.end()
            yield Citation(*match.span(), tuple(present), ())


def _raised(text: str, count: int) -> Iterator[Citation]:
    for match in _SUPERSCRIPT.finditer(text):
        before = _BEFORE_SUPERSCRIPT.search(text[max(0, match.start() - 41) : match.start()])
        if before is None or (before["word"] and _UNITS.fullmatch(before["word"])):
            continue
        numbers: list[int] = []
        for digits in (match["raised"] or match["tag"]).translate(_DIGITS).replace(",", " ").split():
            numbers += [int(digits)] if int(digits) <= count else map(int, digits)
        if numbers and all(1 <= number <= count for number in numbers):
            yield Citation(*match.span(), tuple(numbers), ())


def _in_prose(text: str, count: int) -> Iterator[Citation]:
    for match in _PROSE.finditer(text):
        present, missing = _numbers(match[1], count)
        if present and not missing:
            yield Citation(*match.span(1), tuple(present), ())


def _content(match: re.Match[str]) -> str | None:
    """Return what is inside brackets, without pages, if it has the form of a citation."""
    content = _PAGE.sub("", " ".join(next(group for group in match.groups() if group).split()))
    return content if _CITATION.fullmatch(content) else None


def _numbers(content: str, count: int) -> tuple[list[int], list[int]]:
    present: list[int] = []
    missing: list[int] = []
    for part in _PARTS.finditer(content):
        first, last = int(part["first"] or part["one"]), int(part["last"] or part["one"])
        if first > last or part["one"]:
            numbers = [first] if part["one"] else [first, last]
        else:  # a range: its passages, and its ends where there are none
            numbers = [*range(max(first, 1), min(last, count) + 1)]
            numbers += [number for number in (first, last) if number not in numbers]
        for number in numbers:
            (present if 1 <= number <= count else missing).append(number)
    return present, missing


def _is_code(text: str, match: re.Match[str]) -> bool:
    if not match[0].startswith("["):
        return False
    definition = match[0].startswith("[^") and text[match.end() : match.end() + 1] == ":"
    before = text[max(0, match.start() - 30) : match.start()]
    return definition or bool(_CODE_BEFORE.search(before) or _CODE_AFTER.match(text, match.end()))


def _code_spans(text: str) -> list[tuple[int, int]]:
    """Return the spans of code: between equal runs of backticks, or fences; the last fence may stay open."""
    runs = [(*match.span(), match[0].strip()) for match in _FENCES.finditer(text)]
    following: dict[str, int] = {}
    closed_by = [-1] * len(runs)
    for i in range(len(runs) - 1, -1, -1):
        mark = runs[i][2]
        closed_by[i] = following.get(mark, -1)
        following[mark] = i
    spans, i = [], 0
    while i < len(runs):
        start, _, mark = runs[i]
        if closed_by[i] >= 0:
            spans.append((start, runs[closed_by[i]][1]))
            i = closed_by[i]
        elif len(mark) >= 3:
            return [*spans, (start, len(text))]
        i += 1
    return spans
