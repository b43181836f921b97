"""Instructions and prompts: which sentence describes a task, and which side of a pair carries it.

A *task* is a name, an *instruction* the sentence that describes it, a *prompt* the string put before a text.
All instructions are data: ``recipes/nv_embed_v2/instructions.toml``.
"""

from functools import cache
from typing import Literal, Self

from pydantic import model_validator

from nvembed.errors import InputError
from nvembed.files import data_path
from nvembed.recipe import Recipe, nearest, read_recipe

TEMPLATE = "Instruct: {instruction}\nQuery: "

Side = Literal["query", "corpus"]


def format_prompt(instruction: str) -> str:
    """Return the prompt of ``instruction``: ``"Instruct: {instruction}\\nQuery: "``, or ``""`` for ``""``.

    Raises:
        InputError: the instruction is only white space, or spans lines: the line break is what parts the
            instruction from the text.

    Paper: Tables 12 and 13. Released: the model card's template, to the trailing space.
    """
    if instruction == "":
        return ""
    fault = _fault(instruction)
    if fault:
        raise InputError(
            f"expected an instruction of one line (or '' for none), got {fault}: {instruction!r}"
        )
    return TEMPLATE.format(instruction=instruction)


def instruction_for(task: str, side: Side = "query") -> str:
    """Return the instruction of ``task`` for one side of a pair; ``""`` where that side carries none.

    Args:
        task: a name of ``known_tasks()``: an MTEB task, a training set of the paper, or a local set.
        side: ``"query"``, or ``"corpus"`` for what is searched. Symmetric tasks (STS, classification,
            clustering, pair classification, reranking, summarisation) carry the same instruction on both.

    Where the released ``instructions.json`` and the paper differ (FiQA2018, STS, QuoraRetrieval), the
    released file is followed.

    Raises:
        InputError: no such task or side; the message names the nearest.

    Paper: Tables 12 and 13. Released: instructions.json.
    """
    if side not in ("query", "corpus"):
        raise InputError(f"expected side 'query' or 'corpus', got {side!r}")
    book = _instructions()
    name = _resolve(task)
    if name in book.both:
        return book.both[name]
    if name in book.query:
        return book.query[name] if side == "query" else ""
    return book.training[name][0] if side == "query" else ""


def training_instructions(task: str) -> tuple[str, ...]:
    """Return every query instruction that training uses for ``task``: one, or Table 12's several templates.

    Raises:
        InputError: no such task; the message names the nearest.

    Paper: Table 12.
    """
    templates = _instructions().training.get(_resolve(task))
    return templates or (instruction_for(task),)


def known_tasks() -> tuple[str, ...]:
    """Return every name that has an instruction, other spellings included, sorted."""
    book = _instructions()
    return tuple(sorted({*book.names(), *book.alias}))


def _resolve(task: str) -> str:
    book = _instructions()
    name = book.alias.get(task, task)
    if name not in book.names():
        raise InputError(f"no instruction for task {task!r}: {nearest(task, known_tasks())}")
    return name


class _Instructions(Recipe):
    """``instructions.toml`` as a record: task -> instruction, by which side carries it."""

    query: dict[str, str]
    both: dict[str, str]
    training: dict[str, tuple[str, ...]]
    alias: dict[str, str]

    def names(self) -> set[str]:
        return {*self.query, *self.both, *self.training}

    @model_validator(mode="after")
    def _one_meaning_per_name(self) -> Self:
        twice = self.query.keys() & self.both.keys() | self.names() & self.alias.keys()
        if twice:
            raise ValueError(f"one meaning per name; several for {', '.join(sorted(twice))}")
        lost = set(self.alias.values()) - self.names()
        if lost:
            raise ValueError(f"names that have an instruction; none for {', '.join(sorted(lost))}")
        texts = [*self.query.values(), *self.both.values()]
        for text in [*texts, *(text for several in self.training.values() for text in several)]:
            if fault := _fault(text):
                raise ValueError(f"instructions of one line; one is {fault}: {text!r}")
        if not all(self.training.values()):
            raise ValueError("at least one training template per name")
        return self


def _fault(instruction: str) -> str:
    if not instruction.strip():
        return "nothing but white space" if instruction else "empty"
    return "a line break" if len(instruction.splitlines()) > 1 or instruction[-1] in "\r\n" else ""


@cache
def _instructions() -> _Instructions:
    return read_recipe(data_path("recipes") / "nv_embed_v2" / "instructions.toml", _Instructions)
