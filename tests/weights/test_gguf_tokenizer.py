"""Tokenizers rebuilt from GGUF metadata give the ids of the tokenizers the metadata was written from."""

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import tiny_lm
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nvembed.errors import WeightsError
from nvembed.weights.gguf_tokenizer import tokenizer_files

SPECIALS = ["<unk>", "<s>", "</s>"]
TEXTS = [
    *tiny_lm.CORPUS[:4],
    "",
    " ",
    "   three leading spaces",
    "I'VE 1234567 digits, ½ and ٣",
    "trailing spaces   \n\n\n  ",
    "e\u0301 is not yet \u00e9",  # NFC joins them
    "<s>inside</s> a text",
    "\u0000\u200b\ufeff odd ones",
]
# As the model cards of SmolLM2, Llama 3, Qwen2 and GPT-2 have them in their own tokenizer.json
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE = {
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), BYTES],
    "qwen2": [pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), BYTES],
    "gpt-2": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
    "default": [pre_tokenizers.ByteLevel(add_prefix_space=False)],
}


def byte_level(pre: str) -> Tokenizer:
    made = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    made.normalizer = normalizers.NFC() if pre == "qwen2" else None
    made.pre_tokenizer = pre_tokenizers.Sequence(PRE[pre])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(tiny_lm.CORPUS, trainer)
    return made


