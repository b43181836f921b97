import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from conftest import TINY_A
from nvembed.errors import ConfigError, InputError
from nvembed.text.tokenize import TextSettings, TextTokenizer

PROMPT = "Instruct: Given a question, retrieve passages that answer the question\nQuery: "
RELEASED = TextSettings("released", 512, eos_token="</s>", eos_id=2)
CLEAN = TextSettings("clean", 512, eos_token="</s>", eos_id=2, bos_id=1)


@pytest.fixture(scope="module")
def mistral() -> bytes:
    return (TINY_A / "tokenizer.json").read_bytes()


@pytest.fixture(scope="module")
def released(mistral: bytes) -> TextTokenizer:
    return TextTokenizer(mistral, RELEASED)


@pytest.fixture(scope="module")
def clean(mistral: bytes) -> TextTokenizer:
    return TextTokenizer(mistral, CLEAN)


def pieces(ids: np.ndarray) -> list[str]:
    tokenizer = Tokenizer.from_file(str(TINY_A / "tokenizer.json"))
    return [tokenizer.id_to_token(int(i)) for i in ids]


def pooled(tokenizer: TextTokenizer, text: str, prompt: str = PROMPT) -> list[str]:
    item = tokenizer([text], prompt=prompt)[0]
    return pieces(item.input_ids[item.pool_start :])


def test_model_card_query(released: TextTokenizer) -> None:
    """Facts 1.7: the ids of the model card's first query, 18 of them masked."""
    item = released(["are judo throws allowed in wrestling?"], prompt=PROMPT)[0]
    assert item.input_ids.tolist() == [
        *(1, 560, 1356, 28747, 12628, 264, 2996, 28725, 20132, 1455, 1291, 369, 4372, 272, 2996, 13, 3294),
        *(28747, 460, 4612, 28709, 4965, 4670, 297, 17619, 1905, 28804, 2),
    ]
    assert item.pool_start == 18


class TestQuirks:
    """Each odd thing of the released text path, beside what clean mode does (docs/explanation/quirks.md)."""

    def test_eos_is_lost_where_a_text_is_cut(self, released: TextTokenizer, clean: TextTokenizer) -> None:
        long = "word " * 100
        assert released([long], max_length=32)[0].input_ids[-1] != 2
        assert clean([long], max_length=32)[0].input_ids[-1] == 2
        assert len(clean([long], max_length=32)[0].input_ids) == 32

    def test_markers_in_a_text_are_parsed(self, released: TextTokenizer, clean: TextTokenizer) -> None:
        text = "before </s> after <s>"
        assert released([text])[0].input_ids.tolist().count(2) == 2
        assert released([text])[0].input_ids.tolist().count(1) == 2
        assert clean([text])[0].input_ids.tolist().count(2) == 1
        assert clean([text])[0].input_ids.tolist().count(1) == 1

    def test_a_lone_space_piece_is_pooled(self, released: TextTokenizer, clean: TextTokenizer) -> None:
        assert pooled(released, "are throws")[0] == "▁are"
        assert pooled(released, "42 throws")[:2] == ["▁", "4"]
        assert pooled(clean, "are throws")[0] == "▁are"
        assert pooled(clean, "42 throws")[0] == "4"

    @pytest.mark.parametrize("prompt", ["Instruct: Find it\nQuery:", "Instruct: Find it\n"])
    def test_a_prompt_without_a_last_space_leaks(
        self, released: TextTokenizer, clean: TextTokenizer, prompt: str
    ) -> None:
        leaked = {":": ":", "\n": "<0x0A>"}[prompt[-1]]
        assert pooled(released, "are throws", prompt)[0] == leaked
        assert pooled(clean, "are throws", prompt)[0] in ("are", "▁are")

    def test_bos_is_pooled_only_without_a_prompt(self, released: TextTokenizer, clean: TextTokenizer) -> None:
        for tokenizer in (released, clean):
            assert pooled(tokenizer, "are", "")[0] == "<s>"
            assert "<s>" not in pooled(tokenizer, "are")
            assert pooled(tokenizer, "are")[-1] == "</s>"

    def test_empty_text(self, released: TextTokenizer, clean: TextTokenizer) -> None:
        assert pooled(released, "") == ["▁", "</s>"]
        assert pooled(clean, "") == ["</s>"]
        assert pooled(clean, "", "") == ["<s>", "</s>"]

    def test_instruction_mask_can_be_off(self, mistral: bytes) -> None:
        for mode in ("released", "clean"):
            settings = TextSettings(mode, 512, "</s>", 2, 1, mask_instruction=False)  # type: ignore[arg-type]
            assert TextTokenizer(mistral, settings)(["are"], prompt=PROMPT)[0].pool_start == 0


