"""The model and the index of a server, as functions and facts."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from nvembed.text.model_prompts import ModelPrompts
from nvembed.text.tokenize import End, Piece, Tokens


class Tokenise(Protocol):
    """Texts to tokens. Longer texts are cut at ``cut`` to ``max_length``. Raises InputError."""

    def __call__(
        self, texts: Sequence[str], *, prompt: str, max_length: int | None, cut: End
    ) -> list[Tokens]: ...


class Embed(Protocol):
    """Tokens to vectors (n, d) float32, in one batch on one device.

    ``pause`` is to be called often: it computes what is more urgent, and its exceptions must propagate.
    Raises MemoryError if the batch does not fit; any other exception counts as a fault of its texts.
    """

    def __call__(self, tokens: Sequence[Tokens], *, pause: Callable[[], None] | None) -> np.ndarray: ...


@dataclass(frozen=True)
class Device:
    """A device: its name, its embedding function, and its largest batch in tokens."""

    name: str
    embed: Embed
    batch_tokens: int


@dataclass(frozen=True)
class ServedModel:
    """A model that can be served."""

    dim: int
    max_length: int  # tokens read of one text
    dtype: str
    pooling: str
    fingerprint: str
    tokenise: Tokenise
    text_of: Callable[[Sequence[int]], str] | None  # token ids to text; raises InputError; None: no ids
    pieces: Callable[[str, str], list[Piece]]  # text, prompt
    devices: tuple[Device, ...]
    prompts: ModelPrompts | None = None  # the model's own; None: prompts are made from instructions


Mode = Literal["hybrid", "vector", "text"]


@dataclass(frozen=True)
class SearchQuery:
    """A search. All filters of ``where`` must hold; ``id`` restricts it to one passage."""

    query: str
    mode: Mode
    top: int
    where: Sequence[str]
    id: str | None


@dataclass(frozen=True)
class IndexFacts:
    """An index as it is now. ``max_length``: tokens read of a query. ``fields``: for filters, with types.

    ``embed``: if the index is of another model than the served one: a query and its instruction or None
    to its vector and its prompt.
    """

    query_prompt: str
    max_length: int
    fields: Mapping[str, str]
    model: str = ""
    embed: Callable[[str, str | None], tuple[np.ndarray, str]] | None = None


@dataclass(frozen=True)
class ServedIndex:
    """An index that can be searched. The functions block and raise NvembedError if it fails."""

    name: str
    facts: Callable[[], IndexFacts]
    check: Callable[[], None]
    map: bytes | None = None  # JSON, as nvembed cluster writes it


# a query and its vector for each index to search by name, None in mode text -> hits; InputError: a bad filter
Find = Callable[[SearchQuery, Mapping[str, np.ndarray | None]], list[dict[str, Any]]]


@dataclass(frozen=True)
class ServedIndexes:
    """The indexes of a server, and the function that searches in some of them together."""

    indexes: Sequence[ServedIndex]
    find: Find


ChatEvent = tuple[str, dict[str, Any]]  # its name and its data


@dataclass(frozen=True)
class ServedChat:
    """A chat model that answers questions; RefusedError if it fails.

    ``answer``: a question, the messages before it, and a search -> the events ``query`` (the question that is
    searched, if there are messages), ``passages``, ``text`` (a piece), ``restart`` (the pieces so far are
    void), and ``answer`` at the end.
    """

    model: str
    answer: Callable[
        [str, list[dict[str, str]], Callable[[str], Awaitable[Sequence[dict[str, Any]]]]],
        AsyncGenerator[ChatEvent, None],
    ]
