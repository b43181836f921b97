"""Subjects of an evaluation, from the names or folders of models."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.cli.models import encode_with, load_sentence_transformer
from nvembed.errors import InputError
from nvembed.evaluate.subject import Subject, bm25, random_encoder
from nvembed.vectors.embeddings import Embeddings, join


@dataclass(frozen=True)
class Loading:
    """How to load a model: device and dtype as torch names them, and the most tokens of a text."""

    max_tokens: int
    device: str | None = None
    dtype: str | None = None


def load_subject(spec: str, loading: Loading) -> Subject:
    """Make a subject from ``bm25``, ``random``, a folder, or a hub id; ``NAME=FOLDER`` sets its name.

    If a folder of the whole name exists, a ``=`` in it is part of its path. A folder with ``modules.json`` is
    loaded with sentence-transformers, any other with this package.

    Raises:
        InputError: the named folder does not exist.
        MissingExtraError: sentence-transformers is needed and not installed.
    """
    if spec == "bm25":
        return bm25()
    if spec == "random":
        return random_encoder()
    name, path = "", spec
    if "=" in spec and not Path(spec).is_dir():
        name, _, path = spec.partition("=")
    folder = Path(path).expanduser()
    if name and not folder.is_dir():
        raise InputError(f"model {name!r}: {path!r} is not a folder; expected NAME=FOLDER")
    path = str(folder) if folder.is_dir() else path
    config = folder / "config.json"  # older versions of that library keep it one folder deeper
    ours = config.is_file() and b"NVEmbed" in config.read_bytes()
    foreign = (folder / "modules.json").is_file() and not ours
    subject = _sentence_transformer(folder, loading) if foreign else _encoder(path, loading)
    return replace(subject, name=name or (folder.resolve().name if folder.is_dir() else path))


def _encoder(path: str, loading: Loading) -> Subject:
    import torch

    from nvembed.encoder import Encoder

    model = Encoder.from_pretrained(path, device=loading.device, dtype=loading.dtype)
    weights = list(model.replicas[0].parameters())
    limit = min(loading.max_tokens, model.max_length)

    def encode(texts: Sequence[str], prompt: str) -> Embeddings:
        return join(list(model.stream(texts, prompt=prompt, max_length=limit)), model.dim)

    return Subject(
        name=path,
        fingerprint=model.fingerprint,
        encode=encode,
        instructions=True,
        precision=model.dtype,
        max_tokens=limit,
        size_bytes=sum(weight.nbytes for weight in weights),
        num_parameters=sum(weight.numel() for weight in weights),
        dim=model.dim,
        device=_device_name(torch, weights[0].device),
        peak_bytes=_peak(torch, weights[0].device),
    )


def _sentence_transformer(folder: Path, loading: Loading) -> Subject:
    import torch

    model = load_sentence_transformer(
        str(folder), max_tokens=loading.max_tokens, device=loading.device, dtype=loading.dtype
    )
    limit = model.max_seq_length
    weights = list(model.parameters())

    def encode(texts: Sequence[str], prompt: str) -> Embeddings:
        whole = [prompt + text for text in texts]
        lengths = [len(ids) for ids in model.tokenizer(whole, truncation=False, verbose=False)["input_ids"]]
        tokens = np.array(lengths, dtype=np.int64)
        empty = np.array([not text or text.isspace() for text in texts], dtype=bool)
        return Embeddings(encode_with(model, texts, prompt), np.minimum(tokens, limit), tokens > limit, empty)

    own = model.prompts or {}
    default = own.get(model.default_prompt_name) or ""
    model.default_prompt_name = None  # the evaluation chooses: an empty prompt is none, not the default one
    return Subject(
        name=str(folder),
        fingerprint=_hash_folder(folder),
        encode=encode,
        prompts=own,
        default_prompt=default,
        precision=str(weights[0].dtype).removeprefix("torch."),
        max_tokens=limit,
        size_bytes=sum(weight.nbytes for weight in weights),
        num_parameters=sum(weight.numel() for weight in weights),
        dim=model.get_embedding_dimension() or 0,
        device=_device_name(torch, weights[0].device),
        peak_bytes=_peak(torch, weights[0].device),
    )


def _device_name(torch: Any, device: Any) -> str:
    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else str(device.type)


def _peak(torch: Any, device: Any) -> Callable[[], int] | None:
    if device.type != "cuda":
        return None

    def most_since_last() -> int:
        peak = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return peak

    return most_since_last


def _hash_folder(folder: Path) -> str:
    """Hash what decides the vectors: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin", ".json", ".txt", ".model")
    ):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]
