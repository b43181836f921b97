"""Cutting long documents into overlapping passages at headings, blocks and sentences, without losing text.

Shapes: T tokens of a text.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nvembed.errors import InputError
from nvembed.read.structure import HEADING, SENTENCE, Structure

# texts -> for each an int64 (T, 2): the characters at which each token begins and ends
Offsets = Callable[[Sequence[str]], list[np.ndarray]]
Cut = tuple[int, int]  # characters: text[start:end]

# Where a sentence or a paragraph begins: after an end mark, closing quotes and brackets, and white space;
# after a CJK end mark; after an empty line; before a Markdown heading.
_CLOSING = ")\\]\"'\u201d\u2019»"
_SENTENCE = re.compile(rf"[.!?…][{_CLOSING}]*\s+|[\u3002\uff01\uff1f]\s*|\n\s*\n\s*|\n(?=#{{1,6}}\s)")
# Characters that are tokenised at once: the offsets of a token need far more memory than its text.
WINDOW_CHARACTERS = 200_000


def cut_texts(
    texts: Sequence[str],
    offsets: Offsets,
    *,
    max_tokens: int,
    overlap: int,
    structures: Sequence[Structure] | None = None,
) -> Iterator[list[Cut]]:
    """Yield the beginnings and ends of the passages of each text.

    A passage has as many whole sentences as fit in ``max_tokens``. If they fill less than half of it, it ends
    between words; a word longer than a passage is cut between tokens. The next passage begins with the last
    sentences (or words) of the one before that fit in ``overlap`` tokens. Passages do not begin or end with
    white space, and there is only white space between them. A text without a word is one passage: (0, 0).

    With ``structures`` a passage ends at the strongest place in its second half, the last one of equal
    strength, and nothing overlaps across a heading.

    Args:
        offsets: returns the places of tokens, as the model's tokenizer cuts texts.
        max_tokens: of a passage, at least 1; counted in the whole text, so that a passage alone may have a
            token or two more or less.
        overlap: in tokens, less than ``max_tokens``.
        structures: where each text can be cut. None: at ends of sentences and paragraphs.

    Raises:
        InputError: a size is out of range.
    """
    if max_tokens < 1 or not 0 <= overlap < max_tokens:
        raise InputError(
            f"passages of {max_tokens:,} tokens with an overlap of {overlap:,}: "
            "expected at least 1 token, and an overlap that is smaller"
        )
    beginnings = offsets([text[:WINDOW_CHARACTERS] for text in texts])
    for number, (text, spans) in enumerate(zip(texts, beginnings, strict=True)):
        cuts: list[Cut] = []
        structure = None if structures is None else structures[number]
        for cut in _cut(text, spans, offsets, (max_tokens, overlap), structure):
            start, end = _stripped(text, cut)
            if start < end and (not cuts or end > cuts[-1][1]):  # otherwise it only adds white space
                if cuts and cuts[-1][0] == start:  # this passage contains the one before
                    cuts.pop()
                cuts.append((start, end))
        yield cuts or [(0, 0)]


def _cut(
    text: str, spans: np.ndarray, offsets: Offsets, sizes: tuple[int, int], structure: Structure | None
) -> Iterator[Cut]:
    max_tokens, overlap = sizes
    base = start = end = 0  # characters: begin of the window and of the next passage, end of the last one
    size = WINDOW_CHARACTERS
    while True:
        begins, ends = spans[:, 0] + base, spans[:, 1] + base
        if structure is None:
            breaks = [match.end() for match in _SENTENCE.finditer(text, base, base + size)]
            strengths = [SENTENCE] * len(breaks)
        else:
            window = slice(bisect_right(structure.places, base), bisect_right(structure.places, base + size))
            breaks, strengths = structure.places[window], structure.strengths[window]
        while (first := bisect_right(ends, start)) + max_tokens < len(begins):
            limit = max(int(begins[first + max_tokens]), end + 1)
            passage = start
            end, strength = _end(text, (breaks, strengths), (start, limit), end)
            yield passage, end
            earliest, new = end, bisect_left(begins, end)
            if overlap and new < len(begins) and strength < HEADING:
                fits = bisect_right(begins, begins[new]) - max_tokens  # leave room for a new character
                again = max(first + 1, new - overlap, fits)
                whole_character = (
                    begins[again] != begins[again - 1]
                )  # otherwise some of its tokens are cut off
                earliest = int((begins if whole_character else ends)[again])
            start = _next(text, breaks if strength >= 0 else None, max(earliest, passage + 1), end)
        if base + size >= len(text):
            if end < len(text):
                yield start, len(text)
            return
        size = WINDOW_CHARACTERS if start > base else 2 * size  # a passage may be longer than a window
        base = start
        (spans,) = offsets([text[base : base + size]])


def _end(text: str, breaks: tuple[list[int], list[int]], room: Cut, after: int) -> tuple[int, int]:
    """Return the end of a passage within ``room``, after ``after``, and the strength of that place.

    The strength of the end of a word or token is -1.
    """
    places, strengths = breaks
    start, limit = room
    earliest = max(after + 1, start + -(-(limit - start) // 2))
    candidates = range(bisect_left(places, earliest), bisect_right(places, limit))
    if candidates:
        best = max(candidates, key=lambda at: (strengths[at], at))
        return places[best], strengths[best]
    word = limit
    if limit < len(text) and not text[limit].isspace():
        while word > after and not text[word - 1].isspace():
            word -= 1
    return (word if word > after else limit), -1


def _next(text: str, breaks: list[int] | None, earliest: int, end: int) -> int:
    """Return where the next sentence (without ``breaks``: word) begins, from ``earliest`` to ``end``."""
    if breaks is not None:
        place = bisect_left(breaks, earliest)
        return min(breaks[place], end) if place < len(breaks) else end
    while earliest < end and not (text[earliest - 1].isspace() and not text[earliest].isspace()):
        earliest += 1
    return min(earliest, end)  # a token may begin before ``end`` and the next one behind it


def _stripped(text: str, cut: Cut) -> Cut:
    start, end = cut
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
