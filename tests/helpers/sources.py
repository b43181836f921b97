"""A corpus whose vectors are in memory, as learners read it."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import numpy as np

from nvembed.learn.source import BLOCK, EmbeddedSource, PassageBlock, checked_unit
from nvembed.read.beir import Passage
from nvembed.vectors.store import VectorSettings


def from_vectors(
    read: Callable[[], Iterable[Passage]], vectors_CD: np.ndarray, settings: VectorSettings
) -> EmbeddedSource:
    def blocks() -> Iterator[PassageBlock]:
        passages = iter(read())
        first = 0
        while block := list(islice(passages, BLOCK)):
            vectors = np.asarray(vectors_CD[first : first + len(block)], dtype=np.float32)
            yield PassageBlock(block, checked_unit(vectors, first), ["{}"] * len(block))
            first += len(block)

    return EmbeddedSource(len(vectors_CD), vectors_CD.shape[1], settings, blocks)
