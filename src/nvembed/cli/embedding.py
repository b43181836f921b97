"""What ``nvembed embed`` takes of a model: what decides its vectors, and the functions that make them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from nvembed.cli.models import find_model, load
from nvembed.cli.options import Dtype
from nvembed.errors import InputError

if TYPE_CHECKING:
    from nvembed.text.tokenize import TextSettings
    from nvembed.vectors.embeddings import Embeddings

Offsets = Callable[[Sequence[str]], list[np.ndarray]]

# Tokens computed at a time. Free memory would decide better, but not the same way twice: batches decide the
# last bits of a vector. 16,384 tokens of a 7B model take 2 GiB of activations.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}

DEFAULT_CHUNK = 512
# A passage by itself may be a token or two longer than it was in its document.
SPARE_TOKENS = 2


@dataclass(frozen=True)
class Facts:
    """What decides a model's vectors, and what its tokenizer says."""

    fingerprint: str
    dim: int
    max_length: int
    dtype: str
    batch_tokens: int
    fixed_tokens: int  # prompt, BOS and EOS
    build_offsets: Callable[[], Offsets]  # what it is made of can be sent to another process


def describe(
    model: str, *, device: str | None, dtype: Dtype | None, prompt: str, max_length: int | None
) -> Facts:
    """Return a model's facts from its configs and tokenizer; fetch it, but load no weights.

    Args:
        device: None is cuda where there is one.
    """
    from nvembed.model.device import parse_devices
    from nvembed.weights.checkpoint import fingerprint, load_tokenizer, open_checkpoint

    kind = parse_devices(device.split(",") if device else None)[0].type
    checkpoint = open_checkpoint(find_model(model))
    (one,) = load_tokenizer(checkpoint)(["a"], prompt=prompt, max_length=max_length)
    return Facts(
        fingerprint=fingerprint(checkpoint),
        dim=checkpoint.config.backbone.hidden_size,
        max_length=max_length or checkpoint.text.max_length,
        dtype=dtype or ("bfloat16" if kind == "cuda" else "float32"),
        batch_tokens=BATCH_TOKENS[kind],
        fixed_tokens=one.full_length - 1,
        build_offsets=partial(_offsets, checkpoint.tokenizer_files()["tokenizer.json"], checkpoint.text),
    )


def _offsets(tokenizer_json: bytes, settings: "TextSettings") -> Offsets:
    """Return the function that says where tokens are: a process that reads needs neither torch nor model."""
    from nvembed.text.tokenize import TextTokenizer

    return TextTokenizer(tokenizer_json, settings).offsets


def passage_sizes(facts: Facts, chunk_tokens: int | None, overlap_tokens: int | None) -> tuple[int, int]:
    """Return the most tokens of a passage and of an overlap: as asked, or 512 (or what fits), and an eighth.

    Raises:
        InputError: more than the model reads, or an overlap as long as a passage.
    """
    room = facts.max_length - facts.fixed_tokens
    tokens = max(1, min(DEFAULT_CHUNK, room - SPARE_TOKENS)) if chunk_tokens is None else chunk_tokens
    overlap = tokens // 8 if overlap_tokens is None else overlap_tokens
    if not 1 <= tokens <= room:
        raise InputError(
            f"--chunk-tokens is {tokens:,}; expected 1 to {room:,}: what is left of the {facts.max_length:,} "
            f"that are read of one text beside {facts.fixed_tokens:,} of prompt, BOS and EOS"
        )
    if not 0 <= overlap < tokens:
        raise InputError(
            f"--overlap-tokens is {overlap:,}; expected 0 to {tokens - 1:,}, less than a passage"
        )
    return tokens, overlap


@dataclass(frozen=True)
class Model:
    """How to load a model and embed with it; it can be sent to another process, which loads it there."""

    name: str
    device: str | None
    dtype: Dtype
    prompt: str
    max_length: int
    batch_tokens: int

    def encode(self) -> Callable[[Sequence[str]], Iterator["Embeddings"]]:
        """Return the function that embeds; the model is loaded at its first call."""

        @cache
        def encoder() -> object:
            return load(self.name, device=self.device, dtype=self.dtype)

        def encode(texts: Sequence[str]) -> Iterator["Embeddings"]:
            return encoder().stream(  # type: ignore[attr-defined, no-any-return]
                texts, prompt=self.prompt, max_length=self.max_length, batch_tokens=self.batch_tokens
            )

        return encode
