"""A subject of an evaluation: a name, a fingerprint, and functions. Never a model class.

``encode(texts, prompt)`` embeds; a baseline without vectors has ``lexical(passages, queries, k)`` instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nvembed.text.bm25 import Bm25
from nvembed.vectors.embeddings import Embeddings, bare
from nvembed.vectors.metric import unit
from nvembed.vectors.search import Hits

EncodeFn = Callable[[Sequence[str], str], Embeddings]
LexicalFn = Callable[[Sequence[str], Sequence[str], int], Hits]


@dataclass(frozen=True)
class Subject:
    """One model or baseline under evaluation.

    Args:
        fingerprint: changes whenever the vectors may change; part of the cache key and of the results' path.
        content: digest of every byte that decides the vectors, if the fingerprint only samples them; part of
            the key of stored vectors. "" if the fingerprint covers everything.
        encode: texts and the prompt to prepend to each -> vectors and counts.
        lexical: passages, queries, k -> hits; for a baseline that ranks without vectors.
        instructions: whether the model takes the instruction of the task as a prompt.
        prompts: a model's own prompts by name, as in sentence-transformers; for a model without instructions.
        default_prompt: the one of ``prompts`` that sentence-transformers uses if no other fits.
        precision: of the computation, as in ``"float32"``; part of the cache key.
        size_bytes: of the weights in memory.
        dim: length of a vector; 0 if there are none.
        num_parameters: of the model; 0 if unknown.
        peak_bytes: returns the most device memory since the last call; None on a CPU, where the process is
            measured.
    """

    name: str
    fingerprint: str
    content: str = ""
    encode: EncodeFn | None = None
    lexical: LexicalFn | None = None
    instructions: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str = ""
    precision: str = "float32"
    max_tokens: int | None = None
    size_bytes: int = 0
    dim: int = 0
    num_parameters: int = 0
    device: str = "cpu"
    peak_bytes: Callable[[], int] | None = None


def plain(encode: Callable[[Sequence[str], str], np.ndarray]) -> EncodeFn:
    """Make an ``EncodeFn`` from a function that returns vectors only: 0 tokens, no text cut."""

    return lambda texts, prompt: bare(encode(texts, prompt))


def bm25() -> Subject:
    """The lexical baseline."""
    return Subject(
        name="bm25",
        fingerprint="lucene-english",
        lexical=lambda passages, queries, k: Bm25(passages).top_k(queries, k),
    )


def random_encoder(*, dim: int = 384, seed: int = 0) -> Subject:
    """The baseline of chance: a random vector for every distinct text."""

    def encode(texts: Sequence[str], prompt: str) -> np.ndarray:
        rows = [
            np.random.default_rng([seed, *(prompt + text).encode()]).standard_normal(dim) for text in texts
        ]
        return unit(np.array(rows, dtype=np.float32).reshape(-1, dim))

    return Subject(name="random", fingerprint=f"seed-{seed}-dim-{dim}", encode=plain(encode), dim=dim)
