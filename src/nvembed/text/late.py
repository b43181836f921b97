"""Late chunking: the passages of a document are pooled from passes over the document.

Each passage's tokens have read what stands around it. A document that is longer than the model reads is read
in windows; each passage is taken from a window that holds it whole, with context on both sides where there is
any.

Paper: Günther et al. 2024, "Late Chunking".
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from nvembed.text.model_prompts import place_titles, takes_titles
from nvembed.text.pack import Batch, batches
from nvembed.text.tokenize import TextTokenizer, Tokens

Cut = tuple[int, int]  # characters, or tokens: from the first to before the last
GROUP_CHARACTERS = 400_000  # of documents whose tokens are in memory with their characters
CONTEXT_SHARE = 8  # a window ends behind its last passage by a share of its length


@dataclass(frozen=True)
class LateDocument:
    """A document and where its passages begin and end in it, in characters, by their beginning.

    ``prompt`` is put before each window; its tokens are not pooled.
    """

    text: str
    passages: Sequence[Cut]
    prompt: str = ""

    @classmethod
    def of(
        cls, text: str, passages: Sequence[Cut], prompt: str, *, title: str = "", body_start: int = 0
    ) -> "LateDocument":
        """Put the title into a prompt with a place for it; the text then begins at ``body_start``."""
        if not takes_titles(prompt):
            return cls(text, passages, prompt)
        before, (filled,) = place_titles(prompt, [""], [title])
        moved = [(max(0, start - body_start), max(0, end - body_start)) for start, end in passages]
        return cls(text[body_start:], moved, before + filled)


@dataclass(frozen=True)
class LateWindow:
    """Tokens of one pass, and the tokens of each passage that is pooled from it."""

    tokens: Tokens
    passages: list[Cut]  # tokens
    first_row: int  # the row of the first of these passages
    cut: list[bool]  # passages that are longer than the model reads


def late_groups(documents: Iterable[LateDocument]) -> Iterator[list[LateDocument]]:
    """Yield documents in lists that end once they have ``GROUP_CHARACTERS``."""
    group: list[LateDocument] = []
    characters = 0
    for document in documents:
        group.append(document)
        characters += len(document.text)
        if characters >= GROUP_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def late_windows(
    tokenizer: TextTokenizer, documents: Iterable[LateDocument], *, max_length: int
) -> Iterator[LateWindow]:
    """Yield the windows of documents in order; the passages of all documents are numbered from 0.

    A token belongs to every passage that it overlaps. A passage without a token (of an empty document) is
    pooled from all tokens of its window.

    Raises:
        InputError: no valid text, or a prompt that leaves no room.
    """
    row = 0
    for document in documents:
        head, ids, offsets, tail = tokenizer.parts(document.text, document.prompt, max_length)
        room = max_length - len(head) - len(tail)
        begins, ends = np.maximum.accumulate(offsets, axis=0).T
        passages = [
            (int(np.searchsorted(ends, start, "right")), int(np.searchsorted(begins, end, "left")))
            for start, end in document.passages
        ]
        for (start, stop), members in group_passages([(a, max(a, b)) for a, b in passages], len(ids), room):
            whole = np.array([*head, *ids[start:stop], *tail], dtype=np.int32)
            moved = [(a - start + len(head), min(b, stop) - start + len(head)) for a, b in members]
            pooled = [(a, b) if a < b else (0, len(whole)) for a, b in moved]
            yield LateWindow(Tokens(whole, 0, len(whole)), pooled, row, [b - a > room for a, b in members])
            row += len(members)


def group_passages(passages: Sequence[Cut], length: int, room: int) -> Iterator[tuple[Cut, Sequence[Cut]]]:
    """Yield windows of at most ``room`` of ``length`` tokens, each with the passages pooled from it."""
    context, number = room // CONTEXT_SHARE, 0
    while number < len(passages):
        first, last = passages[number]
        last = min(last, first + room)
        start = max(0, min(first - context, length - room), last - room)
        stop = min(length, start + room)
        limit = length if stop == length else max(last, stop - context)
        behind = number + 1
        while behind < len(passages) and passages[behind][1] <= limit:
            behind += 1
        yield (start, stop), passages[number:behind]
        number = behind


def late_batches(windows: Sequence[LateWindow], max_tokens: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yield packed batches of windows, and the rows of the passages that are pooled from each."""
    for batch in batches([window.tokens for window in windows], max_tokens):
        starts = np.cumsum(batch.lengths) - batch.lengths
        members = [windows[row] for row in batch.rows]
        spans = [
            (a + start, b + start) for w, start in zip(members, starts, strict=True) for a, b in w.passages
        ]
        rows = [np.arange(w.first_row, w.first_row + len(w.passages)) for w in members]
        yield (
            replace(
                batch,
                pool_index=np.concatenate([np.arange(a, b) for a, b in spans]),
                pool_lengths=tuple(int(b - a) for a, b in spans),
            ),
            np.concatenate(rows),
        )
