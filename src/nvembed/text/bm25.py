"""BM25: the lexical baseline, and one source of mined negatives.  C passages, Q queries."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nvembed.errors import InputError

# Term saturation and length normalisation: the defaults of Lucene, also in the Elasticsearch run of BEIR.
K1 = 1.2
B = 0.75


class Bm25:
    """Lucene's BM25 over passages in memory, with English stop words and Snowball stemming.

    ``score(q, p) = sum over terms t of q: idf(t) * tf / (tf + k1 * (1 - b + b * len(p) / mean_len))``,
    ``idf(t) = log(1 + (C - df + 0.5) / (df + 0.5))``; a term that occurs twice in the query counts twice.

    Args:
        passages: the C texts; an id is the position in this list.

    Raises:
        InputError: there are no passages.
    """

    def __init__(self, passages: Sequence[str]) -> None:
        if isinstance(passages, str) or len(passages) == 0:
            raise InputError("BM25 needs a list of at least one passage")
        bm25s, stemmer = _libraries()
        self._tokenize = bm25s.tokenize
        self._stemmer = stemmer
        self._size = len(passages)
        self._index: Any = None
        tokens = self._words(passages)
        if any(tokens):  # bm25s cannot index an empty vocabulary; without an index nothing matches
            self._index = bm25s.BM25(k1=K1, b=B, method="lucene")
            self._index.index(tokens, show_progress=False)

    def top_k(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best ``min(k, C)`` passages of each query, best first; equal scores by lower id.

        Passages without a word of the query score 0 and fill the last places.

        Returns:
            (scores (Q, k) float32, ids (Q, k) int64).

        Raises:
            InputError: ``k`` is below 1, or ``queries`` is one string.
        """
        if k < 1:
            raise InputError(f"k is {k}; expected at least 1")
        if isinstance(queries, str):
            raise InputError("queries is one string; expected a list of strings")
        k = min(k, self._size)
        scores = np.zeros((len(queries), k), dtype=np.float32)
        ids = np.tile(np.arange(k, dtype=np.int64), (len(queries), 1))
        if self._index is None:
            return scores, ids
        for row, words in enumerate(self._words(queries)):
            known = [word for word in words if word in self._index.vocab_dict]
            if known:
                scores[row], ids[row] = _best(self._index.get_scores(known), k)
        return scores, ids

    def scores(self, queries: Sequence[str], ids: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return each query's score (float32) of the passages in its row of ``ids``."""
        scores = []
        for words, row in zip(self._words(queries), ids, strict=True):
            known = [word for word in words if self._index is not None and word in self._index.vocab_dict]
            numbers = np.asarray(row, dtype=np.int64)
            scores.append(self._index.get_scores(known)[numbers] if known else np.zeros(len(row), np.float32))
        return scores

    def _words(self, texts: Sequence[str]) -> list[list[str]]:
        words: list[list[str]] = self._tokenize(
            list(texts), stopwords="en", stemmer=self._stemmer, return_ids=False, show_progress=False
        )
        return words


def _best(scores_C: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort only the candidates for the first k: all scores at or above the k-th largest."""
    threshold = np.partition(scores_C, -k)[-k]
    candidates = np.flatnonzero(scores_C >= threshold)
    order = np.lexsort((candidates, -scores_C[candidates]))[:k]
    ids = candidates[order]
    return scores_C[ids], ids


def _libraries() -> tuple[Any, Any]:
    import bm25s  # slow to import, and not needed by most commands
    import Stemmer

    return bm25s, Stemmer.Stemmer("english")
