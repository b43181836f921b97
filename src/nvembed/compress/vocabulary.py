"""Trimming of a vocabulary: the tokens that a corpus uses, in ``tokenizer.json`` and in its configs.

BPE        A token is kept together with every token that its merges pass through; a merge stays if both parts
           and its product do. Bytes that stand in for unknown characters (``<0x00>``), or the 256 letters of
           a byte-level vocabulary, stay: every text can still be written.
Unigram    Pieces of bytes stay; other characters that are left out become unknown, as before.
WordPiece  All single characters stay, alone and as continuations.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from nvembed.errors import ConfigError, InputError

Form = dict[str, Any]


def choose_tokens(form: Form, counts: np.ndarray, needed: set[int], size: int | None) -> np.ndarray:
    """Return the ids to keep, ascending.

    Args:
        form: the content of ``tokenizer.json``.
        counts: (V,) how often each token occurs in the corpus.
        needed: ids that are kept in any case, such as special tokens.
        size: the most tokens that are kept, the most frequent first; None keeps all that occur.

    Raises:
        ConfigError: the vocabulary is of another kind.
        InputError: ``size`` has no room for the tokens that are needed.
    """
    ids = vocabulary(form)
    names = {number: token for token, number in ids.items()}
    parts = _Merges(form["model"], ids)
    kept: set[int] = set()
    for number in sorted(needed | _alphabet(form["model"], ids)):
        kept |= parts.of(names.get(number, ""), number)
    if size is not None and len(kept) > size:
        raise InputError(f"tokens is {size:,}: expected at least {len(kept):,}, which every text may need")
    for number in np.argsort(-counts, kind="stable"):
        if counts[number] == 0:
            break
        new = parts.of(names.get(int(number), ""), int(number)) - kept
        if size is None or len(kept) + len(new) <= size:
            kept |= new
    return np.array(sorted(kept), dtype=np.int64)


def vocabulary(form: Form) -> dict[str, int]:
    """Return the tokens and their ids, added tokens included.

    Raises:
        ConfigError: the vocabulary is of another kind than BPE, Unigram and WordPiece.
    """
    model = form.get("model", {})
    if model.get("type") not in ("BPE", "Unigram", "WordPiece"):
        raise ConfigError(
            f"tokenizer.json has a model of type {model.get('type')!r}: expected BPE, Unigram or WordPiece"
        )
    pieces = model["vocab"]
    ids = {piece: n for n, (piece, _) in enumerate(pieces)} if isinstance(pieces, list) else dict(pieces)
    return ids | {token["content"]: token["id"] for token in form.get("added_tokens") or []}


def special_tokens(form: Form, *configs: Mapping[str, Any]) -> set[int]:
    """Return the ids that templates and roles name: BOS, EOS, padding, unknown and so on."""
    ids = vocabulary(form)
    text = json.dumps(form.get("post_processor"))
    values = [value for config in configs for key, value in config.items() if key.endswith("_token")]
    names = {value.get("content") if isinstance(value, dict) else value for value in values}
    names |= {form["model"].get("unk_token")}
    numbers = {
        value
        for config in configs
        for key, value in config.items()
        if key.endswith("_token_id") and isinstance(value, int)
    }
    in_template = {
        number for token, number in ids.items() if len(token) > 1 and f'"{_escaped(token)}"' in text
    }
    named = {ids[name] for name in names if isinstance(name, str) and name in ids}
    unknown = form["model"].get("unk_id")
    return named | in_template | numbers & set(ids.values()) | ({unknown} - {None})


def _escaped(token: str) -> str:
    return json.dumps(token)[1:-1]


def _alphabet(model: Form, ids: Mapping[str, int]) -> set[int]:
    """Return the tokens without which some text could not be written."""
    if any(f"<0x{byte:02X}>" in ids for byte in (0, 255)):
        return {ids[name] for byte in range(256) if (name := f"<0x{byte:02X}>") in ids}
    if model["type"] == "Unigram":
        return set()
    return {number for token, number in ids.items() if len(token.removeprefix("##")) == 1}


class _Merges:
    """The tokens that a BPE token is merged from; of other vocabularies the token alone."""

    def __init__(self, model: Form, ids: Mapping[str, int]) -> None:
        self._ids = ids
        pairs = [_pair(merge) for merge in model.get("merges") or []] if model["type"] == "BPE" else []
        self._ranks = {pair: rank for rank, pair in enumerate(pairs)}

    def of(self, token: str, number: int) -> set[int]:
        kept = {number}
        if not self._ranks:
            return kept
        parts = list(token)
        while len(parts) > 1:
            kept |= {self._ids[part] for part in parts if part in self._ids}
            ranks = [self._ranks.get(pair, len(self._ranks)) for pair in pairwise(parts)]
            place = min(range(len(ranks)), key=ranks.__getitem__)
            if ranks[place] == len(self._ranks):
                break  # an added token, which is not merged
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        return kept


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def trim_tokenizer(form: Form, kept: np.ndarray) -> Form:
    """Return ``tokenizer.json`` with only these tokens; the ``n``-th of them gets the id ``n``."""
    new = {int(old): number for number, old in enumerate(kept)}
    model = dict(form["model"])
    if model["type"] == "Unigram":
        pieces = model["vocab"]
        model["vocab"] = [pieces[old] for old in kept if old < len(pieces)]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if model["type"] == "BPE":
        vocab = model["vocab"]
        model["merges"] = [
            merge
            for merge in model["merges"]
            if all(part in vocab for part in (*_pair(merge), "".join(_pair(merge))))
        ]
    added = [{**t, "id": new[t["id"]]} for t in form.get("added_tokens") or [] if t["id"] in new]
    padding = form.get("padding")
    if padding:
        padding = {**padding, "pad_id": new.get(padding["pad_id"], 0)}
    return {
        **form,
        "model": model,
        "added_tokens": added,
        "post_processor": _renumbered(form.get("post_processor"), new),
        "padding": padding,
    }


def _renumbered(value: Any, new: Mapping[int, int]) -> Any:
    """Renumber a template: ``ids`` of a special token, and ``cls`` and ``sep`` as [token, id]."""
    if isinstance(value, list):
        return [_renumbered(entry, new) for entry in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, entry in value.items():
        if key == "ids":
            result[key] = [new[number] for number in entry]
        elif key in ("cls", "sep") and isinstance(entry, list):
            result[key] = [entry[0], new[entry[1]]]
        else:
            result[key] = _renumbered(entry, new)
    return result


def renumber_config(config: Mapping[str, Any], kept: np.ndarray) -> dict[str, Any]:
    """Return ``config.json``, or a part of it, with the new size of the vocabulary and new ids of its tokens.

    Raises:
        ConfigError: the first row of the position table depends on an id that would change.
    """
    new = {int(old): number for number, old in enumerate(kept)}
    result = dict(config)
    for key, value in config.items():
        if key == "vocab_size":
            result[key] = len(kept)
        elif key.endswith("_token_id") and isinstance(value, int):
            result[key] = new.get(value)
    if config.get("model_type") in _SHIFTED and result.get("pad_token_id") != config.get("pad_token_id"):
        raise ConfigError("the padding token's id would change, on which positions depend: keep more tokens")
    return result


_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")


def trim_tokenizer_config(config: Mapping[str, Any], kept: np.ndarray) -> dict[str, Any]:
    """Return ``tokenizer_config.json`` with the added tokens that are kept, under their new ids."""
    new = {str(old): str(number) for number, old in enumerate(kept)}
    added = config.get("added_tokens_decoder")
    if not isinstance(added, dict):
        return dict(config)
    return {**config, "added_tokens_decoder": {new[old]: v for old, v in added.items() if old in new}}


def counted(ids: Iterator[np.ndarray], size: int) -> np.ndarray:
    """Count tokens: (size,) int64."""
    counts = np.zeros(size, dtype=np.int64)
    for part in ids:
        counts += np.bincount(part, minlength=size)[:size]
    return counts
