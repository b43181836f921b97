"""Texts to token ids: BOS and EOS, truncation, and where pooling starts.

Two modes, recorded in a model's config:

``released``  what the published code does. The text is ``prompt + text + "</s>"`` as one string, so the EOS
              is lost where a text is cut, and ``</s>`` inside a text is parsed as the special token; the
              first ``len(tokenize(prompt))`` positions are not pooled (docs/quirks.md).
``clean``     the default for models trained here. BOS and EOS are always there, a user's text is never
              parsed as special tokens, and what is not pooled is what the offsets say is the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from nvembed.errors import ConfigError, InputError

Mode = Literal["released", "clean"]


@dataclass(frozen=True)
class TextSettings:
    """How a model wants its text. ``max_length`` is in tokens, BOS and EOS included."""

    mode: Mode
    max_length: int
    eos_token: str
    eos_id: int
    bos_id: int | None = None  # read in clean mode; in released mode the tokenizer adds its own
    mask_instruction: bool = True


@dataclass(frozen=True)
class Tokens:
    """One text's tokens. Those from ``pool_start`` on are pooled; there is at least one."""

    input_ids: np.ndarray  # (T,) int32
    pool_start: int
    full_length: int  # tokens before any cut

    @property
    def truncated(self) -> bool:
        return self.full_length > len(self.input_ids)


class TextTokenizer:
    """A tokenizer and a model's settings. ``tokenizer_json`` is the content of ``tokenizer.json``."""

    def __init__(self, tokenizer_json: bytes, settings: TextSettings) -> None:
        try:
            self._tokenizer = Tokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"tokenizer.json cannot be read: {error}; copy the file again") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = settings.mode == "clean"
        self.settings = settings

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def offsets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return for each text an int64 (T, 2): the characters where each of its tokens begins and ends.

        BOS, EOS and whatever else the model adds are not among them.
        """
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [np.array(e.offsets, dtype=np.int64).reshape(-1, 2) for e in encodings]

    def __call__(
        self,
        texts: Sequence[str],
        *,
        prompt: str = "",
        max_length: int | None = None,
        truncate: bool = True,
        first_row: int = 0,
    ) -> list[Tokens]:
        """Tokenise texts, each behind ``prompt``.

        Args:
            texts: strings; ``first_row`` is the number by which an error calls the first of them.
            prompt: the whole string put before each text; its tokens are not pooled.
            max_length: in tokens; ``None`` is the model's own.
            truncate: cut longer texts at their end; ``False`` refuses them.

        Raises:
            InputError: not a string, not valid Unicode, too long with ``truncate=False``, or a prompt that
                leaves no token to pool (where the published code returns NaN).
        """
        limit = self.settings.max_length if max_length is None else max_length
        specials = 1 + (self.settings.bos_id is not None)
        if not specials < limit <= self.settings.max_length:
            raise InputError(
                f"max_length is {limit:,}: expected {specials + 1} to {self.settings.max_length:,}, "
                "the context this model reads"
            )
        check_texts(texts, first_row)
        encode = self._released if self.settings.mode == "released" else self._clean
        tokens = encode(texts, prompt, limit)
        for row, item in enumerate(tokens, first_row):
            if item.truncated and not truncate:
                raise InputError(
                    f"text {row} is {item.full_length:,} tokens; max_length is {limit:,}: "
                    "shorten it, or pass truncate=True"
                )
            if item.pool_start >= len(item.input_ids):
                raise InputError(
                    f"text {row} has nothing to pool: its prompt takes {item.pool_start:,} tokens and "
                    f"max_length is {limit:,}: shorten the instruction, or raise max_length"
                )
        return tokens

    def _released(self, texts: Sequence[str], prompt: str, limit: int) -> list[Tokens]:
        """Released: EOS is text, and the count of the prompt's own tokens is what is masked."""
        masked = 0
        if prompt and self.settings.mask_instruction:
            masked = len(self._tokenizer.encode(prompt, add_special_tokens=False).ids)
        eos = self.settings.eos_token
        encodings = self._tokenizer.encode_batch_fast([prompt + text + eos for text in texts])
        return [Tokens(_int32(e.ids[:limit]), masked, len(e.ids)) for e in encodings]

    def _clean(self, texts: Sequence[str], prompt: str, limit: int) -> list[Tokens]:
        head = [] if self.settings.bos_id is None else [self.settings.bos_id]
        tail = [self.settings.eos_id]
        room = limit - len(head) - len(tail)
        masking = bool(prompt) and self.settings.mask_instruction
        encode = self._tokenizer.encode_batch if masking else self._tokenizer.encode_batch_fast
        encodings = encode([prompt + text for text in texts], add_special_tokens=False)
        tokens = []
        for encoding in encodings:
            start = len(head) + _prompt_tokens(encoding, len(prompt)) if masking else 0
            ids = _int32([*head, *encoding.ids[:room], *tail])
            if len(encoding.ids) > room and start >= len(head) + room:
                start = len(ids)  # only the EOS is left of this text: nothing to pool
            tokens.append(Tokens(ids, start, len(head) + len(encoding.ids) + len(tail)))
        return tokens


def _prompt_tokens(encoding: Encoding, prompt_length: int) -> int:
    """Count the leading tokens that end within the prompt; one that reaches into the text is the text's."""
    count = 0
    for _, end in encoding.offsets:
        if end > prompt_length:
            break
        count += 1
    return count


def _int32(ids: list[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def check_texts(texts: Sequence[str], first_row: int = 0) -> None:
    """Raise InputError naming the first text that is not a string or not valid Unicode."""
    if isinstance(texts, str | bytes):
        raise InputError("texts is one string: expected a list of them; pass [text]")
    for row, text in enumerate(texts, first_row):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(f"text {row} is a {kind} ({text!r:.60}): expected str; convert or drop it")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"text {row} has a lone surrogate (U+{ord(text[error.start]):04X}) at character "
                f"{error.start}, which is not valid Unicode: read its source as UTF-8 with errors='replace'"
            ) from error
