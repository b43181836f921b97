"""Blocked search is the search of the whole, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed.errors import InputError, NumericsError
from nvembed.vectors import search
from nvembed.vectors.search import top_k


def slow_top_k(queries: np.ndarray, corpus: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    scores = queries @ corpus.T
    ids = np.array(
        [sorted(range(len(corpus)), key=lambda i: (-row[i], i))[:k] for row in scores], dtype=np.int64
    )
    return np.take_along_axis(scores, ids, axis=1), ids


def integers(seed: int, rows: int, dim: int) -> np.ndarray:
    """Small whole numbers: their products are exact in float32, and ties abound."""
    return np.random.default_rng(seed).integers(-2, 3, (rows, dim)).astype(np.float32)


def split(corpus: np.ndarray, cuts: list[int]) -> list[np.ndarray]:
    return np.split(corpus, sorted(min(c, len(corpus)) for c in cuts))


cuts_and_k = {
    "seed": st.integers(0, 2**32 - 1),
    "passages": st.integers(1, 60),
    "cuts": st.lists(st.integers(0, 60), max_size=5),
    "k": st.integers(1, 70),
}


@settings(deadline=None, max_examples=150)
@given(**cuts_and_k)
def test_blocks_give_top_k_of_the_whole(seed: int, passages: int, cuts: list[int], k: int) -> None:
    queries, corpus = integers(seed, 5, 3), integers(seed + 1, passages, 3)
    want_scores, want_ids = slow_top_k(queries, corpus, k)
    blocks = split(corpus, cuts)
    scores, ids = top_k(queries, blocks, k)
    np.testing.assert_array_equal(ids, want_ids)
    np.testing.assert_array_equal(scores, want_scores)
    assert (scores.dtype, ids.dtype) == (np.float32, np.int64)


@settings(deadline=None, max_examples=50)
@given(**cuts_and_k)
def test_real_vectors(seed: int, passages: int, cuts: list[int], k: int) -> None:
    rng = np.random.default_rng(seed)
    queries, corpus = (
        rng.normal(size=(4, 8)).astype(np.float32),
        rng.normal(size=(passages, 8)).astype(np.float32),
    )
    scores, ids = top_k(queries, split(corpus, cuts), k)
    want = slow_top_k(queries.astype(np.float64), corpus.astype(np.float64), k)
    np.testing.assert_array_equal(ids, want[1])
    np.testing.assert_allclose(scores, want[0], atol=1e-5)


def test_many_queries_are_taken_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "QUERIES_AT_ONCE", 3)
    queries, corpus = integers(1, 10, 4), integers(2, 30, 4)
    np.testing.assert_array_equal(top_k(queries, split(corpus, [7]), 5)[1], slow_top_k(queries, corpus, 5)[1])


def test_one_block_is_held_at_a_time() -> None:
    alive: list[int] = []

    def blocks() -> object:
        for start in range(0, 40, 10):
            block = integers(start, 10, 4)
            alive.append(start)
            yield block
            alive.remove(start)  # runs when the next block is asked for
            assert not alive

    assert top_k(integers(0, 2, 4), blocks(), 3)[1].shape == (2, 3)  # type: ignore[arg-type]


def test_minus_zero_ties_with_zero() -> None:
    corpus = np.array([[-0.0], [0.0]], dtype=np.float32)
    assert top_k(np.ones((1, 1), np.float32), [corpus], 2)[1].tolist() == [[0, 1]]


def test_empty_sides() -> None:
    assert top_k(np.ones((2, 3), np.float32), [], 5)[0].shape == (2, 0)
    assert top_k(np.ones((0, 3), np.float32), [np.ones((4, 3), np.float32)], 2)[1].shape[0] == 0


def test_refusals() -> None:
    queries = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="k is 0"):
        top_k(queries, [], 0)
    with pytest.raises(InputError, match=r"expected .queries, dimensions."):
        top_k(queries[0], [], 1)
    with pytest.raises(InputError, match=r"a block has shape \(4, 2\); expected \(passages, 3\)"):
        top_k(queries, [np.ones((4, 2), np.float32)], 1)
    with pytest.raises(NumericsError, match="not finite"):
        top_k(queries, [np.full((1, 3), np.nan, np.float32)], 1)
