"""Builds ``tokenizer.json``, the format of the ``tokenizers`` library, from the metadata of a GGUF file."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nvembed.errors import WeightsError
from nvembed.text.tokenizer_json import special_tokens_around

# Token types of the GGUF format. Its others are normal (1), unused (5) and byte (6).
_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPLIT = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Values of tokenizer.ggml.pre: the rule that splits a text before byte-level BPE. Old converters wrote
# "default" for every vocabulary; their files use GPT-2's rule.
_PRE = ("smollm", "llama-bpe", "qwen2", "gpt-2", "default")

_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def tokenizer_files(metadata: Mapping[str, object]) -> dict[str, bytes]:
    """Build ``tokenizer.json`` and ``tokenizer_config.json`` from a GGUF file's ``tokenizer.*`` keys.

    Byte-level BPE (``gpt2``) has merges; SentencePiece BPE (``llama``) has only scores, from which the merges
    are computed. Control tokens become special tokens. BOS precedes a text if the file sets
    ``add_bos_token``; EOS is never added, as in the released tokenizer. The default padding token is EOS.

    Raises:
        WeightsError: the tokenizer model or splitting rule is not supported, or keys are missing or
            contradict each other.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise WeightsError(
            f"tokenizer.ggml.model is {kind!r}; only 'gpt2' (byte-level BPE) and 'llama' (SentencePiece "
            "BPE) can be converted: use the model's folder with its tokenizer.json"
        )
    tokens, types = _vocabulary(metadata)
    vocab = {token: index for index, token in enumerate(tokens)}
    roles = _roles(metadata, tokens)
    pre = metadata.get("tokenizer.ggml.pre")
    form = _byte_level(metadata, vocab) if kind == "gpt2" else _sentencepiece(metadata, tokens, types, roles)
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or pre == "llama-bpe")
    if add_bos and "bos_token" not in roles:
        raise WeightsError("the file sets add_bos_token but has no bos_token_id")
    bos = [(roles["bos_token"], vocab[roles["bos_token"]])] if add_bos else []
    form |= {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added_token(index, tokens[index], special=token_type != _USER_DEFINED)
            for index, token_type in enumerate(types)
            if token_type in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        "post_processor": special_tokens_around(bos) if add_bos else None,
    }
    settings = {
        **roles,
        "add_bos_token": bool(add_bos),
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return {"tokenizer.json": _json(form), "tokenizer_config.json": _json(settings)}


def _vocabulary(metadata: Mapping[str, object]) -> tuple[list[str], list[int]]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _per_token(metadata, "tokenizer.ggml.token_type", len(tokens))
    if len(set(tokens)) != len(tokens):
        raise WeightsError("tokenizer.ggml.tokens has a token twice: the file is damaged")
    return tokens, types


def _per_token(metadata: Mapping[str, object], key: str, count: int) -> list[Any]:
    values = metadata.get(key)
    if not isinstance(values, list) or len(values) != count:
        got = len(values) if isinstance(values, list) else "none"
        raise WeightsError(f"{key} must have one entry per token ({count}); got {got}")
    return values


def _roles(metadata: Mapping[str, object], tokens: Sequence[str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for role, name in _ROLES.items():
        key = f"tokenizer.ggml.{role}_token_id"
        index = metadata.get(key)
        if index is None:
            continue
        if not isinstance(index, int) or not 0 <= index < len(tokens):
            raise WeightsError(f"{key} is {index!r}; it must be one of the {len(tokens)} tokens")
        roles[name] = tokens[index]
    if "eos_token" not in roles:
        raise WeightsError("the file has no tokenizer.ggml.eos_token_id, which an embedding model needs")
    return {"pad_token": roles["eos_token"], **roles}


def _byte_level(metadata: Mapping[str, object], vocab: Mapping[str, int]) -> dict[str, object]:
    pre = metadata.get("tokenizer.ggml.pre")
    if pre not in _PRE:
        raise WeightsError(
            f"tokenizer.ggml.pre is {pre!r}; supported are {', '.join(_PRE)}: use the model's folder with "
            "its tokenizer.json"
        )
    merges = [merge.split(" ") for merge in _strings(metadata, "tokenizer.ggml.merges")]
    bad = [
        m for m in merges if len(m) != 2 or m[0] not in vocab or m[1] not in vocab or m[0] + m[1] not in vocab
    ]
    if bad:
        raise WeightsError(
            f"{len(bad)} of {len(merges)} entries of tokenizer.ggml.merges do not join two tokens into a "
            f"third (the first: {' '.join(bad[0])!r}): the file is damaged"
        )
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, object]] = [byte_level]
    if pre == "smollm":
        steps = [{"type": "Digits", "individual_digits": True}, byte_level]
    elif pre in ("llama-bpe", "qwen2"):
        pattern = _SPLIT.replace("DIGITS", r"\p{N}{1,3}" if pre == "llama-bpe" else r"\p{N}")
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        steps = [split, {**byte_level, "use_regex": False}]
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": byte_level,
        # Llama 3 has no merges for some words that are tokens
        "model": _bpe(vocab, merges, ignore_merges=pre == "llama-bpe"),
    }


def _sentencepiece(
    metadata: Mapping[str, object], tokens: Sequence[str], types: Sequence[int], roles: Mapping[str, str]
) -> dict[str, object]:
    scores = _per_token(metadata, "tokenizer.ggml.scores", len(tokens))
    vocab = {token: index for index, token in enumerate(tokens)}
    spaces: list[dict[str, object]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    decoders: list[dict[str, object]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, {"type": "Prepend", "prepend": "▁"})
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = roles.get("unk_token")
    return {
        "normalizer": {"type": "Sequence", "normalizers": spaces},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_bpe(vocab, _merges(vocab, scores, types)),
            "unk_token": unknown,
            "fuse_unk": unknown is not None,
            "byte_fallback": True,
        },
    }


def _merges(vocab: Mapping[str, int], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """Return every pair of tokens that join into a third; best score of the third first, then lowest ids.

    SentencePiece merges the pair whose joint token has the best score at each step. An ordered list of merges
    is equivalent, because the score depends on the joint token only.
    """
    merges: list[tuple[float, int, int, int, str, str]] = []
    for token, index in vocab.items():
        if types[index] in (_UNKNOWN, _CONTROL):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                merges.append((-scores[index], index, vocab[left], vocab[right], left, right))
    return [[left, right] for *_, left, right in sorted(merges)]


def _bpe(
    vocab: Mapping[str, int], merges: list[list[str]], *, ignore_merges: bool = False
) -> dict[str, object]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": merges,
    }


def _added_token(index: int, content: str, *, special: bool) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, **flags, "special": special}


def _strings(metadata: Mapping[str, object], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise WeightsError(f"the file has no {key} (a list of strings): its tokenizer cannot be rebuilt")
    return value


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode()