def metadata(made: Tokenizer, pre: str) -> dict[str, object]:
    """What llama.cpp's converter writes about a byte-level BPE."""
    form = json.loads(made.to_str())["model"]
    vocab: Mapping[str, int] = form["vocab"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(vocab, key=vocab.__getitem__),
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * (len(vocab) - 3),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in form["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
    }


def rebuilt(values: Mapping[str, object]) -> Tokenizer:
    return Tokenizer.from_buffer(tokenizer_files(values)["tokenizer.json"])


@pytest.mark.parametrize("pre", PRE)
def test_byte_level_ids(pre: str) -> None:
    made = byte_level(pre)
    ours = rebuilt(metadata(made, pre))
    for text in TEXTS:
        assert ours.encode(text).ids == made.encode(text).ids, text
        assert ours.encode(text).offsets == made.encode(text).offsets, text
        assert ours.decode(ours.encode(text).ids) == made.decode(made.encode(text).ids)
    assert ours.get_vocab() == made.get_vocab()
    assert 1 in ours.encode("<s>").ids  # parsed as a special token unless asked not to
    ours.encode_special_tokens = True
    assert 1 not in ours.encode("<s>").ids


def test_variants_differ() -> None:
    """The texts above tell the variants apart, so that a mix-up would be seen."""
    values = metadata(byte_level("gpt-2"), "gpt-2")
    seen = {
        pre: tuple(tuple(rebuilt({**values, "tokenizer.ggml.pre": pre}).encode(t).tokens) for t in TEXTS)
        for pre in ("smollm", "llama-bpe", "qwen2", "gpt-2")
    }
    assert len(set(seen.values())) == 4


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_byte_level_ids_of_any_text(text: str) -> None:
    for pre, (made, ours) in PAIRS.items():
        assert ours.encode(text).ids == made.encode(text).ids, pre


PAIRS = {pre: (made := byte_level(pre), rebuilt(metadata(made, pre))) for pre in ("smollm", "qwen2")}


def sentencepiece_metadata() -> dict[str, object]:
    """A SentencePiece BPE: bytes first, then pieces whose score falls with their rank."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.train_from_iterator(
        tiny_lm.CORPUS[:2] * 3, trainers.BpeTrainer(vocab_size=150, max_token_length=6, show_progress=False)
    )
    pieces = made.get_vocab()
    joined = sorted((p for p in pieces if len(p) > 1), key=pieces.__getitem__)
    single = sorted(p for p in pieces if len(p) == 1)
    tokens = SPECIALS + [f"<0x{byte:02X}>" for byte in range(256)] + joined + single
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(i) for i in range(len(tokens) - 259)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def slow_sentencepiece(values: dict[str, object], text: str) -> list[int]:
    """The definition: while two neighbours join into a piece, join the best-scoring ones (leftmost first)."""
    tokens: list[str] = values["tokenizer.ggml.tokens"]  # type: ignore[assignment]
    scores: list[float] = values["tokenizer.ggml.scores"]  # type: ignore[assignment]
    ids = {token: index for index, token in enumerate(tokens)}
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joins = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not joins:
            break
        _, at = min(joins)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()]
    return found


SENTENCEPIECE = sentencepiece_metadata()
REBUILT_SENTENCEPIECE = rebuilt(SENTENCEPIECE)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="the judgrowpiléa 1.\n日", max_size=40))
def test_sentencepiece_ids(text: str) -> None:
    ours = REBUILT_SENTENCEPIECE.encode(text, add_special_tokens=False)
    assert ours.ids == slow_sentencepiece(SENTENCEPIECE, text)
    assert REBUILT_SENTENCEPIECE.decode(ours.ids) == text


def test_mistral_tokenizer_is_rebuilt_to_the_letter() -> None:
    """From the scores alone come the very merges of Mistral's own tokenizer.json, and all the rest of it."""
    folder = Path(__file__).parent.parent / "parity" / "tiny-a"
    published = json.loads((folder / "tokenizer.json").read_text())
    tokens = sorted(published["model"]["vocab"], key=published["model"]["vocab"].__getitem__)
    ranks = range(len(tokens) - 259)
    runs_of_spaces = [len(token) > 1 and set(token) == {"▁"} for token in tokens[259:]]
    files = tokenizer_files({
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        # SentencePiece scores a piece by its rank, and added runs of spaces below everything
        "tokenizer.ggml.scores": [0.0] * 259
        + [-1e9 if run else -float(rank) for rank, run in zip(ranks, runs_of_spaces, strict=True)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(ranks),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    })  # fmt: skip
    ours = json.loads(files["tokenizer.json"])
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in published["model"]["merges"]]
    assert ours["model"].pop("merges") == merges
    del published["model"]["merges"]
    assert ours == published


def test_sentencepiece_form() -> None:
    files = tokenizer_files(SENTENCEPIECE)
    form = json.loads(files["tokenizer.json"])
    assert form["model"]["byte_fallback"]
    assert form["model"]["unk_token"] == "<unk>"
    assert REBUILT_SENTENCEPIECE.encode("the").ids[0] == 1  # llama.cpp adds BOS unless told not to
    without = rebuilt({**SENTENCEPIECE, "tokenizer.ggml.add_space_prefix": False})
    assert without.decode(without.encode("the judge").ids) == "the judge"
    assert "▁" not in without.encode("the judge", add_special_tokens=False).tokens[0]


def test_bos_and_roles() -> None:
    values = metadata(byte_level("gpt-2"), "gpt-2")
    files = tokenizer_files({**values, "tokenizer.ggml.add_bos_token": True})
    made = byte_level("gpt-2")
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    ours = Tokenizer.from_buffer(files["tokenizer.json"])
    assert ours.encode("some text").ids == made.encode("some text").ids
    roles = json.loads(files["tokenizer_config.json"])
    assert (roles["bos_token"], roles["eos_token"], roles["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert roles["pad_token"] == "</s>"  # the file names none
    assert roles["add_bos_token"] is True
    padded = tokenizer_files({**values, "tokenizer.ggml.padding_token_id": 0})
    assert json.loads(padded["tokenizer_config.json"])["pad_token"] == "<unk>"


def test_user_defined_tokens_are_kept_whole_and_are_not_special() -> None:
    values = metadata(byte_level("gpt-2"), "gpt-2")
    tokens: list[str] = values["tokenizer.ggml.tokens"]  # type: ignore[assignment]
    types: list[int] = values["tokenizer.ggml.token_type"]  # type: ignore[assignment]
    ours = rebuilt({
        **values,
        "tokenizer.ggml.tokens": [*tokens, "[tool call]"],
        "tokenizer.ggml.token_type": [*types, 4],
    })  # fmt: skip
    encoding = ours.encode("x[tool call]y")
    assert encoding.ids[1:-1] == [len(tokens)]
    assert "[tool call]" in ours.decode(encoding.ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "bert"}, "model is 'bert'; only 'gpt2' .* and 'llama'"),
        ({"tokenizer.ggml.pre": "tekken"}, "pre is 'tekken'; supported are smollm, llama-bpe"),
        ({"tokenizer.ggml.pre": None}, "pre is None; supported are smollm"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["q zz"]}, "1 of 1 entries .* 'q zz'"),
        ({"tokenizer.ggml.token_type": [1]}, "must have one entry per token .* got 1"),
        ({"tokenizer.ggml.eos_token_id": None}, "has no tokenizer.ggml.eos_token_id"),
        ({"tokenizer.ggml.bos_token_id": 99999}, "bos_token_id is 99999; it must be one of"),
        ({"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True}, "no bos_token_id"),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]}, "a token twice"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        tokenizer_files({**metadata(byte_level("gpt-2"), "gpt-2"), **change})


def test_sentencepiece_without_scores() -> None:
    with pytest.raises(WeightsError, match=r"tokenizer.ggml.scores must have one entry per token"):
        tokenizer_files({**SENTENCEPIECE, "tokenizer.ggml.scores": None})
