"""Texts with vectors for ``cluster`` and ``classify``: an embedded folder, or embedded now and kept."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import numpy as np
from cyclopts import Parameter
from cyclopts.validators import Number

from nvembed.cli.models import Tally, counted, load, prompts
from nvembed.cli.options import Compute, Prompt, Reading
from nvembed.cli.screen import progress, say
from nvembed.embed.cache import Settings, cache_folder, cached_vectors
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError
from nvembed.learn.source import Source, from_embedded, from_vectors
from nvembed.read.beir import Passage
from nvembed.read.folder import read_corpus

if TYPE_CHECKING:
    from nvembed.encoder import Encoder


Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))]  # as scikit-learn takes it


def open_source(
    corpus: Path, model: str | None, prompt: Prompt, reading: Reading, compute: Compute
) -> Source:
    """Open a corpus with its vectors.

    Raises:
        InputError: texts without a model; a model, a prompt or reading options for an embedded corpus.
        DataError: the corpus is malformed.
    """
    if is_embedded(corpus):
        return open_embedded_source(corpus, model, prompt, reading)
    if model is None:
        raise InputError(f"{corpus} has no vectors: pass --model, or a folder that nvembed embed wrote")
    string, _ = prompts(**asdict(prompt))
    next(read_corpus(corpus, field=reading.field))  # a fault of the corpus is reported before the model loads
    encoder = load(model, device=compute.device, dtype=compute.dtype)
    return embedded_by(encoder, corpus, prompt=string, reading=reading)


def open_embedded_source(corpus: Path, model: str | None, *groups: Prompt | Reading) -> Source:
    """Open a folder that ``nvembed embed`` wrote, without options that change the vectors.

    Raises:
        InputError: one of these options is set.
        DataError: the folder is unfinished or damaged.
    """
    options = {"model": model} | {key: value for group in groups for key, value in asdict(group).items()}
    names = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if names:
        raise InputError(f"{corpus} is embedded already: remove {' and '.join(names)}")
    return from_embedded(corpus)


def embedded_by(
    encoder: "Encoder",
    corpus: Path,
    *,
    prompt: str,
    reading: Reading,
) -> Source:
    """Embed the texts of a corpus with a prompt, or use the vectors that are kept beside it."""
    limit = reading.max_length or encoder.max_length
    settings = Settings(encoder.fingerprint, prompt, limit, encoder.dtype)
    tally = Tally()
    start = perf_counter()

    def embed(texts: list[str]) -> np.ndarray:
        return np.concatenate(list(counted(encoder.stream(texts, prompt=prompt, max_length=limit), tally)))

    def read() -> Iterator[Passage]:
        return read_corpus(corpus, field=reading.field)

    with progress("embedding the texts") as update:
        vectors = cached_vectors(
            cache_folder(corpus, reading.cache), read, embed, settings, progress=update
        ).vectors
    if tally.texts:
        say(tally.message(perf_counter() - start))
    if tally.cut:
        message = f"{tally.cut:,} of {tally.texts:,} texts were cut to {limit:,} tokens"
        say(message, label="warning: ", style="bold yellow")
    return from_vectors(read, vectors, settings)
