"""A corpus with its vectors, as learners read it: block by block, any number of times."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nvembed.errors import DataError
from nvembed.read.beir import Passage
from nvembed.vectors.metric import unit
from nvembed.vectors.store import VectorSettings

BLOCK = 1024  # passages in memory at a time


@dataclass(frozen=True)
class PassageBlock:
    """Successive passages, their vectors, and the JSON metadata of each."""

    passages: Sequence[Passage]
    vectors: np.ndarray  # float32 (n, D), unit rows
    metadata: Sequence[str]


@dataclass(frozen=True)
class EmbeddedSource:
    """A corpus of ``rows`` passages with vectors of ``dim`` numbers.

    ``blocks()`` starts reading from the beginning, each time in the same order; ``settings`` are what made
    the vectors.
    """

    rows: int
    dim: int
    settings: VectorSettings
    blocks: Callable[[], Iterator[PassageBlock]]


@dataclass(frozen=True)
class Sample:
    """Rows of a source drawn without replacement; ``positions`` rise."""

    positions: np.ndarray  # int64 (n,)
    vectors: np.ndarray  # float32 (n, D), unit rows
    passages: list[Passage]


def from_embedded(folder: str | Path) -> EmbeddedSource:
    """Return the source of a folder that ``nvembed embed`` wrote (docs/reference/embedded-corpus.md).

    Raises:
        DataError: the folder is unfinished, of another format, or a shard is damaged.
    """
    from nvembed.embed.embedded import open_embedded, vectors_of

    corpus = open_embedded(folder)
    made_by = corpus.manifest["settings"]
    names = ("fingerprint", "prompt", "max_length", "dtype")
    settings = VectorSettings(**{name: made_by[name] for name in names})

    def blocks() -> Iterator[PassageBlock]:
        first = 0
        for batch in corpus.batches(["id", "text", "metadata", "vector"], rows=BLOCK):
            ids, texts, metadata = (batch.column(name).to_pylist() for name in ("id", "text", "metadata"))
            passages = [Passage(*pair) for pair in zip(ids, texts, strict=True)]
            yield PassageBlock(passages, checked_unit(vectors_of(batch), first), metadata)
            first += len(passages)

    return EmbeddedSource(corpus.rows, corpus.dim, settings, blocks)


def sample(source: EmbeddedSource, limit: int, *, seed: int) -> Sample:
    """Draw ``limit`` rows at random, or all if there are fewer, in one pass over the corpus.

    Raises:
        DataError: the corpus has another number of passages than vectors.
    """
    count = min(limit, source.rows)
    positions = np.sort(np.random.default_rng(seed).choice(source.rows, count, replace=False))
    vectors = np.empty((count, source.dim), dtype=np.float32)
    passages: list[Passage] = []
    first = done = 0
    for block in source.blocks():
        end = first + len(block.passages)
        here = positions[done : np.searchsorted(positions, end)] - first
        vectors[done : done + len(here)] = block.vectors[here]
        passages += [block.passages[row] for row in here]
        done, first = done + len(here), end
    if first != source.rows:
        raise DataError(
            f"the corpus has {first:,} passages; expected {source.rows:,}: it has changed, run again"
        )
    return Sample(positions.astype(np.int64), vectors, passages)


def checked_unit(vectors_ND: np.ndarray, first: int) -> np.ndarray:
    """Return float32 unit rows; vectors stored in half precision are a little off length 1."""
    vectors = np.asarray(vectors_ND, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise DataError(
            f"the vector of row {first + bad[0]:,} is not finite ({bad.size} of {len(vectors)} in a block): "
            "embed again with --dtype float32 or bfloat16, and check the model with nvembed check"
        )
    return unit(vectors)
