"""Known weights: recognised by size and sha256, their licence, and the answer their model card gives."""

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
    """recipes/nv_embed_v2/files.toml: what was released, and under which licence."""

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
    scores_v1: tuple[tuple[float, ...], ...]
    tolerance: Tolerance


@dataclass(frozen=True)
class Answer:
    """What a model answered on the card's example, in the units of its scores."""

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
    """Say whether ``folder`` holds the known shards, without reading them.

    Returns ``sha256`` where the hub's cache says so (it names each file by its hash), ``size`` where only
    the sizes agree, ``None`` otherwise.
    """
    hashes = []
    for file in known.files:
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return None
        hashes.append(_hash_in_name(path) == file.sha256)
    return "sha256" if all(hashes) else "size"


def expected_sha256(path: Path, known: KnownWeights) -> str | None:
    """Return the sha256 a file must have: as released, else as the hub's cache names it."""
    for file in known.files:
        if path.name == file.name and path.stat().st_size == file.size_bytes:
            return file.sha256
    return _hash_in_name(path)


def licence_of(
    folder: Path, config: ModelConfig | None, evidence: Evidence | None, known: KnownWeights
) -> tuple[Literal["pass", "warn", "skip"], str]:
    """Return ``warn`` for a licence that needs care, ``skip`` for an unknown one, and what to say of it."""
    models = (known.model, *known.same_licence)
    inherits = f"{known.licence}: not for commercial use; weights derived from them inherit it"
    if evidence == "sha256":
        return "warn", f"these are the weights of {known.model}, {inherits}"
    if evidence == "size":
        return "warn", f"their sizes are those of {known.model} (--hash makes sure), {inherits}"
    card = _front_matter(folder / "README.md")
    origin = next((model for model in models if model in card), None)
    if origin is not None:
        return "warn", f"the model card names {origin} as their origin, {inherits}"
    if config is not None and config == NV_EMBED_V2:
        return "warn", (
            f"unknown weights of exactly NV-Embed's sizes: if they come from {' or '.join(models)}, saved "
            f"again or changed, they are {known.licence}, not for commercial use"
        )
    stated = re.search(r"^license:\s*(\S+)", card, re.MULTILINE)
    if stated is not None:
        return "pass", f"{stated[1]}, says the model card here"
    return "skip", "unknown: neither these weights nor a model card say; ask where they come from"


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
    """The hub's cache holds links to files that are named by their sha256."""
    name = path.resolve().name
    return name if _SHA256.fullmatch(name) else None


def _front_matter(card: Path) -> str:
    """The YAML between the first two lines of dashes of a model card, as text; empty without one."""
    try:
        text = card.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.match(r"---[ \t\r]*\n(.*?)\n---", text, re.DOTALL)
    return found[1] if found else ""
