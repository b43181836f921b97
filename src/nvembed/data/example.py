"""The one training record, its form on disk, and the prompts its task gives it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nvembed.data.rows import JsonlFile, Row, read_rows, text_key
from nvembed.errors import DataError, InputError
from nvembed.text.prompt import format_prompt, instruction_for, training_instructions


@dataclass(frozen=True, slots=True)
class Example:
    """One query, what answers it, and what looks like an answer but is none.

    Attributes:
        query: the text that is searched with.
        positives: one or more right answers.
        hard_negatives: wrong answers, the hardest first; may be none.
        task: a name of ``prompt.known_tasks()``; it decides the instruction.
        both_sides: passages carry the instruction too, not only the query.
        positive_ids, hard_negative_ids: one id per passage, or none at all. Passages of one id are the same
            document or, in sets made by example, members of one class: in a batch they are never negatives
            of each other. Without ids the text itself is the identity.
    """

    query: str
    positives: tuple[str, ...]
    task: str
    hard_negatives: tuple[str, ...] = ()
    both_sides: bool = False
    positive_ids: tuple[str, ...] = ()
    hard_negative_ids: tuple[str, ...] = ()


def prompts(example: Example) -> tuple[str, str]:
    """Return the prompt of the query and that of the passages (``""`` where they carry none).

    A task with several templates gives each query one of them, always the same, by a digest of its text.

    Raises:
        InputError: the task has no instruction.

    Paper: Table 12 (templates); section 4.2 (both sides of STS pairs carry it).
    """
    templates = training_instructions(example.task)
    chosen = templates[int.from_bytes(text_key(example.query)[:4], "big") % len(templates)]
    passage = (instruction_for(example.task, "corpus") or chosen) if example.both_sides else ""
    return format_prompt(chosen), format_prompt(passage)


def check_example(example: Example, where: str) -> None:
    """Refuse what cannot be trained on; ``where`` is how the message names the record.

    Raises:
        DataError: a blank text, no positive, a hard negative that is a positive, ids that do not fit, or a
            task without an instruction.
    """
    if not example.positives:
        raise DataError(f"{where}: expected one positive or more, got none")
    for name, text in _texts(example):
        if not text.strip():
            raise DataError(f"{where}: {name} is blank: drop the record, or the text")
    positives = {text_key(text) for text in example.positives}
    for text in example.hard_negatives:
        if text_key(text) in positives:
            raise DataError(f"{where}: a hard negative is a positive too: {text[:80]!r}")
    for name, ids, texts in (
        ("positive_ids", example.positive_ids, example.positives),
        ("hard_negative_ids", example.hard_negative_ids, example.hard_negatives),
    ):
        if ids and len(ids) != len(texts):
            raise DataError(f"{where}: expected no {name} or {len(texts)}, one for each text; got {len(ids)}")
    if wrong := set(example.positive_ids) & set(example.hard_negative_ids):
        raise DataError(f"{where}: a hard negative has the id of a positive: {sorted(wrong)[0]!r}")
    try:
        training_instructions(example.task)
    except InputError as error:
        raise DataError(f"{where}: {error}") from error


def read_examples(path: str | os.PathLike[str]) -> Iterator[Example]:
    """Yield the checked examples of a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file.

    Raises:
        DataError: a record that cannot be used; the message names file and line.
    """
    for where, row in read_rows(path):
        yield from_row(row, where)


class ExampleFile:
    """Examples of a JSONL file by number, without holding them in memory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._lines = JsonlFile(path)
        self.digest = self._lines.digest

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Example:
        return from_row(self._lines[index], f"{self._lines.path}:{index + 1}")

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def close(self) -> None:
        self._lines.close()


_LISTS = ("positives", "hard_negatives", "positive_ids", "hard_negative_ids")


def to_row(example: Example) -> Row:
    """Return the JSON object of an example; what is empty is left out."""
    row: Row = {"query": example.query, "task": example.task}
    row |= {name: list(values) for name in _LISTS if (values := getattr(example, name))}
    return row | ({"both_sides": True} if example.both_sides else {})


def from_row(row: Row, where: str) -> Example:
    """Return the checked example of a JSON object.

    Raises:
        DataError: a missing, unknown or mistyped field, or a record that cannot be trained on.
    """
    if unknown := row.keys() - {"query", "task", "both_sides", *_LISTS}:
        known = ", ".join(["query", "task", "both_sides", *_LISTS])
        raise DataError(f"{where}: unknown field {sorted(unknown)[0]!r}; known: {known}")
    example = Example(
        query=_text(row, "query", where),
        task=_text(row, "task", where),
        both_sides=_flag(row, where),
        **{name: _list(row, name, where) for name in _LISTS},
    )
    check_example(example, where)
    return example


def _texts(example: Example) -> Iterator[tuple[str, str]]:
    yield "query", example.query
    yield from (("a positive", text) for text in example.positives)
    yield from (("a hard negative", text) for text in example.hard_negatives)


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(f"{where}: {name}: expected a string, got {_said(value)}")
    return value


def _flag(row: Row, where: str) -> bool:
    value = row.get("both_sides") or False
    if not isinstance(value, bool):
        raise DataError(f"{where}: both_sides: expected true or false, got {_said(value)}")
    return value


def _list(row: Row, name: str, where: str) -> tuple[str, ...]:
    value = row.get(name)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataError(f"{where}: {name}: expected a list of strings, got {_said(value)}")
    return tuple(value)


def _said(value: Any) -> str:
    return "none" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