@pytest.mark.parametrize("text", ["naïve café", "指示 text", "😀👩‍👩‍👧‍👦", "\x00\x07 bell", "é vs é"])
def test_clean_mask_follows_offsets_of_characters(clean: TextTokenizer, text: str) -> None:
    prompt = "Instruct: Überschrift für 指示 😀\nQuery: "
    got = pooled(clean, text, prompt)
    alone = pieces(clean([text])[0].input_ids[1:])
    assert "".join(got).lstrip("▁") == "".join(alone).lstrip("▁")


def test_clean_byte_level_model_without_bos() -> None:
    """A GPT-2 style tokenizer: no BOS, a space belongs to the word after it, user text stays text."""
    tokenizer = Tokenizer(models.BPE(vocab={}, merges=[]))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(alphabet)} | {"<|end|>": 256}
    document = json.loads(tokenizer.to_str())
    document["model"]["vocab"] = vocab
    document["added_tokens"] = [
        {"id": 256, "content": "<|end|>", "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    ]
    settings = TextSettings("clean", 64, "<|end|>", 256)
    clean = TextTokenizer(json.dumps(document).encode(), settings)
    item = clean(["<|end|>"], prompt="Query: ")[0]
    assert item.input_ids.tolist().count(256) == 1
    assert item.pool_start == len("Query: ")
    assert len(item.input_ids) == len("Query: <|end|>") + 1


def test_truncation_is_counted(released: TextTokenizer, clean: TextTokenizer) -> None:
    for tokenizer in (released, clean):
        short, long = tokenizer(["short", "word " * 600])
        assert not short.truncated
        assert long.truncated
        assert len(long.input_ids) == 512
        assert long.full_length > 600


class TestBadInput:
    def test_too_long_without_truncate(self, released: TextTokenizer) -> None:
        with pytest.raises(InputError) as error:
            released(["short", "word " * 100_000], truncate=False, first_row=7)
        assert str(error.value) == (
            "text 8 is 100,003 tokens; max_length is 512: shorten it, or pass truncate=True"
        )

    @pytest.mark.parametrize("mode", ["released", "clean"])
    def test_instruction_fills_max_length(self, mistral: bytes, mode: str) -> None:
        settings = RELEASED if mode == "released" else CLEAN
        tokenizer = TextTokenizer(mistral, settings)
        with pytest.raises(InputError, match=r"text 0 has nothing to pool: its prompt takes .* tokens and"):
            tokenizer(["are judo throws allowed"], prompt=PROMPT, max_length=12)

    @pytest.mark.parametrize("limit", [0, 1, 513])
    def test_max_length_out_of_range(self, released: TextTokenizer, limit: int) -> None:
        with pytest.raises(InputError, match=f"max_length is {limit}: expected 2 to 512"):
            released(["a"], max_length=limit)

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (None, r"text 1 is a NoneType \(None\): expected str"),
            (1.5, r"text 1 is a float \(1.5\): expected str"),
            (b"bytes", r"text 1 is a bytes \(b'bytes'\): expected str"),
            ("ab\ud800c", r"text 1 has a lone surrogate \(U\+D800\) at character 2"),
        ],
    )
    def test_not_a_text(self, released: TextTokenizer, bad: object, message: str) -> None:
        with pytest.raises(InputError, match=message):
            released(["good", bad])  # type: ignore[list-item]
        with pytest.raises(InputError, match=message.replace("text 1", "the prompt")):
            released(["good"], prompt=bad)  # type: ignore[arg-type]

    def test_a_prompt_that_is_not_unicode(self, released: TextTokenizer, clean: TextTokenizer) -> None:
        for tokenizer in (released, clean):
            with pytest.raises(
                InputError, match=r"the prompt has a lone surrogate \(U\+D800\) at character 4"
            ):
                tokenizer(["good"], prompt="bad \ud800")

    def test_one_string_is_not_a_list(self, released: TextTokenizer) -> None:
        with pytest.raises(InputError, match=r"texts is one string: .*; pass \[text\]"):
            released("hello")

    def test_broken_tokenizer_file(self) -> None:
        with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read: .*copy the file again"):
            TextTokenizer(b"{}", RELEASED)

    def test_one_word_of_a_megabyte(self, released: TextTokenizer) -> None:
        item = released(["x" * 1_000_000], max_length=512)[0]
        assert len(item.input_ids) == 512
        assert item.full_length > 60_000


