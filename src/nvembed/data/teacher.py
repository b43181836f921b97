"""Teachers for mining: an encode function, with its vectors on disk, or BM25.

Shapes: Q queries, K candidates, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nvembed.data.rows import Numbered, is_intact, sealed_path
from nvembed.data.rule import Candidates, Teacher
from nvembed.errors import InputError, NumericsError
from nvembed.files import claim
from nvembed.text.bm25 import Bm25
from nvembed.vectors.search import top_k

Encode = Callable[[Sequence[str], str], np.ndarray]

BLOCK = 8192  # passages whose vectors are held at once: 128 MiB at 4,096 dimensions


class VectorBlocks:
    """The vectors of a corpus as files of ``block`` rows. A restart makes only those that are missing.

    Args:
        folder: holds ``block-00000.npy``, ...; made if it is missing.
        passages: the texts, read a block at a time.
        prompt: the whole string that is prepended to each text.
        fingerprint: names the encoder and its settings; a folder made with another one is refused.

    Raises:
        OutputError: the folder holds vectors of another encoder or corpus.
        NumericsError: a vector with NaN or infinity; the message names the passage.
    """

    def __init__(
        self,
        folder: Path,
        passages: Numbered[str],
        encode: Encode,
        *,
        prompt: str,
        fingerprint: str,
        block: int = BLOCK,
    ) -> None:
        self._folder, self._block, self._size = folder, block, len(passages)
        state = {"fingerprint": fingerprint, "passages": len(passages), "block": block, "prompt": prompt}
        claim(folder / "state.json", state)
        for number, start in enumerate(range(0, len(passages), block)):
            if not is_intact(path := self._path(number)):
                texts = [passages[i] for i in range(start, min(start + block, len(passages)))]
                vectors = checked(encode(texts, prompt), texts)
                with sealed_path(path) as temporary, temporary.open("wb") as handle:
                    np.save(handle, vectors)

    def __iter__(self) -> Iterator[np.ndarray]:
        for number in range(-(-self._size // self._block)):
            yield self._load(number)

    def rows(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the vectors (n, D) of some passages."""
        return np.stack([self._load(number // self._block)[number % self._block] for number in numbers])

    def _path(self, number: int) -> Path:
        return self._folder / f"block-{number:05d}.npy"

    def _load(self, number: int) -> np.ndarray:
        return np.asarray(np.load(self._path(number), mmap_mode="r"))


def dense_teacher(encode: Encode, prompt: str, blocks: VectorBlocks, *, depth: int) -> Teacher:
    """Return a teacher that scores by the dot product of ``encode``'s vectors."""

    def teach(queries: Sequence[str], known: Sequence[Sequence[int]]) -> Candidates:
        queries_QD = checked(encode(queries, prompt), queries)
        scores_QK, ids_QK = top_k(queries_QD, blocks, depth)
        lowest = [
            float((blocks.rows(ids) @ query).min()) for query, ids in zip(queries_QD, known, strict=True)
        ]
        return Candidates(scores_QK, ids_QK, np.array(lowest, dtype=np.float32))

    return teach


def bm25_teacher(bm25: Bm25, *, depth: int) -> Teacher:
    """Return a teacher that scores by BM25. Its scores have no upper bound: ``absolute`` means little here.

    Passages without a word of the query have score 0 and are not candidates. Their places repeat the first
    known positive, which no rule keeps.
    """

    def teach(queries: Sequence[str], known: Sequence[Sequence[int]]) -> Candidates:
        scores_QK, ids_QK = bm25.top_k(queries, depth)
        lowest = [float(scores.min()) for scores in bm25.scores(queries, known)]
        ids_QK = np.where(scores_QK > 0, ids_QK, np.array([ids[0] for ids in known])[:, None])
        return Candidates(scores_QK, ids_QK, np.array(lowest, dtype=np.float32))

    return teach


def checked(vectors: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Return the vectors (n, D) as float32, if there is a finite one for every text.

    Raises:
        InputError: another number of vectors, or no vectors at all.
        NumericsError: NaN or infinity; the message shows the first such text.
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise InputError(
            f"a teacher gave vectors of shape {vectors.shape}; expected ({len(texts)}, dimensions)"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise NumericsError(
            f"a teacher's vector is not finite, for {len(bad):,} of {len(texts):,} texts, "
            f"first {texts[bad[0]][:80]!r}: try float32, or another teacher"
        )
    return vectors
