"""Texts with vectors, for commands that learn from them: what ``embed`` wrote, or embedded and cached."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from nvembed.cli.models import Tally, counted, load, prompts
from nvembed.cli.options import Dtype
from nvembed.cli.screen import progress, say
from nvembed.embed.cache import Settings, cache_folder, cached_vectors
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError
from nvembed.learn.source import Source, from_embedded, from_vectors
from nvembed.read.beir import Passage
from nvembed.read.folder import read_corpus

if TYPE_CHECKING:
    from nvembed.encoder import Encoder


def open_source(
    corpus: Path,
    *,
    model: str | None,
    task: str | None = None,
    instruction: str | None = None,
    field: str | None = None,
    cache: Path | None = None,
    max_length: int | None = None,
    device: str | None = None,
    dtype: Dtype | None = None,
) -> Source:
    """Open a corpus with its vectors.

    Raises:
        InputError: texts without a model; a model or a prompt for a corpus that is embedded already.
        DataError: the corpus is malformed.
    """
    if is_embedded(corpus):
        given = {"--model": model, "--task": task, "--instruction": instruction, "--field": field}
        return open_embedded_source(corpus, {**given, "--cache": cache, "--max-length": max_length})
    if model is None:
        raise InputError(
            f"{corpus} holds texts without vectors: give --model, or a folder that nvembed embed wrote"
        )
    prompt, _ = prompts(task=task, instruction=instruction)
    next(read_corpus(corpus, field=field))  # what is wrong with it is said before a model is loaded
    encoder = load(model, device=device, dtype=dtype)
    return embedded_by(encoder, corpus, prompt=prompt, field=field, cache=cache, max_length=max_length)


def open_embedded_source(corpus: Path, given: Mapping[str, object]) -> Source:
    """Open what ``nvembed embed`` wrote; ``given``: options that decide vectors, which it has already.

    Raises:
        InputError: one of them is not None.
        DataError: the folder is unfinished or damaged.
    """
    if names := [name for name, value in given.items() if value is not None]:
        raise InputError(f"{corpus} is embedded already: expected no {' and no '.join(names)}")
    return from_embedded(corpus)


def check_seed(seed: int) -> None:
    """Refuse a seed that scikit-learn does not take."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed is {seed}; expected 0 to {2**32 - 1:,}")


def embedded_by(
    encoder: "Encoder",
    corpus: Path,
    *,
    prompt: str,
    field: str | None,
    cache: Path | None = None,
    max_length: int | None = None,
) -> Source:
    """Embed the texts of a corpus behind ``prompt``, or take the vectors that are kept beside it."""
    limit = max_length or encoder.max_length
    settings = Settings(encoder.fingerprint, prompt, limit, encoder.dtype)
    tally = Tally()
    start = perf_counter()

    def embed(texts: list[str]) -> np.ndarray:
        return np.concatenate(list(counted(encoder.stream(texts, prompt=prompt, max_length=limit), tally)))

    def read() -> Iterator[Passage]:
        return read_corpus(corpus, field=field)

    with progress("embedding the texts") as update:
        vectors = cached_vectors(cache_folder(corpus, cache), read, embed, settings, progress=update).vectors
    if tally.texts:
        say(tally.message(perf_counter() - start))
    if tally.cut:
        message = f"{tally.cut:,} of {tally.texts:,} texts were cut to {limit:,} tokens"
        say(message, label="warning: ", style="bold yellow")
    return from_vectors(read, vectors, settings)
