"""What the server needs of a model: functions and facts. The command line makes one of an encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvembed.text.tokenize import End, Piece, Tokens


class Tokenise(Protocol):
    """Texts to tokens, longer ones cut at that end to ``max_length``; raises InputError."""

    def __call__(
        self, texts: Sequence[str], *, prompt: str, max_length: int | None, cut: End
    ) -> list[Tokens]: ...


class Embed(Protocol):
    """Tokens to vectors (n, d) float32 in one batch on one device.

    ``pause``, where it is given, may be called at any time in between, often: it computes what is more
    urgent, and what it raises must be let through. Raises MemoryError where the batch does not fit; anything
    else is held against the batch's texts.
    """

    def __call__(self, tokens: Sequence[Tokens], *, pause: Callable[[], None] | None) -> np.ndarray: ...


@dataclass(frozen=True)
class Device:
    """One device: its name, how it embeds, and how many tokens a batch should have on it at most."""

    name: str
    embed: Embed
    batch_tokens: int


@dataclass(frozen=True)
class Model:
    """A model that can be served."""

    name: str
    dim: int
    max_length: int  # tokens read of one text
    dtype: str
    pooling: str
    fingerprint: str  # names what the model computes
    tokenise: Tokenise
    text_of: Callable[[Sequence[int]], str] | None  # token ids to their text; raises InputError; None refuses
    pieces: Callable[[str, str], list[Piece]]  # text, prompt
    devices: tuple[Device, ...]
