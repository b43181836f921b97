"""Which part of a passage matches a query: words of the same stem, or the most similar sentence."""

import re
from collections.abc import Sequence

from nvembed.text.words import Span, Words

# Each run of end marks and each line break is read once, so the time is linear.
_STOPS = ".!?\u061f\u06d4\u0964\u0965\u0589\u1362\u104b\u17d4\u17d5"
_WIDE = "\u3002\uff01\uff1f\uff61\uff0e"
# Thai, Lao, Khmer and Burmese have no full stop or use it rarely; spaces are between clauses and sentences.
_SPACED = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"
MIN_SPACED = 40  # characters of a sentence that ends at a space
_END = re.compile(
    rf"(?P<stop>[{_STOPS}]++)|(?P<wide>[{_WIDE}]++[{_STOPS}{_WIDE}]*+)"
    rf"|(?<={_SPACED})(?P<space>[ \u00a0\u200b]++)(?={_SPACED})|\n"
)
_VISIBLE = re.compile(r"\S")


def word_spans(query: str, passages: Sequence[str], words: Words) -> list[list[Span]]:
    """Return where the query's words occur in each passage; neighbours make one span."""
    query_words = set(words.query(query))
    return [_spans(passage, query_words, words) for passage in passages]


def _spans(passage: str, query_words: set[str], words: Words) -> list[Span]:
    spans: list[Span] = []
    for (start, end), word in words.located(passage):
        if word not in query_words:
            continue
        if spans and (start <= spans[-1][1] or passage[spans[-1][1] : start].isspace()):
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def sentences(passage: str) -> list[Span]:
    """Return the places of a passage's sentences.

    A sentence ends at a line break, at a full stop, question or exclamation mark before white space, or at
    such a mark of East Asian width; in Thai, Lao, Khmer and Burmese also at a space.
    """
    spans: list[Span] = []
    first = _first(passage, 0)
    for match in _END.finditer(passage):
        start, end = match.span()
        if start < first or (start == first and end == start + 1):  # a lone mark does not end a sentence
            continue
        if match.lastgroup == "stop" and passage[end : end + 1].strip():
            continue
        if match.lastgroup == "space" and start - first < MIN_SPACED:
            continue
        spans.append((first, end if match.lastgroup in ("stop", "wide") else start))
        first = _first(passage, end)
    return [*spans, (first, len(passage))] if first < len(passage) else spans


def _first(passage: str, start: int) -> int:
    """Return the position of the next character other than white space, or the end."""
    match = _VISIBLE.search(passage, start)
    return len(passage) if match is None else match.start()
