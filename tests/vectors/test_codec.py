"""Codes against the plain form, and rescoring against exact search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import unit_rows
from nvembed.errors import InputError, NumericsError
from nvembed.vectors import codec
from nvembed.vectors.search import top_k

sizes = {"seed": st.integers(0, 2**32 - 1), "rows": st.integers(1, 40), "dim": st.integers(1, 150)}


@settings(deadline=None, max_examples=80)
@given(**sizes)
def test_int8_is_the_nearest_step(seed: int, rows: int, dim: int) -> None:
    x = unit_rows(rows, dim, seed)
    code = codec.to_int8(x)
    assert code.codes.dtype == np.int8
    assert np.abs(code.codes).max(axis=1).tolist() == [127] * rows  # the whole range is used
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    assert (np.abs(codec.from_int8(code) - x) <= step * 0.5001).all()


@settings(deadline=None, max_examples=80)
@given(**sizes, queries=st.integers(1, 4))
def test_scores_are_those_of_the_decoded_vectors(seed: int, rows: int, dim: int, queries: int) -> None:
    x, q = unit_rows(rows, dim, seed), unit_rows(queries, dim, seed + 1)
    code = codec.to_int8(x)
    np.testing.assert_allclose(codec.int8_scores(q, code), q @ codec.from_int8(code).T, atol=1e-5)

    bits = codec.to_binary(x)
    assert bits.shape == (rows, -(-dim // 64))
    signs = np.where(x > 0, 1, -1).astype(np.int64)
    np.testing.assert_array_equal(codec.binary_scores(q, bits), np.where(q > 0, 1, -1) @ signs.T)


@settings(deadline=None, max_examples=80)
@given(**sizes, k=st.integers(1, 50))
def test_rescored_candidates_are_exact(seed: int, rows: int, dim: int, k: int) -> None:
    """With every row a candidate rescoring is exact search; with fewer, it is exact search among them."""
    x, q = unit_rows(rows, dim, seed), unit_rows(1, dim, seed + 1)
    scores = codec.binary_scores(q, codec.to_binary(x))[0]
    chosen = codec.candidates(scores, k)
    assert sorted(scores[chosen], reverse=True) == sorted(scores, reverse=True)[:k]
    found, ids = codec.rescore(q[0], x[chosen], chosen, 3)
    keep = np.full((rows, dim), 0, np.float32)
    keep[chosen] = x[chosen]
    want = sorted(chosen, key=lambda i: (-np.float32(keep[i] @ q[0]), i))[:3]
    np.testing.assert_allclose(found[0], keep[want] @ q[0], atol=1e-6)
    if k >= rows:
        np.testing.assert_array_equal(ids, top_k(q, [x], 3)[1])


def test_blocks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    x, q = unit_rows(50, 70, 3), unit_rows(2, 70, 4)
    whole = codec.int8_scores(q, codec.to_int8(x)), codec.binary_scores(q, codec.to_binary(x))
    monkeypatch.setattr(codec, "INT8_ROWS", 7)
    monkeypatch.setattr(codec, "BINARY_ROWS", 7)
    np.testing.assert_allclose(codec.int8_scores(q, codec.to_int8(x)), whole[0], atol=1e-6)
    np.testing.assert_array_equal(codec.binary_scores(q, codec.to_binary(x)), whole[1])


def test_few_candidates_find_the_nearest() -> None:
    """On clustered vectors 40 candidates of 2,000 binary codes hold the nearest ten."""
    rng = np.random.default_rng(5)
    centres = unit_rows(20, 256, 6)
    x = centres[rng.integers(0, 20, 2000)] + rng.standard_normal((2000, 16)).astype(np.float32) @ (
        0.3 * unit_rows(16, 256, 7)
    )
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    half = x.astype(np.float16)
    bits, hit = codec.to_binary(half), 0
    for q in x[:50]:
        chosen = codec.candidates(codec.binary_scores(q[None], bits)[0], 100)
        found = codec.rescore(q, half[chosen], chosen, 10)[1][0]
        hit += len(set(found) & set(top_k(q[None], [half], 10)[1][0]))
    assert hit >= 490


def test_zero_rows_and_refusals() -> None:
    zero = codec.to_int8(np.zeros((2, 3), np.float32))
    assert not codec.from_int8(zero).any()
    assert codec.to_binary(np.zeros((1, 3))).tolist() == [[0]]
    with pytest.raises(NumericsError, match="NaN or infinity"):
        codec.to_binary(np.array([[np.nan]]))
    with pytest.raises(InputError, match=r"expected \(rows, dimensions\)"):
        codec.to_int8(np.ones(3))
    with pytest.raises(InputError, match="queries have 4 dimensions, the codes 3"):
        codec.int8_scores(np.ones((1, 4)), codec.to_int8(np.ones((2, 3))))
    with pytest.raises(InputError, match="count is 0"):
        codec.candidates(np.ones(3), 0)
