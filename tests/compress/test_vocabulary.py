"""Trimmed vocabularies: kept tokens keep their texts' tokenisation, and every text can still be read."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import tiny_lm
import tiny_sentence
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nvembed.compress.vocabulary import (
    choose_tokens,
    counted,
    renumber_config,
    special_tokens,
    trim_tokenizer,
    trim_tokenizer_config,
    vocabulary,
)
from nvembed.errors import ConfigError, InputError

USED = ["The judge threw 12 people out of 345 courts.", "it's the third time this year"]
UNSEEN = "Étude naïve — 日本語 def f(x): 🎉"


def byte_fallback() -> Tokenizer:
    """As Gemma's: BPE over characters, spaces as ▁, unknown characters as bytes."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "<unused0>"]
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence(steps)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    made.train_from_iterator(tiny_lm.CORPUS, trainer)
    form = json.loads(made.to_str())
    form["added_tokens"] = [t for t in form["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(form))


KINDS = {
    "byte-level": tiny_sentence.byte_level,
    "byte-fallback": byte_fallback,
    "unigram": tiny_sentence.unigram,
    "wordpiece": tiny_sentence.wordpiece,
}


@cache
def tokenizer(kind: str) -> Tokenizer:
    """Train once: the trainer of Unigram breaks ties differently each time."""
    return KINDS[kind]()


def trimmed(kind: str, size: int | None = None) -> tuple[Tokenizer, Tokenizer, np.ndarray]:
    whole = tokenizer(kind)
    form = json.loads(whole.to_str())
    ids = (np.array(whole.encode(text).ids) for text in USED)
    counts = counted(ids, whole.get_vocab_size())
    kept = choose_tokens(form, counts, special_tokens(form), size)
    return whole, Tokenizer.from_str(json.dumps(trim_tokenizer(form, kept))), kept


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_the_corpus_keep_their_tokens(kind: str) -> None:
    whole, small, kept = trimmed(kind)
    assert small.get_vocab_size() == len(kept) < whole.get_vocab_size()
    for text in USED:
        assert [int(kept[n]) for n in small.encode(text).ids] == whole.encode(text).ids
        assert small.encode(text).tokens == whole.encode(text).tokens


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_can_be_read(kind: str) -> None:
    whole, small, _ = trimmed(kind)
    unknown = {"unigram": "<unk>", "wordpiece": "[UNK]"}.get(kind)
    tokens = small.encode(UNSEEN).tokens
    assert tokens
    if unknown is None:
        assert small.decode(small.encode(UNSEEN).ids) == whole.decode(whole.encode(UNSEEN).ids)
    elif kind == "wordpiece":
        assert tokens.count(unknown) == whole.encode(UNSEEN).tokens.count(unknown)


@pytest.mark.parametrize("kind", KINDS)
def test_the_most_frequent_tokens_are_kept(kind: str) -> None:
    _, _, every = trimmed(kind)
    _, small, kept = trimmed(kind, len(every) - 5)
    assert len(every) - 8 <= len(kept) <= len(every) - 5
    assert set(kept) < set(every)
    assert small.encode(USED[0]).ids


def test_too_few_tokens_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least"):
        trimmed("byte-level", 100)


def test_special_tokens_are_found_in_templates_and_roles() -> None:
    form = json.loads(tiny_sentence.wordpiece().to_str())
    names = {number: token for token, number in vocabulary(form).items()}
    found = {names[n] for n in special_tokens(form, {"pad_token": "[PAD]"}, {"eos_token_id": 7})}
    assert {"[CLS]", "[SEP]", "[UNK]", "[PAD]", names[7]} == found


def test_configs_get_the_new_ids() -> None:
    kept = np.array([0, 1, 5, 9])
    config = {"model_type": "mpnet", "vocab_size": 20, "pad_token_id": 1, "eos_token_id": 9, "x": 3}
    assert renumber_config(config, kept) == {**config, "vocab_size": 4, "eos_token_id": 3}
    with pytest.raises(ConfigError, match="padding"):
        renumber_config({**config, "pad_token_id": 5}, kept)
    decoder: dict[str, Any] = {"added_tokens_decoder": {"5": {"content": "a"}, "6": {"content": "b"}}}
    assert trim_tokenizer_config(decoder, kept) == {"added_tokens_decoder": {"2": {"content": "a"}}}


def test_another_kind_of_vocabulary_is_refused() -> None:
    with pytest.raises(ConfigError, match="WordLevel"):
        vocabulary({"model": {"type": "WordLevel", "vocab": {}}})
