"""Models that teach: of hard negatives (``nvembed mine``) and of neighbourhoods (``nvembed train``)."""

import hashlib
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from nvembed.cli.models import encode_with, load_sentence_transformer
from nvembed.cli.options import Dtype
from nvembed.data.teacher import Encode

SENTENCE_TRANSFORMERS = "sentence-transformers:"


def open_teacher(
    name: str, *, device: str | None, dtype: Dtype | None, max_tokens: int
) -> tuple[Encode, str]:
    """Load a model of ours (folder or hub id) or ``sentence-transformers:MODEL``.

    Returns:
        ``encode``: (texts, prompt) to unit vectors (n, D), texts cut to ``max_tokens``; and what names the
        model and these settings.
    """
    load = _sentence_transformer if name.startswith(SENTENCE_TRANSFORMERS) else _encoder
    return load(name, device, dtype, max_tokens)


def fingerprint(name: str) -> str:
    """Return the teacher's name with a digest of its weights, where they lie in a folder."""
    folder = Path(_folder(name.removeprefix(SENTENCE_TRANSFORMERS)))
    if not folder.is_dir():
        return name  # bm25, or an id of the hub
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "blake2b").digest())
    return f"{name}/{digest.hexdigest()}"


def _encoder(name: str, device: str | None, dtype: Dtype | None, max_tokens: int) -> tuple[Encode, str]:
    from nvembed.encoder import Encoder

    model = Encoder.from_pretrained(name, device=device, dtype=dtype)
    limit = min(max_tokens, model.max_length)

    def encode(texts: Sequence[str], prompt: str) -> np.ndarray:
        return np.asarray(model.encode(list(texts), prompt=prompt, max_length=limit, truncate=True))

    return encode, f"{model.fingerprint}/{limit}/{model.dtype}"


def _sentence_transformer(
    name: str, device: str | None, dtype: Dtype | None, max_tokens: int
) -> tuple[Encode, str]:
    place = _folder(name.removeprefix(SENTENCE_TRANSFORMERS))
    model = load_sentence_transformer(place, max_tokens=max_tokens, device=device, dtype=dtype)
    return partial(encode_with, model), f"{fingerprint(name)}/{model.max_seq_length}/{model.dtype}"


def _folder(name: str) -> str:
    """Return the folder that ``name`` is, also inside an installed package; else ``name``, a hub id."""
    if Path(name).is_dir():
        return name
    package, _, rest = name.partition("/")
    spec = find_spec(package) if package.isidentifier() else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / rest).is_dir():
            return str(Path(location) / rest)
    return name
