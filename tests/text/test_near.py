"""Equal and near texts: the normal form, the sets of shingles, and the index against all pairs."""

from itertools import pairwise

import numpy as np
import pytest
from eval_folders import sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from nvembed.text.near import NearIndex, bands, jaccard, normalise, shingles

SENTENCE = "the quick brown fox jumps over the lazy dog while the cat looks on from the old garden wall"


def slow_jaccard(a: str, b: str) -> float:
    """Shingles as substrings."""
    x, y = ({text.ljust(5)[i : i + 5] for i in range(max(len(text) - 4, 1))} for text in (a, b))
    return len(x & y) / len(x | y)


def test_normalise() -> None:
    assert normalise("  The CAT's\tmat_9 — ﬁne!") == "the cat s mat 9 fine"
    assert normalise(" The U.S.A.,\n'Éa'  50% ") == "the u s a éa 50"
    assert normalise("Cafe\N{COMBINING ACUTE ACCENT}") == normalise("CAFÉ") == "café"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_the_normal_form_is_its_own(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert all(character.isalnum() or character == " " for character in once)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_jaccard_against_substrings(a: str, b: str) -> None:
    assert jaccard(shingles(a), shingles(b)) == pytest.approx(slow_jaccard(a, b), abs=1e-12)


def test_jaccard_is_that_of_the_strings() -> None:
    rng = np.random.default_rng(0)
    texts = [sentence(rng, i % 3) for i in range(30)]
    for a, b in pairwise(texts):
        assert jaccard(shingles(a), shingles(b)) == pytest.approx(slow_jaccard(a, b), abs=1e-12)
    assert jaccard(shingles("ab"), shingles("ab")) == 1.0
    assert jaccard(shingles("ab"), shingles("ac")) == 0.0


def test_bands_meet_as_often_as_promised() -> None:
    """Sets of similarity s agree in one hash with probability s: estimate it over many pairs."""
    rng = np.random.default_rng(1)
    agreed, expected = [], []
    for _ in range(200):
        shared = rng.integers(0, 2**63, 60, dtype=np.uint64)
        a, b = (
            np.unique(np.concatenate([shared, rng.integers(0, 2**63, 20, dtype=np.uint64)])) for _ in "ab"
        )
        agreed.append(bool(set(bands(a)) & set(bands(b))))
        expected.append(1 - (1 - jaccard(a, b) ** 4) ** 16)
    assert np.mean(agreed) == pytest.approx(np.mean(expected), abs=0.08)


def changed_sentences() -> list[str]:
    """Sentences at every distance."""
    rng = np.random.default_rng(0)
    words = SENTENCE.split()
    texts = [SENTENCE]
    for changes in list(range(1, 9)) * 12:
        copy = list(words)
        for place in rng.choice(len(copy), changes, replace=False):
            copy[place] = f"w{rng.integers(1000)}"
        texts.append(" ".join(copy))
    return texts


def test_near_duplicates_against_all_pairs() -> None:
    """What the bands find is what comparing all pairs finds."""
    texts = changed_sentences()
    index = NearIndex(texts)
    near_pairs = missed = 0
    for number, text in enumerate(texts):
        equal, similar = index.matches(text)
        near = set(similar)
        assert number in equal
        assert equal == {i for i, other in enumerate(texts) if other == text}
        expected = {i for i, other in enumerate(texts) if other != text and slow_jaccard(text, other) >= 0.8}
        assert near <= expected
        assert all(value == pytest.approx(slow_jaccard(text, texts[i])) for i, value in similar.items())
        near_pairs += len(expected)
        missed += len(expected - near)
    assert near_pairs > 20
    assert missed <= 0.02 * near_pairs


def test_short_texts_match_only_exactly() -> None:
    long = "a" * 5 + " one text of sixty letters or more to be found again and so on"
    short = long[-59:]
    index = NearIndex([short, long, short])
    assert index.matches(short) == ({0, 2}, {})
    assert index.matches(long) == ({1}, {})  # the short ones are nearer than 0.8, and not asked
    assert slow_jaccard(short, long) >= 0.8


def test_a_text_without_a_word_matches_nothing() -> None:
    assert NearIndex(["", "a"]).matches("") == (set(), {})
