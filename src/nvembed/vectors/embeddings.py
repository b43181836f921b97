"""Vectors, and for each text its token count and whether it was cut."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Embeddings:
    """The vectors of some texts, in the order of the texts.  B texts, D numbers."""

    vectors: np.ndarray  # (B, D) float32
    num_tokens: np.ndarray  # (B,) int64, tokens after any cut, including prompt, BOS and EOS
    truncated: np.ndarray  # (B,) bool, whether the text was cut
    empty: np.ndarray  # (B,) bool, whether the text is only white space: its vector is meaningless

    def __len__(self) -> int:
        return len(self.vectors)

    def rows(self, index: np.ndarray | slice) -> "Embeddings":
        """Return some rows, as numpy indexes them."""
        return Embeddings(
            self.vectors[index], self.num_tokens[index], self.truncated[index], self.empty[index]
        )


def bare(vectors: np.ndarray) -> Embeddings:
    """Return vectors (B, D) without token counts: 0 tokens, none cut, none empty."""
    count = len(vectors)
    no = np.zeros(count, dtype=bool)
    return Embeddings(np.asarray(vectors, dtype=np.float32), np.zeros(count, dtype=np.int64), no, no)


def join(parts: Sequence[Embeddings], dim: int = 0) -> Embeddings:
    """Return the rows of all parts in order; without parts, (0, ``dim``)."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return bare(np.empty((0, dim), dtype=np.float32))
    return Embeddings(
        np.concatenate([part.vectors for part in parts]),
        np.concatenate([part.num_tokens for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        np.concatenate([part.empty for part in parts]),
    )


def shortened(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """Return the first ``dim`` numbers of each vector, normalised again; None keeps all."""
    if dim is None:
        return vectors
    vectors = vectors[:, :dim]
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
