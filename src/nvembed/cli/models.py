"""Opens the model that a user names, for every command."""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import platformdirs

from nvembed.cli.options import Dtype, Prompt
from nvembed.cli.screen import say, waiting
from nvembed.errors import ConfigError, DownloadError, InputError, MissingExtraError, WeightsError
from nvembed.evaluate.subject import Subject, bm25, random_encoder
from nvembed.indexing.models import find_model, prompts
from nvembed.vectors.embeddings import Embeddings, join

if TYPE_CHECKING:
    from nvembed.encoder import Encoder
    from nvembed.text.model_prompts import ModelPrompts
    from nvembed.weights.tensors import Checkpoint


def load(
    model: str,
    *,
    device: str | None = None,
    dtype: Dtype | None = None,
    revision: str | None = None,
    compiled: bool = False,
) -> "Encoder":
    """Load a model from a folder or the hub; ``device`` may name several, separated by commas."""
    devices = device.split(",") if device else None
    if compiled:
        _keep_compiled()
    with waiting(f"loading {model}"):
        from nvembed.encoder import Encoder  # torch takes seconds to import

        folder = find_model(model, revision=revision)
        return Encoder.from_pretrained(folder, device=devices, dtype=dtype, compiled=compiled)


def _keep_compiled() -> None:
    """Keep what is compiled for the next process."""
    os.environ.setdefault(
        "TORCHINDUCTOR_CACHE_DIR", str(platformdirs.user_cache_path("nvembed") / "compiled")
    )


@dataclass(frozen=True)
class Loading:
    """How to load a model: the most tokens read of a text, device, dtype, and whether layers are compiled."""

    max_tokens: int
    device: str | None = None
    dtype: str | None = None
    compiled: bool = False


def open_model(spec: str, loading: Loading) -> Subject:
    """Open a model or a baseline, as functions with a fingerprint.

    A model in the layout of sentence-transformers that has a module or an architecture which this package
    does not have is loaded with that library, and a message says so.

    Args:
        spec: ``bm25``, ``random``, or a model (see ``find_model``); ``NAME=FOLDER`` gives a folder another
            name. If a folder of the whole string exists, a ``=`` in it is part of its path.
    """
    if spec == "bm25":
        return bm25()
    if spec == "random":
        return random_encoder()
    name, place = "", spec
    if "=" in spec and not Path(spec).expanduser().is_dir():
        name, _, place = spec.partition("=")
        if not Path(place).expanduser().is_dir():
            raise InputError(f"model {name!r}: {place!r} is not a folder; expected NAME=FOLDER")
    folder = find_model(place)
    if not name:
        name = folder.resolve().name if Path(place).expanduser().is_dir() else place
    make = _encoder
    if (reason := needs_library(folder)) is not None:
        say(f"{name} is computed by the library sentence-transformers: {reason}")
        make = _sentence_transformer
    return replace(make(folder, loading), name=name)


def needs_library(folder: Path) -> str | None:
    """Return why a folder needs the library sentence-transformers; None if this package opens it."""
    if not (folder / "modules.json").is_file():
        return None
    from nvembed.weights.checkpoint import open_checkpoint

    try:
        open_checkpoint(folder)
    except ConfigError as error:
        return str(error)
    return None


def model_content(spec: str) -> str:
    """Return a model's name and a digest of every byte that decides its vectors, without loading it."""
    if spec in ("bm25", "random"):
        return spec
    from nvembed.weights.checkpoint import content_digest, open_checkpoint

    folder = find_model(spec)
    if needs_library(folder) is not None:
        return f"{spec}/{_hash_folder(folder)}"
    return f"{spec}/{content_digest(open_checkpoint(folder), cache=_digests())}"


def _digests() -> Path:
    """Return the folder with digests of large files."""
    return platformdirs.user_cache_path("nvembed") / "digests"