@pytest.mark.parametrize("prompt", ["", PROMPT])
def test_a_cut_at_the_start_keeps_bos_prompt_and_eos(
    released: TextTokenizer, clean: TextTokenizer, prompt: str
) -> None:
    text = " ".join(f"word{number}" for number in range(60))
    for tokenizer in (released, clean):
        whole = tokenizer([text], prompt=prompt)[0]
        cut = tokenizer([text], prompt=prompt, max_length=40, cut="start")[0]
        head = whole.pool_start if prompt else 1
        assert len(cut.input_ids) == 40
        assert cut.truncated
        assert cut.full_length == len(whole.input_ids)
        assert cut.pool_start == whole.pool_start
        np.testing.assert_array_equal(cut.input_ids[:head], whole.input_ids[:head])
        np.testing.assert_array_equal(cut.input_ids[head:], whole.input_ids[head - 40 :])
        short = tokenizer(["word"], prompt=prompt, cut="start")[0]
        np.testing.assert_array_equal(short.input_ids, tokenizer(["word"], prompt=prompt)[0].input_ids)


@pytest.mark.parametrize("text", ["hello  12 wörld 🦊\n", " a space first", "x", "日本語", "a\tb\n\nc "])
def test_ids_back_to_their_text(released: TextTokenizer, clean: TextTokenizer, text: str) -> None:
    for tokenizer in (released, clean):
        ids = [int(i) for i in tokenizer([text])[0].input_ids]
        assert tokenizer.text_of(ids) == text
        assert tokenizer.text_of(ids[1:-1]) == text


def test_ids_of_another_tokenizer_are_refused(released: TextTokenizer, clean: TextTokenizer) -> None:
    for tokenizer in (released, clean):
        with pytest.raises(InputError, match=r"tokenizer has no text with these 2 token ids"):
            tokenizer.text_of([15339, 1917])  # "hello world" in cl100k_base
        for number in (100_000, -1, 2**40):
            with pytest.raises(
                InputError, match=rf"token id {number:,} is not in this model's vocabulary of 3"
            ):
                tokenizer.text_of([number])


def test_special_tokens_among_ids_are_not_dropped(released: TextTokenizer, clean: TextTokenizer) -> None:
    for tokenizer in (released, clean):
        body = [int(i) for i in tokenizer(["hello"])[0].input_ids[1:-1]]
        with pytest.raises(InputError, match=r"tokenizer has no text with these .* token ids"):
            tokenizer.text_of([0, *body])  # <unk>, which is no BOS
        for ids in ([1], [2], [1, 2]):
            with pytest.raises(InputError, match=r"these token ids are of an empty text"):
                tokenizer.text_of(ids)


def test_pieces_are_what_the_model_reads(released: TextTokenizer, clean: TextTokenizer) -> None:
    for tokenizer in (released, clean):
        tokens = tokenizer(["what is 1 ñ?"], prompt=PROMPT)[0]
        found = tokenizer.pieces("what is 1 ñ?", prompt=PROMPT)
        assert [piece.id for piece in found] == tokens.input_ids.tolist()
        assert [piece.pooled for piece in found].index(True) == tokens.pool_start
        assert (found[0].text, found[0].special, found[-1].text, found[-1].special) == (
            "<s>",
            True,
            "</s>",
            True,
        )
        joined = PROMPT + "what is 1 ñ?"
        assert "".join(joined[piece.start : piece.end] for piece in found) == joined
