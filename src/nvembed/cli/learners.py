"""Texts with vectors for ``cluster`` and ``classify``: an embedded corpus, or texts to embed and keep."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from nvembed.cli.embedding import check_corpus, embed_beside
from nvembed.cli.models import load, symmetric_prompt
from nvembed.cli.options import Compute, Prompt, Reading
from nvembed.embed.folder import is_embedded
from nvembed.errors import InputError
from nvembed.indexing.models import own_prompts
from nvembed.learn.source import EmbeddedSource, from_embedded

if TYPE_CHECKING:
    from nvembed.encoder import Encoder


Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=2**32))]  # as scikit-learn takes it


def open_source(
    corpus: Path,
    model: str | None,
    prompt: Prompt,
    reading: Reading,
    compute: Compute,
    *,
    whole: bool = True,
) -> EmbeddedSource:
    """Open a corpus with its vectors; ``whole`` as in ``embedded_by``."""
    if is_embedded(corpus):
        return open_embedded_source(corpus, model, prompt, reading)
    if model is None:
        raise InputError(f"{corpus} has no vectors: pass --model, or a folder that nvembed embed wrote")
    string = symmetric_prompt(prompt, own_prompts(model))
    check_corpus(corpus, reading)  # a fault of the corpus is reported before the model loads
    encoder = load(model, device=compute.device, dtype=compute.dtype)
    return embedded_by(encoder, corpus, model=model, prompt=string, reading=reading, whole=whole)


def open_embedded_source(corpus: Path, model: str | None, *groups: Prompt | Reading) -> EmbeddedSource:
    """Open a folder that ``nvembed embed`` wrote, without options that change the vectors."""
    options = {"model": model} | {key: value for group in groups for key, value in asdict(group).items()}
    names = [f"--{name.replace('_', '-')}" for name, value in options.items() if value not in (None, False)]
    if names:
        raise InputError(f"{corpus} is embedded already: remove {' and '.join(names)}")
    return from_embedded(corpus)


def embedded_by(
    encoder: "Encoder",
    corpus: Path,
    *,
    model: str,
    prompt: str,
    reading: Reading,
    whole: bool = True,
) -> EmbeddedSource:
    """Embed a corpus with a prompt, or use the vectors that are kept beside it.

    Args:
        whole: a passage for each document or record; otherwise long ones are cut as ``nvembed embed`` does.
    """
    embedded = embed_beside(encoder, corpus, model=model, prompt=prompt, reading=reading, whole=whole)
    return from_embedded(embedded.folder)
