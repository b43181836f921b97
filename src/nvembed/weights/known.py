"""The released weights: their sizes and sha256, their licence, and the scores in their model card."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nvembed.files import data_path
from nvembed.model.config import NV_EMBED_V2, ModelConfig
from nvembed.recipe import Recipe, read_recipe

Encode = Callable[[Sequence[str], str], np.ndarray]
Evidence = Literal["sha256", "size"]

_SHA256 = re.compile("[0-9a-f]{64}")


class KnownFile(Recipe):
    name: str
    size_bytes: int
    sha256: str


class KnownWeights(Recipe):
    """recipes/nv_embed_v2/files.toml: the released files and their licence."""

    model: str
    licence: str
    same_licence: tuple[str, ...]
    num_tensors: int
    total_bytes: int
    files: tuple[KnownFile, ...]


class Tolerance(Recipe):
    float32: float
    float16: float
    bfloat16: float


class KnownAnswer(Recipe):
    """recipes/nv_embed_v2/known_answer.toml: 100 x cosine of each query with each passage."""

    model: str
    prompt: str
    queries: tuple[str, ...]
    passages: tuple[str, ...]
    scores_v2: tuple[tuple[float, ...], ...]
    tolerance: Tolerance


@dataclass(frozen=True)
class Answer:
    """A model's scores of the model card's example."""

    scores: list[list[float]]
    expected: list[list[float]]
    largest_difference: float
    tolerance: float

    @property
    def right(self) -> bool:
        return self.largest_difference <= self.tolerance  # NaN is not


def known_weights() -> KnownWeights:
    return read_recipe(data_path("recipes") / "nv_embed_v2" / "files.toml", KnownWeights)


def known_answer() -> KnownAnswer:
    return read_recipe(data_path("recipes") / "nv_embed_v2" / "known_answer.toml", KnownAnswer)


def recognise(folder: Path, known: KnownWeights) -> Evidence | None:
    """Return how ``folder`` was recognised as the released weights, without reading them; None if it was not.

    ``sha256``: the hub's cache names the files by their hashes, which match. ``size``: only the sizes match.
    """
    hashes = []
    for file in known.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return None
        hashes.append(_hash_in_name(path) == file.sha256)
    return "sha256" if all(hashes) else "size"


def expected_sha256(path: Path, known: KnownWeights) -> str | None:
    """Return the sha256 that a file must have: as released, or as the hub's cache names it."""
    for file in known.files:
        if path.name == file.name and path.stat().st_size == file.size_bytes:
            return file.sha256
    return _hash_in_name(path)


def licence_of(
    folder: Path, config: ModelConfig | None, evidence: Evidence | None, known: KnownWeights
) -> tuple[Literal["pass", "warn", "skip"], str]:
    """Return ``warn`` for a restrictive licence or ``skip`` for an unknown one, and a description."""
    models = (known.model, *known.same_licence)
    inherits = f"{known.licence}: not for commercial use; weights derived from them inherit it"
    if evidence == "sha256":
        return "warn", f"these are the weights of {known.model}, {inherits}"
    if evidence == "size":
        return "warn", f"their sizes are those of {known.model} (verify with --hash), {inherits}"
    card = _front_matter(folder / "README.md")
    origin = next((model for model in models if model in card), None)
    if origin is not None:
        return "warn", f"the model card names {origin} as the origin, {inherits}"
    if config is not None and config == NV_EMBED_V2:
        return "warn", (
            f"unknown weights with exactly NV-Embed's sizes: if they are derived from {' or '.join(models)}, "
            f"their licence is {known.licence}, not for commercial use"
        )
    stated = re.search(r"^license:\s*(\S+)", card, re.MULTILINE)
    if stated is not None:
        return "pass", f"{stated[1]}, according to the model card"
    return "skip", "unknown: the folder has no model card with a licence; ask the author of the weights"


def ask(encode: Encode, dtype: Literal["float32", "float16", "bfloat16"]) -> Answer:
    """Encode the card's queries and passages and compare their scores with the published ones."""
    known = known_answer()
    queries = encode(known.queries, known.prompt)
    passages = encode(known.passages, "")
    scores = 100.0 * queries.astype(np.float64) @ passages.astype(np.float64).T
    expected = np.array(known.scores_v2)
    return Answer(
        scores=scores.tolist(),
        expected=expected.tolist(),
        largest_difference=float(np.abs(scores - expected).max()),
        tolerance=getattr(known.tolerance, dtype),
    )


def _hash_in_name(path: Path) -> str | None:
    """Return the sha256 that the hub's cache names a file by, or None."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def _front_matter(card: Path) -> str:
    """Return the YAML header of a model card as text, or an empty string."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    match = re.match(r"---[ \t\r]*\n(.*?)\n---", text, re.DOTALL)
    return match[1] if match else ""
