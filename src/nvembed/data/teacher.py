"""Teachers for mining: an encode function, with its vectors on disk, or BM25.

Shapes: Q queries, K candidates, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nvembed.data.rows import Numbered
from nvembed.data.rule import Candidates, Teacher
from nvembed.text.bm25 import Bm25
from nvembed.vectors.embeddings import bare
from nvembed.vectors.search import top_k
from nvembed.vectors.store import VectorSettings, VectorStore, check_vectors

Encode = Callable[[Sequence[str], str], np.ndarray]

BLOCK = 8192  # passages whose vectors are held at once: 128 MiB at 4,096 dimensions


class VectorBlocks:
    """The vectors of a corpus, a block of ``block`` rows at a time, through the store of vectors on disk.

    A resumed run embeds only the missing blocks.

    Args:
        root: the store's folder.
        passages: the texts, read a block at a time.
        settings: the encoder's fingerprint, its settings and the passages' prompt.

    Raises:
        NumericsError: a vector with NaN or infinity; the message shows its passage.
    """

    def __init__(
        self,
        root: Path,
        passages: Numbered[str],
        encode: Encode,
        settings: VectorSettings,
        *,
        block: int = BLOCK,
    ) -> None:
        self._block, self._size = block, len(passages)
        self._store = VectorStore(root, settings, block_texts=block)
        self._keys = self._store.fill(
            (passages[i] for i in range(len(passages))), lambda texts: bare(encode(texts, settings.prompt))
        )

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, self._size, self._block):
            yield self._store.read(self._keys[start : start + self._block]).vectors

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the vectors (n, D) of some passages."""
        return self._store.read(self._keys[np.asarray(numbers, dtype=np.int64)]).vectors


def dense_teacher(encode: Encode, prompt: str, blocks: VectorBlocks, *, depth: int) -> Teacher:
    """Return a teacher that scores by the dot product of ``encode``'s vectors."""

    def teach(queries: Sequence[str], known: Sequence[Sequence[int]]) -> Candidates:
        queries_QD = np.asarray(encode(queries, prompt), dtype=np.float32)
        check_vectors(queries_QD, queries)
        scores_QK, ids_QK = top_k(queries_QD, blocks, depth)
        lowest = [
            float((blocks.rows(ids) @ query).min()) for query, ids in zip(queries_QD, known, strict=True)
        ]
        return Candidates(scores_QK, ids_QK, np.array(lowest, dtype=np.float32))

    return teach


def bm25_teacher(bm25: Bm25, *, depth: int) -> Teacher:
    """Return a teacher that scores by BM25. Its scores have no upper bound, so ``absolute`` is of little use.

    Passages without a word of the query have score 0 and are not candidates. Their places repeat the first
    known positive, which no rule keeps.
    """

    def teach(queries: Sequence[str], known: Sequence[Sequence[int]]) -> Candidates:
        scores_QK, ids_QK = bm25.top_k(queries, depth)
        lowest = [float(scores.min()) for scores in bm25.scores(queries, known)]
        ids_QK = np.where(scores_QK > 0, ids_QK, np.array([ids[0] for ids in known])[:, None])
        return Candidates(scores_QK, ids_QK, np.array(lowest, dtype=np.float32))

    return teach
