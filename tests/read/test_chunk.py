"""Cutting documents: nothing is lost, nothing is too long, whatever the text and the tokenizer."""

import re

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvembed.encoder import Encoder
from nvembed.read import chunk
from nvembed.read.chunk import cut_texts


def by_pattern(pattern: str) -> chunk.Offsets:
    def offsets(texts: list[str]) -> list[np.ndarray]:  # type: ignore[type-arg]
        spans = [[m.span() for m in re.finditer(pattern, text, re.DOTALL)] for text in texts]
        return [np.array(item, dtype=np.int64).reshape(-1, 2) for item in spans]

    return offsets  # type: ignore[return-value]


def bytewise(texts: list[str]) -> list[np.ndarray]:
    """A token per UTF-8 byte: a character of several bytes is several tokens with the same offsets."""
    return [
        np.array([(i, i + 1) for i, c in enumerate(text) for _ in c.encode()], dtype=np.int64).reshape(-1, 2)
        for text in texts
    ]


TOKENIZERS = {
    "words": by_pattern(r"\S+"),
    "words with the space before them": by_pattern(r"\s*\S+"),
    "pairs of characters": by_pattern(".{1,2}"),
    "bytes": bytewise,
}
LETTERS = "abc  \n.!。?#é🦊"


@given(
    st.text(LETTERS, max_size=300),
    st.integers(1, 20),
    st.integers(0, 19),
    st.sampled_from(list(TOKENIZERS)),
    st.sampled_from([7, 50, 1000]),
)
@example("\n\n?????。?", 10, 8, "bytes", 7)
@example("???? ????", 2, 1, "pairs of characters", 7)
@example("? 。。", 5, 1, "bytes", 7)
@example("? 。。", 5, 3, "bytes", 7)
def test_nothing_is_lost(text: str, max_tokens: int, overlap: int, name: str, window: int) -> None:
    overlap = min(overlap, max_tokens - 1)
    offsets = TOKENIZERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk, "WINDOW_CHARACTERS", window)
        (cuts,) = cut_texts([text], offsets, max_tokens=max_tokens, overlap=overlap)
    if not text.strip():
        assert cuts == [(0, 0)]
        return
    reached = 0
    for start, end in cuts:
        assert text[start:end] == text[start:end].strip() != ""
        assert end > reached, "every passage brings something new"
        assert not text[reached:start].strip(), "only white space stands between passages"
        (spans,) = offsets([text[start:end]])
        assert len(spans) <= max(max_tokens, 4), "one character may be more tokens than fit"
        reached = end
    assert not text[reached:].strip()
    assert [s for s, _ in cuts] == sorted({s for s, _ in cuts})


def test_sentences_and_overlap() -> None:
    text = "One two three. Four five! Six (seven.) Eight nine ten eleven. Twelve."
    (cuts,) = cut_texts([text], TOKENIZERS["words"], max_tokens=6, overlap=3)
    assert [text[a:b] for a, b in cuts] == [
        "One two three. Four five!",
        "Four five! Six (seven.)",
        "Six (seven.) Eight nine ten eleven.",
        "Twelve.",
    ]
    (cuts,) = cut_texts([text], TOKENIZERS["words"], max_tokens=100, overlap=3)
    assert cuts == [(0, len(text))]


def test_a_long_sentence_is_cut_between_words_and_a_long_word_between_tokens() -> None:
    (cuts,) = cut_texts(["a bb ccc dddd eeeee ffffff"], TOKENIZERS["words"], max_tokens=3, overlap=1)
    assert cuts == [(0, 8), (5, 19), (14, 26)]
    (cuts,) = cut_texts(["x" * 10], TOKENIZERS["pairs of characters"], max_tokens=2, overlap=0)
    assert cuts == [(0, 4), (4, 8), (8, 10)]


def test_paragraphs_headings_and_chinese() -> None:
    text = "# A\nfirst line\n\nsecond one\n## B\nthird here"
    (cuts,) = cut_texts([text], TOKENIZERS["words"], max_tokens=6, overlap=0)
    assert [text[a:b] for a, b in cuts] == ["# A\nfirst line\n\nsecond one", "## B\nthird here"]
    (cuts,) = cut_texts(["你好吗。我很好。谢谢你。"], by_pattern("."), max_tokens=9, overlap=4)
    assert cuts == [(0, 8), (4, 12)]


def test_a_real_tokenizer(tiny_encoder: Encoder) -> None:
    text = "\n\n".join(
        f"Paragraph {i} says “hello” to naïve 🦊 readers. It ends here." * 3 for i in range(40)
    )
    (cuts,) = cut_texts([text], tiny_encoder.tokenizer.offsets, max_tokens=64, overlap=16)
    pieces = [text[a:b] for a, b in cuts]
    read = [len(t.input_ids) for t in tiny_encoder.tokenizer(pieces, max_length=200)]
    assert max(read) <= 64 + 3  # BOS, EOS, and the space that is put before a text
    assert all(a.startswith(("Paragraph", "It ends")) for a in pieces)
