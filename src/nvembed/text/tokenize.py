"""Texts to token ids: BOS and EOS, truncation, and where pooling starts.

Three modes, recorded in a model's config:

``released``  as the published code. The text is ``prompt + text + "</s>"`` as one string, so a text that is
              cut loses its EOS, and ``</s>`` inside a text becomes the special token. The first
              ``len(tokenize(prompt))`` positions are not pooled (docs/explanation/quirks.md).
``clean``     the default for models trained here. BOS and EOS are always present, special tokens inside a
              text are not parsed, and the tokens whose offsets are in the prompt are not pooled.
``template``  as sentence-transformers: the special tokens of tokenizer.json's template around
              ``prompt + text``, also if the text is cut; special tokens inside a text are parsed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from tokenizers import Encoding, Tokenizer, normalizers

from nvembed.errors import ConfigError, InputError
from nvembed.text.tokenizer_json import read_tokenizer, special_tokens_around

Mode = Literal["released", "clean", "template"]
End = Literal["start", "end"]

BLANK = 0  # the token of a text that has none, which is possible without special tokens only
_FOREIGN = "they may be of another tokenizer, such as OpenAI's: send the text itself"


@dataclass(frozen=True)
class TextSettings:
    """How a model reads its text.

    Args:
        max_length: in tokens, special tokens included.
        eos_token: released mode: the text that is appended.
        eos_id: clean mode: the last token; template mode: a token appended to those of the template, or -1.
        bos_id: clean mode: the first token; template mode: a token before those of the template, or None.
        mask_instruction: do not pool the prompt.
        lowercase: convert the text to lower case first (sentence-transformers' ``do_lower_case``).
        split_special: template mode: do not parse special tokens inside a text, as in clean mode.
    """

    mode: Mode
    max_length: int
    eos_token: str
    eos_id: int
    bos_id: int | None = None
    mask_instruction: bool = True
    # not in the repr, so that other models keep their fingerprints
    lowercase: bool = field(default=False, repr=False)
    split_special: bool = field(default=False, repr=False)


@dataclass(frozen=True)
class Tokens:
    """One text's tokens. At least one is pooled: those from ``pool_start``."""

    input_ids: np.ndarray  # (T,) int32
    pool_start: int
    full_length: int  # tokens before any cut

    @property
    def truncated(self) -> bool:
        return self.full_length > len(self.input_ids)


@dataclass(frozen=True)
class Piece:
    """One token of a text, for display."""

    id: int
    text: str  # as the vocabulary spells it
    special: bool
    start: int  # the characters of prompt + text that it covers; start = end if it covers none
    end: int
    pooled: bool


class TextTokenizer:
    """A tokenizer and a model's settings.

    Args:
        tokenizer: the content of ``tokenizer.json``, or what `read_tokenizer` returned for it.
        rows: the number of tokens that have an embedding, if the tokenizer may have more.
    """

    def __init__(
        self, tokenizer: bytes | Tokenizer, settings: TextSettings, *, rows: int | None = None
    ) -> None:
        self._tokenizer = read_tokenizer(tokenizer) if isinstance(tokenizer, bytes) else tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = self.splits_special = (
            settings.mode == "clean" or settings.split_special
        )
        self.settings = settings
        self._rows = rows if rows is not None and rows < self.vocab_size else None
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {number for number, token in added.items() if token.special}
        if settings.lowercase:
            own = self._tokenizer.normalizer
            steps = [normalizers.Lowercase(), *([] if own is None else [own])]
            self._tokenizer.normalizer = normalizers.Sequence(steps)
        self._head, self._tail = self._around()

    def _around(self) -> tuple[list[int], list[int]]:
        """Return the special tokens before and after a text. In released mode EOS is text."""
        settings = self.settings
        if settings.mode == "clean":
            return [] if settings.bos_id is None else [settings.bos_id], [settings.eos_id]
        if settings.mode == "released":
            return self._tokenizer.encode("").ids[:1], []
        example = self._tokenizer.encode("a")
        content = [row for row, special in enumerate(example.special_tokens_mask) if not special]
        if not content:
            raise ConfigError(
                "tokenizer.json returns no token for the letter a: it is not the model's tokenizer"
            )
        appended = [] if settings.eos_id < 0 else [settings.eos_id]
        added = [] if settings.bos_id is None else [settings.bos_id]
        return [*added, *example.ids[: content[0]]], [*example.ids[content[-1] + 1 :], *appended]

    @property
    def special_before(self) -> int:
        """How many tokens of its own the tokenizer puts before a text."""
        return len(self._head)

    @property
    def special_after(self) -> int:
        """How many it puts after a text; in released mode EOS is part of the text."""
        return len(self._tail)

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.get_vocab_size()

    def token(self, number: int) -> str:
        """Return the token that has an id, as the vocabulary spells it."""
        return str(self._tokenizer.id_to_token(number))

    def template(self) -> dict[str, object]:
        """Return the ``post_processor`` that puts the model's own tokens around a text."""
        head, tail = ([(self.token(n), n) for n in numbers] for numbers in (self._head, self._tail))
        return special_tokens_around(head, tail)

    def offsets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return for each text an int64 (T, 2): start and end of each token in characters.

        Special tokens that the model adds, such as BOS and EOS, are not included.
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
        cut: End = "end",
        first_row: int = 0,
    ) -> list[Tokens]:
        """Tokenise texts, each with ``prompt`` prepended.

        Args:
            prompt: its tokens are not pooled.
            max_length: in tokens; ``None`` is the model's own.
            truncate: cut longer texts; ``False`` refuses them.
            cut: the end at which a longer text is cut. BOS and the prompt are kept in both cases.
            first_row: the number of the first text in error messages.

        Raises:
            InputError: a text or the prompt is not a string or not valid Unicode; a text is too long and
                ``truncate`` is False; the prompt leaves no token to pool (the published code returns NaN).
        """
        limit = self.settings.max_length if max_length is None else max_length
        released = self.settings.mode == "released"
        specials = 1 + (self.settings.bos_id is not None) if released else len(self._head + self._tail)
        if not specials < limit <= self.settings.max_length:
            raise InputError(
                f"max_length is {limit:,}: expected {specials + 1} to {self.settings.max_length:,}, "
                "the context this model reads"
            )
        check_texts(texts, first_row)
        _check_text(prompt, "the prompt")
        encode = self._released if self.settings.mode == "released" else self._clean
        tokens = encode(texts, prompt, limit, cut)
        for row, item in enumerate(tokens, first_row):
            if self._rows is not None and (item.input_ids >= self._rows).any():
                unknown = self._tokenizer.id_to_token(int(item.input_ids.max()))
                raise InputError(f"text {row} has the token {unknown!r}, which has no embedding in the model")
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

    def pieces(self, text: str, *, prompt: str = "") -> list[Piece]:
        """Return all tokens of one text; raise InputError as ``__call__``."""
        [tokens] = self([text], prompt=prompt)
        released = self.settings.mode == "released"
        joined = prompt + text + (self.settings.eos_token if released else "")
        # encode_batch releases the GIL; encode does not
        [encoding] = self._tokenizer.encode_batch([joined], add_special_tokens=released)
        ids, spans = encoding.ids, encoding.offsets
        if not released:
            ids = [*self._head, *ids, *self._tail]
            end = len(joined)
            spans = [*((0, 0) for _ in self._head), *spans, *((end, end) for _ in self._tail)]
        return [
            Piece(
                token,
                str(self._tokenizer.id_to_token(token)),
                token in self._special,
                *span,
                row >= tokens.pool_start,
            )
            for row, (token, span) in enumerate(zip(ids, spans, strict=True))
        ]

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text that has these tokens, with or without BOS and EOS.

        Raises:
            InputError: an id is not in the vocabulary; no text has these tokens, so they are of another
                tokenizer; or there are none besides BOS and EOS.
        """
        for token in ids:
            if not 0 <= token < 2**32 or self._tokenizer.id_to_token(token) is None:
                raise InputError(
                    f"token id {token:,} is not in this model's vocabulary of {self.vocab_size:,}: {_FOREIGN}"
                )
        body = list(ids)
        head, tail = self._head, self._tail or [self.settings.eos_id]
        body = body[len(head) :] if body[: len(head)] == head else body
        body = body[: -len(tail)] if body[-len(tail) :] == tail else body
        if not body:
            raise InputError("these token ids are of an empty text, whose vector is meaningless: omit it")
        # the batch functions release the GIL
        [text] = self._tokenizer.decode_batch([body], skip_special_tokens=False)
        [again] = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)
        if again.ids != body:
            raise InputError(
                f"this model's tokenizer has no text with these {len(body):,} token ids: {_FOREIGN}"
            )
        return text

    def parts(
        self, text: str, prompt: str, max_length: int
    ) -> tuple[list[int], list[int], np.ndarray, list[int]]:
        """Return the tokens before a text (BOS and prompt), its own, their characters, and those behind it.

        Nothing is cut: the text may be longer than ``max_length``.

        Raises:
            InputError: no valid text, or a ``max_length`` that leaves no room or that the model lacks.
        """
        self([""] if not prompt else ["a"], prompt=prompt, max_length=max_length)
        check_texts([text])
        [encoding] = self._tokenizer.encode_batch([prompt + text], add_special_tokens=False)
        before = _prompt_tokens(encoding, len(prompt)) if prompt else 0
        offsets = np.array(encoding.offsets[before:], dtype=np.int64).reshape(-1, 2) - len(prompt)
        tail = self._tail
        if self.settings.mode == "released":  # EOS is text
            tail = self._tokenizer.encode(self.settings.eos_token, add_special_tokens=False).ids
        head = [*self._head, *encoding.ids[:before]]
        if len(head) + len(tail) >= max_length:
            raise InputError(f"max_length is {max_length:,}, which the prompt fills: raise it")
        return head, encoding.ids[before:], offsets, list(tail)

    def _released(self, texts: Sequence[str], prompt: str, limit: int, cut: End) -> list[Tokens]:
        """Released mode: EOS is text, and as many tokens are masked as the prompt has by itself."""
        before = len(self._tokenizer.encode(prompt, add_special_tokens=False).ids) if prompt else 0
        masked = before if self.settings.mask_instruction else 0
        eos = self.settings.eos_token
        encodings = self._tokenizer.encode_batch_fast([prompt + text + eos for text in texts])
        # BOS counts as a token of the prompt (docs/explanation/quirks.md); it is kept without one too
        first = before or 1
        return [Tokens(_int32(_cut(e.ids, limit, first, cut)), masked, len(e.ids)) for e in encodings]

    def _clean(self, texts: Sequence[str], prompt: str, limit: int, cut: End) -> list[Tokens]:
        """Template mode masks as many tokens as the prompt has by itself, as sentence-transformers."""
        head, tail = self._head, self._tail
        room = limit - len(head) - len(tail)
        masking = bool(prompt) and self.settings.mask_instruction
        counted = masking and self.settings.mode == "template"
        located = not counted and (masking or (bool(prompt) and cut == "start"))
        before = len(self._tokenizer.encode(prompt, add_special_tokens=False).ids) if counted else 0
        encode = self._tokenizer.encode_batch if located else self._tokenizer.encode_batch_fast
        tokens = []
        for encoding in encode([prompt + text for text in texts], add_special_tokens=False):
            if located:
                before = _prompt_tokens(encoding, len(prompt))
            start = len(head) + before if masking else 0
            ids = _int32([*head, *_cut(encoding.ids, room, before, cut), *tail] or [BLANK])
            if not counted and len(encoding.ids) > room and start >= len(head) + room:
                start = len(ids)  # nothing of this text is left but the EOS
            tokens.append(Tokens(ids, start, len(head) + len(encoding.ids) + len(tail)))
        return tokens


def _prompt_tokens(encoding: Encoding, prompt_length: int) -> int:
    """Count the leading tokens that end within the prompt; a token across the border belongs to the text."""
    count = 0
    for _, end in encoding.offsets:
        if end > prompt_length:
            break
        count += 1
    return count


def _cut(ids: list[int], room: int, first: int, cut: End) -> list[int]:
    """Return at most ``room`` ids: the first, or the ``first`` leading ones and then the last."""
    if len(ids) <= room or cut == "end" or first >= room:
        return ids[:room]
    return [*ids[:first], *ids[first - room :]]


def _int32(ids: list[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)


def check_texts(texts: Sequence[str], first_row: int = 0) -> None:
    """Raise InputError naming the first text that is not a string or not valid Unicode."""
    if isinstance(texts, str | bytes):
        raise InputError("texts is one string: expected a list of strings; pass [text]")
    for row, text in enumerate(texts, first_row):
        _check_text(text, f"text {row}")


def _check_text(text: object, name: str) -> None:
    if not isinstance(text, str):
        kind = type(text).__name__
        raise InputError(f"{name} is a {kind} ({text!r:.60}): expected str; convert or drop it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}, which is not valid Unicode: read its source as UTF-8 with errors='replace'"
        ) from error
