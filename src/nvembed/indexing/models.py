"""A model as facts and functions, for corpora and their indexes: found, described, with its prompts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nvembed.errors import InputError, WeightsError
from nvembed.read.chunk import Offsets

if TYPE_CHECKING:
    from nvembed.embed.job import EmbedSettings
    from nvembed.embed.passages import Context, CutMode
    from nvembed.embed.records import Storage
    from nvembed.encoder import Encoder
    from nvembed.text.model_prompts import ModelPrompts
    from nvembed.text.tokenize import TextSettings

# Tokens computed at a time. They do not depend on the free memory, because batches decide the last bits of a
# vector. 16,384 tokens of a 7B model take 2 GiB of activations.
BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}
DEFAULT_CHUNK = 512
# A passage by itself may be a token or two longer than it was in its document.
SPARE_TOKENS = 2


@dataclass(frozen=True)
class Facts:
    """What decides a model's vectors."""

    fingerprint: str
    dim: int
    max_length: int
    dtype: str
    batch_tokens: int
    fixed_tokens: int  # prompt, BOS and EOS
    pooling: str
    build_offsets: Callable[[], Offsets]  # can be sent to another process


def describe(
    model: str, *, device: str | None, dtype: str | None, prompt: str, max_length: int | None
) -> Facts:
    """Return a model's facts from its configs and tokenizer; download it if needed, but load no weights.

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
        dim=checkpoint.truncate_dim or checkpoint.config.dim,
        max_length=max_length or checkpoint.text.max_length,
        dtype=dtype or checkpoint.dtype or ("bfloat16" if kind == "cuda" else "float32"),
        batch_tokens=BATCH_TOKENS[kind],
        fixed_tokens=one.full_length - 1,
        pooling=checkpoint.config.pooling,
        build_offsets=partial(_offsets, checkpoint.tokenizer_files()["tokenizer.json"], checkpoint.text),
    )


def facts_of(encoder: "Encoder", *, prompt: str, max_length: int | None) -> Facts:
    """Return the facts of a loaded model, as ``describe`` does."""
    limit = max_length or encoder.max_length
    (one,) = encoder.tokenizer(["a"], prompt=prompt, max_length=limit)
    return Facts(
        fingerprint=encoder.fingerprint,
        dim=encoder.dim,
        max_length=limit,
        dtype=encoder.dtype,
        batch_tokens=BATCH_TOKENS["cuda" if "cuda" in str(encoder.replicas[0].device) else "cpu"],
        fixed_tokens=one.full_length - 1,
        pooling=encoder.replicas[0].config.pooling,
        build_offsets=lambda: encoder.tokenizer.offsets,
    )


def embed_settings(
    facts: Facts,
    prompt: str,
    sizes: tuple[int | None, int | None] | None,
    *,
    storage: "Storage",
    cut: "CutMode",
    context: "Context" = "none",
    late_chunking: bool = False,
    batch_tokens: int | None = None,
) -> "EmbedSettings":
    """Return the settings of a job that embeds documents.

    Args:
        sizes: the most tokens of a passage and of an overlap, see ``passage_sizes``. None: documents are left
            whole.
    """
    from nvembed.embed.job import EmbedSettings
    from nvembed.embed.passages import CONTEXT_TOKENS

    reserved = CONTEXT_TOKENS if context != "none" else 0
    whole: tuple[None, None] = (None, None)
    tokens, overlap = (
        whole if sizes is None else passage_sizes(facts.max_length, facts.fixed_tokens + reserved, *sizes)
    )
    return EmbedSettings(
        fingerprint=facts.fingerprint,
        prompt=prompt,
        dtype=facts.dtype,
        dim=facts.dim,
        max_length=facts.max_length,
        batch_tokens=batch_tokens or facts.batch_tokens,
        storage=storage,
        chunk_tokens=tokens,
        overlap_tokens=overlap,
        late_chunking=late_chunking,
        cut=cut,
        context=context,
    )


def _offsets(tokenizer_json: bytes, settings: "TextSettings") -> Offsets:
    """Return the function that locates tokens; it needs neither torch nor the model."""
    from nvembed.text.tokenize import TextTokenizer

    return TextTokenizer(tokenizer_json, settings).offsets


def passage_sizes(
    max_length: int, fixed_tokens: int, chunk_tokens: int | None = None, overlap_tokens: int | None = None
) -> tuple[int, int]:
    """Return the most tokens of a passage and of an overlap. Default: 512 or what fits; an eighth of it."""
    room = max_length - fixed_tokens
    tokens = max(1, min(DEFAULT_CHUNK, room - SPARE_TOKENS)) if chunk_tokens is None else chunk_tokens
    overlap = tokens // 8 if overlap_tokens is None else overlap_tokens
    if not 1 <= tokens <= room:
        raise InputError(
            f"--chunk-tokens is {tokens:,}; expected 1 to {room:,}: the model reads {max_length:,} tokens, "
            f"and prompt, BOS and EOS take {fixed_tokens:,} of them"
        )
    if not 0 <= overlap < tokens:
        raise InputError(
            f"--overlap-tokens is {overlap:,}; expected 0 to {tokens - 1:,}, less than a passage"
        )
    return tokens, overlap


def find_model(spec: str, *, revision: str | None = None, download: bool = True) -> Path:
    """Return the folder of a model; a model of the hub is downloaded if it is not here.

    Args:
        spec: a folder; ``package/inner/path``, a folder of an installed package, which is not imported; or
            a hub id.
    """
    from nvembed.weights.hub import model_folder

    if spec.startswith("sentence-transformers:"):
        raise InputError(f"{spec}: expected {spec.partition(':')[2]}; leave the prefix out")
    if spec.endswith(".gguf"):
        raise WeightsError(f"{spec} is a language model: make an embedding model of it with  nvembed init")
    if not Path(spec).expanduser().is_dir():
        package, _, inner = spec.partition("/")
        module = find_spec(package) if package.isidentifier() and inner else None
        for location in (module.submodule_search_locations or []) if module else []:
            if (Path(location) / inner).is_dir():
                return Path(location) / inner
    return model_folder(spec, revision=revision, download=download)


def check_same_model(model: str, fingerprint: str, expected: str, owner: str) -> None:
    """Refuse a model whose vectors cannot be compared with stored ones.

    Args:
        owner: what has the stored vectors, and the name of its model.
    """
    if fingerprint != expected:
        raise InputError(
            f"{model} has the fingerprint {fingerprint}; expected {expected}, that of {owner}. Vectors of "
            "two models cannot be compared: use that model, or embed the corpus again"
        )


def embed_texts(encoder: "Encoder", texts: Sequence[str], prompt: str, max_length: int) -> np.ndarray:
    """Return the vectors of a few texts, (n, d) float32."""
    parts = encoder.stream(list(texts), prompt=prompt, max_length=max_length)
    return np.concatenate([part.vectors for part in parts])


def own_prompts(spec: str, *, download: bool = True) -> "ModelPrompts | None":
    """Return the prompts that a model brings itself, from its configs; None for an NV-Embed."""
    from nvembed.weights.checkpoint import open_checkpoint

    return open_checkpoint(find_model(spec, download=download)).prompts


def prompts(
    *,
    task: str | None = None,
    instruction: str | None = None,
    prompt: str | None = None,
    own: "ModelPrompts | None" = None,
) -> tuple[str, str]:
    """Return the prompt of queries and that of passages, from at most one of the three options.

    Args:
        task: a task with a known instruction, or the name of one of the model's own prompts.
        instruction: the sentence that describes the task.
        prompt: the exact string for both.
        own: the prompts that the model brings itself; without options they are its query and its document
            prompt.
    """
    from nvembed.text.prompt import format_prompt, instruction_for

    options = {"--task": task, "--instruction": instruction, "--prompt": prompt}
    names = [name for name, value in options.items() if value is not None]
    if len(names) > 1:
        raise InputError(f"expected at most one of {' and '.join(names)}, got both: each sets the prompt")
    if prompt is not None:
        return prompt, prompt
    if own is not None:
        return own.query(instruction=instruction, task=task), own.document(task=task)
    if task is not None:
        return format_prompt(instruction_for(task)), format_prompt(instruction_for(task, "corpus"))
    return format_prompt(instruction or ""), ""


def query_prompt(
    passage_prompt: str,
    *,
    instruction: str | None = None,
    task: str | None = None,
    own: "ModelPrompts | None" = None,
) -> str:
    """Return the default prompt of queries: as the options say, else the model's own, else the corpus's."""
    if own is not None and not task:
        return prompts(instruction=instruction, own=own)[0]
    if passage_prompt and not (instruction or task):
        return passage_prompt
    return prompts(task=task or (None if instruction else "NQ"), instruction=instruction, own=own)[0]
