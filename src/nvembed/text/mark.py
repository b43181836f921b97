"""Which part of a passage matches a query: words of the same stem, or the most similar sentence."""

import re
from collections.abc import Sequence

from nvembed.text.words import Span, Words

# Each run of end marks and each line break is read once, so the time is linear.
_END = re.compile(r"(?P<stop>[.!?]++)|(?P<wide>[\u3002\uff01\uff1f]++[.!?\u3002\uff01\uff1f]*+)|\n")
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
    such a mark of East Asian width.
    """
    spans: list[Span] = []
    first = _first(passage, 0)
    for match in _END.finditer(passage):
        start, end = match.span()
        if start < first or (start == first and end == start + 1):  # a lone mark does not end a sentence
            continue
        if match.lastgroup == "stop" and passage[end : end + 1].strip():
            continue
        spans.append((first, end if match.lastgroup else start))
        first = _first(passage, end)
    return [*spans, (first, len(passage))] if first < len(passage) else spans


def _first(passage: str, start: int) -> int:
    """Return the position of the next character other than white space, or the end."""
    match = _VISIBLE.search(passage, start)
    return len(passage) if match is None else match.start()
