"""Reads ``tokenizer.json`` and checks it before the library does: some contents would end the process."""

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Tokenizer  # other rooms use the type

from nvembed.errors import ConfigError


def read_tokenizer(tokenizer_json: bytes) -> Tokenizer:
    """Build a tokenizer from the content of ``tokenizer.json``.

    Raises:
        ConfigError: it is not JSON, its character map is damaged, or the library refuses it.
    """
    try:
        form = json.loads(tokenizer_json)
        for part in _parts(form.get("normalizer") if isinstance(form, dict) else None):
            if part.get("type") == "Precompiled":
                _check_charsmap(part.get("precompiled_charsmap"))
        return Tokenizer.from_buffer(tokenizer_json)
    except BaseException as error:  # the library raises Exception, and for a panic a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ConfigError(f"tokenizer.json cannot be read: {error}; copy the file again") from error


def special_tokens_around(
    head: Sequence[tuple[str, int]], tail: Sequence[tuple[str, int]] = ()
) -> dict[str, object]:
    """Return the ``post_processor`` that puts special tokens, as (token, id), around each text."""

    def around(sequence: str, type_id: int) -> list[dict[str, object]]:
        before, after = (
            [dict[str, object](SpecialToken={"id": token, "type_id": type_id}) for token, _ in tokens]
            for tokens in (head, tail)
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]} for token, number in (*head, *tail)
        },
    }


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object inside a JSON value."""
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending += value.values()
        elif isinstance(value, list):
            pending += value


def _check_charsmap(encoded: object) -> None:
    """Check a character map of SentencePiece: the size of a double array, the array, and replacement texts.

    The library does not check the bounds of the array's offsets and of the replacements.
    """
    if not isinstance(encoded, str):
        raise ValueError(f"precompiled_charsmap is a {type(encoded).__name__}, expected text in base64")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"precompiled_charsmap is not base64 ({error})") from error
    size = int.from_bytes(raw[:4], "little")
    if len(raw) < 8 or size % 4 or not 4 <= size <= len(raw) - 4:
        raise ValueError(f"precompiled_charsmap has size {size:,}, but {max(0, len(raw) - 4):,} bytes")
    units = np.frombuffer(raw, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    texts = raw[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("precompiled_charsmap has replacements that are not UTF-8") from error
    # A unit at i has its children at base ^ byte, and its value at base, where base = i ^ offset.
    base = np.arange(len(units)) ^ ((units >> 10) << ((units & 0x200) >> 6))
    nodes = units < 1 << 31  # the others are values
    if (base[nodes] | 0xFF).max(initial=-1) >= len(units):
        raise ValueError("precompiled_charsmap points out of its array")
    starts = units[base[nodes & (units & 0x100 > 0)]] & 0x7FFFFFFF
    text_starts = {0, *(np.flatnonzero(np.frombuffer(texts, dtype=np.uint8) == 0) + 1).tolist()}
    if not set(starts.tolist()) <= text_starts:
        raise ValueError("precompiled_charsmap points between its replacements")
