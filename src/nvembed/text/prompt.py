"""Instructions and prompts: which sentence describes a task, and which side of a pair carries it.

A *task* is a name, an *instruction* the sentence that describes it, a *prompt* the string put before a text.
All instructions are data: ``recipes/nv_embed_v2/instructions.toml``.
"""

from functools import cache
from typing import Literal, Self

from pydantic import Field, model_validator

from nvembed.errors import InputError
from nvembed.files import data_path
from nvembed.recipe import Recipe, nearest, read_recipe

TEMPLATE = "Instruct: {instruction}\nQuery: "

Side = Literal["query", "corpus"]
Wording = Literal["released", "paper"]


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


def instruction_for(task: str, side: Side = "query", *, wording: Wording = "released") -> str:
    """Return the instruction of ``task`` for one side of a pair; ``""`` where that side carries none.

    Args:
        task: a name of ``known_tasks()``: an MTEB task, a training set of the paper, or a local set.
        side: ``"query"``, or ``"corpus"`` for what is searched. Symmetric tasks (STS, classification,
            clustering, pair classification, reranking, summarisation) carry the same instruction on both.
        wording: where the released ``instructions.json`` and the paper differ (FiQA2018, STS,
            QuoraRetrieval), the model's own file is followed unless ``"paper"`` is asked for.

    Raises:
        InputError: no such task, side or wording; the message names the nearest.

    Paper: Tables 12 and 13. Released: instructions.json.
    """
    if side not in ("query", "corpus"):
        raise InputError(f"expected side 'query' or 'corpus', got {side!r}")
    if wording not in ("released", "paper"):
        raise InputError(f"expected wording 'released' or 'paper', got {wording!r}")
    book = _instructions()
    name = _resolve(task)
    tables = [book.paper, book] if wording == "paper" else [book]
    for table in tables:
        if name in table.both:
            return table.both[name]
        if name in table.query:
            return table.query[name] if side == "query" else ""
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


class _Sides(Recipe):
    """Task -> instruction, by which side carries it."""

    query: dict[str, str] = Field(default_factory=dict)
    both: dict[str, str] = Field(default_factory=dict)


class _Instructions(_Sides):
    """``instructions.toml`` as a record."""

    paper: _Sides
    training: dict[str, tuple[str, ...]]
    alias: dict[str, str]

    def names(self) -> set[str]:
        return {*self.query, *self.both, *self.training}

    @model_validator(mode="after")
    def _one_meaning_per_name(self) -> Self:
        twice = self.query.keys() & self.both.keys() | self.names() & self.alias.keys()
        if twice:
            raise ValueError(f"one meaning per name; several for {', '.join(sorted(twice))}")
        lost = {*self.alias.values(), *self.paper.query, *self.paper.both} - self.names()
        if lost:
            raise ValueError(f"names that have an instruction; none for {', '.join(sorted(lost))}")
        texts = [
            *self.query.values(),
            *self.both.values(),
            *self.paper.query.values(),
            *self.paper.both.values(),
        ]
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