def load_sentence_transformer(
    model: str, *, max_tokens: int, device: str | None = None, dtype: str | None = None
) -> Any:
    """Load a folder or hub id with sentence-transformers, which reads at most ``max_tokens`` of a text."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError(
            f"{model} is a sentence-transformers model: pip install 'nvembed[eval]' to load it"
        ) from error
    try:
        loaded = SentenceTransformer(model, device=device, model_kwargs={"dtype": dtype} if dtype else None)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        if Path(model).is_dir():
            raise WeightsError(f"{model}: not a whole model of sentence-transformers: {reason}") from error
        raise DownloadError(
            f"{model}: no folder of that name, and not loaded from the hub ({reason}): pass a folder with "
            "the model, or try again online"
        ) from error
    loaded.max_seq_length = min(loaded.max_seq_length or max_tokens, max_tokens)
    return loaded


def encode_with(sentence_transformer: Any, texts: Sequence[str], prompt: str) -> np.ndarray:
    """Return float32 (n, d) unit rows of a model that ``load_sentence_transformer`` loaded."""
    vectors = sentence_transformer.encode(
        list(texts),
        prompt=prompt or None,
        batch_size=32 if sentence_transformer.device.type == "cpu" else 256,  # 32 leaves a GPU idle
        normalize_embeddings=True,
        show_progress_bar=False,
    )
    vectors = np.asarray(vectors, dtype=np.float32)
    # The library normalises in the model's own precision, which in bfloat16 leaves lengths of 1.003.
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _encoder(folder: Path, loading: Loading) -> Subject:
    from nvembed.encoder import Encoder
    from nvembed.weights.checkpoint import content_digest

    if loading.compiled:
        _keep_compiled()
    model = Encoder.from_pretrained(
        folder, device=loading.device, dtype=loading.dtype, compiled=loading.compiled
    )
    assert model.checkpoint is not None
    limit, own = min(loading.max_tokens, model.max_length), model.prompts

    def encode(texts: Sequence[str], prompt: str) -> Embeddings:
        return join(list(model.stream(texts, prompt=prompt, max_length=limit)), model.dim)

    return Subject(
        name=str(folder),
        fingerprint=model.fingerprint,
        content=content_digest(model.checkpoint, cache=_digests()),
        encode=encode,
        instructions=own is None,
        prompts={} if own is None else own.texts,
        default_prompt="" if own is None else own.plain,
        precision=model.dtype,
        max_tokens=limit,
        dim=model.dim,
        **_measures([*model.replicas[0].parameters(), *model.replicas[0].buffers()], model.checkpoint),
    )


def _sentence_transformer(folder: Path, loading: Loading) -> Subject:
    model = load_sentence_transformer(
        str(folder), max_tokens=loading.max_tokens, device=loading.device, dtype=loading.dtype
    )
    similarity = model.similarity_fn_name or "cosine"
    if similarity != "cosine" and not any(type(part).__name__ == "Normalize" for part in model):
        raise ConfigError(
            f"{folder} compares vectors by {similarity!r}; here they are compared by the cosine"
        )
    limit, dim = model.max_seq_length, model.get_embedding_dimension() or 0
    weights = list(model.parameters())

    def encode(texts: Sequence[str], prompt: str) -> Embeddings:
        if not texts:
            return join([], dim)
        whole = [prompt + text for text in texts]
        lengths = [len(ids) for ids in model.tokenizer(whole, truncation=False, verbose=False)["input_ids"]]
        tokens = np.array(lengths, dtype=np.int64)
        empty = np.array([not text or text.isspace() for text in texts], dtype=bool)
        return Embeddings(encode_with(model, texts, prompt), np.minimum(tokens, limit), tokens > limit, empty)

    own = model.prompts or {}
    default = own.get(model.default_prompt_name) or ""
    model.default_prompt_name = None  # the evaluation chooses: an empty prompt means none
    return Subject(
        name=str(folder),
        fingerprint=_hash_folder(folder),
        encode=encode,
        prompts=own,
        default_prompt=default,
        precision=str(weights[0].dtype).removeprefix("torch."),
        max_tokens=limit,
        dim=dim,
        **_measures(weights),
    )


def _measures(weights: list[Any], checkpoint: "Checkpoint | None" = None) -> dict[str, Any]:
    """Return size and device of a model as the fields of a ``Subject``; packed weights count as stored."""
    import torch

    device = weights[0].device

    def peak_since_last() -> int:
        peak = int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return peak

    cuda = device.type == "cuda"
    packed = checkpoint is not None and not all(weight.is_floating_point() for weight in weights)
    shapes = [tensor.shape for tensor in checkpoint.tensors.values()] if checkpoint and packed else []
    return {
        "size_bytes": sum(weight.nbytes for weight in weights),
        "num_parameters": sum(map(math.prod, shapes)) or sum(weight.numel() for weight in weights),
        "device": torch.cuda.get_device_name(device) if cuda else device.type,
        "peak_bytes": peak_since_last if cuda else None,
    }


def _hash_folder(folder: Path) -> str:
    """Hash the files that decide the vectors: weights, configuration, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.suffix in (".safetensors", ".bin", ".json", ".txt", ".model")
    ):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:32]


def symmetric_prompt(options: Prompt, own: "ModelPrompts | None") -> str:
    """Return the prompt of texts that are neither queries nor passages. Default: the model's own."""
    if own is not None and not any(value is not None for value in asdict(options).values()):
        return own.plain
    return prompts(**asdict(options), own=own)[0]


@dataclass
class Tally:
    """Counts of the texts that passed through ``counted``."""

    texts: int = 0
    tokens: int = 0
    cut: int = 0
    empty: int = 0
    reused: int = 0  # not counted in ``texts``

    def add_reused(self, count: int) -> None:
        self.reused += count

    def add(self, part: "Embeddings") -> None:
        self.texts += len(part.vectors)
        self.tokens += int(part.num_tokens.sum())
        self.cut += int(part.truncated.sum())
        self.empty += int(part.empty.sum())

    def message(self, seconds: float) -> str:
        speed = self.tokens / max(seconds, 1e-9)
        return f"{self.texts:,} texts, {self.tokens:,} tokens in {seconds:.1f} s ({speed:,.0f} tokens/s)"


def counted(parts: Iterable["Embeddings"], tally: Tally) -> Iterator[np.ndarray]:
    """Yield the vectors of each part and count texts, tokens, cuts and empty texts."""
    for part in parts:
        tally.add(part)
        yield part.vectors
