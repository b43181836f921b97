"""The one training record: what ``nvembed mine`` writes, and what ``nvembed train`` and ``leaks`` read.

{"query": "...", "task": "NQ", "positives": ["..."], "hard_negatives": ["..."]}
"""

import os
from dataclasses import dataclass, fields
from typing import Any

from nvembed.data.rows import JsonlFile, text_key
from nvembed.errors import DataError, InputError
from nvembed.read.lines import Row
from nvembed.text.prompt import format_prompt, instruction_for, training_instructions


@dataclass(frozen=True, slots=True)
class Example:
    """A query, its answers, and texts that look like answers but are not."""

    query: str
    """The text to search with."""
    positives: tuple[str, ...]
    """One or more answers."""
    task: str
    """Name of the task: its instruction is used if there is no ``instruction``."""
    hard_negatives: tuple[str, ...] = ()
    """Wrong answers, the hardest first."""
    both_sides: bool = False
    """Passages have the instruction too."""
    positive_ids: tuple[str, ...] = ()
    """One id per positive, or none. Passages with one id are the same document, or members of one class: in
    a batch they are never negatives of each other. Without ids the text is the identity."""
    hard_negative_ids: tuple[str, ...] = ()
    """One id per hard negative, or none."""
    instruction: str | None = None
    """Instruction of the query, for your own tasks; "" for none."""
    passage_instruction: str | None = None
    """Instruction of the passages, if it is not the task's."""


_KEYS = [field.name for field in fields(Example)]
_LISTS = ("positives", "hard_negatives", "positive_ids", "hard_negative_ids")
_INSTRUCTIONS = ("instruction", "passage_instruction")


def prompts(example: Example) -> tuple[str, str]:
    """Return the prompt of the query and that of the passages (``""`` for none).

    Of a task with several templates, a digest of the query's text chooses one.

    Raises:
        InputError: the task has no instruction.

    Paper: Table 12 (templates); section 4.2 (both sides of STS pairs carry it).
    """
    query, passage = example.instruction, example.passage_instruction
    on_passages = ""
    if query is None:
        templates = training_instructions(example.task)
        query = templates[int.from_bytes(text_key(example.query)[:4], "big") % len(templates)]
        on_passages = instruction_for(example.task, "corpus") if example.both_sides else ""
    if passage is None:
        passage = (on_passages or query) if example.both_sides else ""
    return format_prompt(query), format_prompt(passage)


def check_example(example: Example, where: str) -> None:
    """Refuse an example that cannot be trained on; ``where`` names the record in the message.

    Raises:
        DataError: a blank text, no positive, a hard negative that is a positive, ids that do not fit, or a
            task without an instruction.
    """
    if not example.positives:
        raise DataError(f"{where}: expected at least one positive, got none")
    texts = [("query", example.query)]
    texts += [("a positive", text) for text in example.positives]
    texts += [("a hard negative", text) for text in example.hard_negatives]
    for name, text in texts:
        if not text.strip():
            raise DataError(f"{where}: {name} is blank: drop the record, or the text")
    positives = {text_key(text) for text in example.positives}
    for text in example.hard_negatives:
        if text_key(text) in positives:
            raise DataError(f"{where}: a hard negative is a positive too: {text[:80]!r}")
    for name, values in (("positive", example.positives), ("hard_negative", example.hard_negatives)):
        ids = getattr(example, f"{name}_ids")
        if ids and len(ids) != len(values):
            raise DataError(
                f"{where}: expected {len(values)} {name}_ids, one for each text, or none; got {len(ids)}"
            )
    if shared := set(example.positive_ids) & set(example.hard_negative_ids):
        raise DataError(f"{where}: a hard negative has the id of a positive: {sorted(shared)[0]!r}")
    try:
        prompts(example)
    except InputError as error:
        raise DataError(f"{where}: {error}") from error


def open_examples(path: str | os.PathLike[str]) -> JsonlFile[Example]:
    """Open a JSONL file of examples, which are read and checked one at a time."""
    return JsonlFile(path, from_row)


def to_row(example: Example) -> Row:
    """Return the JSON object of an example, without empty fields."""
    row: Row = {"query": example.query, "task": example.task}
    row |= {name: list(values) for name in _LISTS if (values := getattr(example, name))}
    row |= {name: value for name in _INSTRUCTIONS if (value := getattr(example, name)) is not None}
    return row | ({"both_sides": True} if example.both_sides else {})


def from_row(row: Row, where: str) -> Example:
    """Return the checked example of a JSON object.

    Raises:
        DataError: a missing, unknown or mistyped field, or a record that cannot be trained on.
    """
    if unknown := row.keys() - set(_KEYS):
        raise DataError(f"{where}: unknown field {sorted(unknown)[0]!r}; known: {', '.join(_KEYS)}")
    for name in ("query", "task"):
        if not isinstance(row.get(name), str):
            raise _mistyped(where, name, "a string", row.get(name))
    for name in _INSTRUCTIONS:
        if not isinstance(row.get(name), str | None):
            raise _mistyped(where, name, "a string", row[name])
    if not isinstance(row.get("both_sides"), bool | None):
        raise _mistyped(where, "both_sides", "true or false", row["both_sides"])
    lists = {name: row.get(name) or [] for name in _LISTS}
    for name, values in lists.items():
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise _mistyped(where, name, "a list of strings", values)
    example = Example(
        query=row["query"],
        task=row["task"],
        both_sides=row.get("both_sides") or False,
        instruction=row.get("instruction"),
        passage_instruction=row.get("passage_instruction"),
        **{name: tuple(values) for name, values in lists.items()},
    )
    check_example(example, where)
    return example


def _mistyped(where: str, name: str, expected: str, value: Any) -> DataError:
    got = "none" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
    return DataError(f"{where}: {name}: expected {expected}, got {got}")
