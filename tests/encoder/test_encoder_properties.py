"""Order and company in a batch never change a vector; every vector is finite and of unit length."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import TINY_A
from nvembed.encoder import Encoder

pytestmark = pytest.mark.filterwarnings("ignore:.* texts. (cut|empty)")

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
any_prompt = st.sampled_from(["", "Instruct: Find it\nQuery: ", "no last space", "Instruct: É 指示\nQuery: "])


@functools.cache
def encoder() -> Encoder:
    return Encoder.from_pretrained(TINY_A, device="cpu", dtype="float32")


@settings(max_examples=40, deadline=None)
@given(st.lists(any_text, min_size=2, max_size=8), any_prompt, st.integers(1, 200), st.randoms())
def test_company_and_order_change_nothing(texts, prompt, batch_tokens, random) -> None:
    together = encoder().encode(texts, prompt=prompt, batch_tokens=batch_tokens)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)
    order = list(range(len(texts)))
    random.shuffle(order)
    shuffled = encoder().encode([texts[row] for row in order], prompt=prompt)
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)
    alone = encoder().encode([texts[order[0]]], prompt=prompt)
    np.testing.assert_allclose(alone[0], together[order[0]], atol=1e-5)
