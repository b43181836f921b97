"""Instructions and prompts of tasks, for each side of a pair.

A *task* is a name, an *instruction* the sentence that describes it, a *prompt* the string before a text.
All instructions are data: ``recipes/nv_embed_v2/instructions.toml``.
"""

from functools import cache
from typing import Literal

from nvembed.errors import InputError
from nvembed.files import data_path
from nvembed.recipe import Recipe, nearest, read_recipe

TEMPLATE = "Instruct: {instruction}\nQuery: "

Side = Literal["query", "corpus"]


def format_prompt(instruction: str) -> str:
    """Return the prompt of ``instruction``: ``"Instruct: {instruction}\\nQuery: "``, or ``""`` for ``""``.

    Raises:
        InputError: the instruction is only white space, or has a line break, which would end it.

    Paper: Tables 12 and 13. Released: the model card's template, including the trailing space.
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
    """Return the instruction of ``task`` for one side of a pair; ``""`` if that side has none.

    Args:
        task: a name of ``known_tasks()``: an MTEB task, a training set of the paper, or a local set.
        side: ``"query"`` or ``"corpus"``. Symmetric tasks (STS, classification, clustering, pair
            classification, reranking, summarisation) have the same instruction on both sides.

    Raises:
        InputError: the task or side is unknown; the message has the nearest names.

    Paper: Tables 12 and 13. Released: instructions.json, which differs from the paper for FiQA2018, STS and
        QuoraRetrieval, and which is used.
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
    """Return every query instruction that training uses for ``task``: one, or several templates.

    Raises:
        InputError: the task is unknown; the message has the nearest names.

    Paper: Table 12.
    """
    templates = _instructions().training.get(_resolve(task))
    return templates or (instruction_for(task),)


def known_tasks() -> tuple[str, ...]:
    """Return all names that have an instruction, including other spellings, sorted."""
    book = _instructions()
    return tuple(sorted({*book.names(), *book.alias}))


def _resolve(task: str) -> str:
    book = _instructions()
    name = book.alias.get(task, task)
    if name not in book.names():
        raise InputError(f"no instruction for task {task!r}: {nearest(task, known_tasks())}")
    return name


class _Instructions(Recipe):
    """``instructions.toml``: task -> instruction, by the sides that have it."""

    query: dict[str, str]
    both: dict[str, str]
    training: dict[str, tuple[str, ...]]
    alias: dict[str, str]

    def names(self) -> set[str]:
        return {*self.query, *self.both, *self.training}


def _fault(instruction: str) -> str:
    if not instruction.strip():
        return "nothing but white space" if instruction else "empty"
    return "a line break" if len(instruction.splitlines()) > 1 or instruction[-1] in "\r\n" else ""


@cache
def _instructions() -> _Instructions:
    return read_recipe(data_path("recipes") / "nv_embed_v2" / "instructions.toml", _Instructions)
