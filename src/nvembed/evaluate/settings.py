"""MTEB's protocol and the published scores, read from recipes."""

from functools import cache
from typing import Literal

from pydantic import Field

from nvembed.errors import InputError
from nvembed.files import data_path
from nvembed.recipe import Recipe, nearest, read_recipe


class _Retrieval(Recipe):
    cutoffs: tuple[int, ...]
    top_k: int


class _Classification(Recipe):
    samples_per_label: int
    experiments: int
    max_iterations: int
    folds: int


class _Clustering(Recipe):
    batch_size: int


class TaskSettings(Recipe):
    """The differences of one MTEB task from the protocol."""

    samples_per_label: int | None = Field(default=None, ge=1)
    skip_identical_ids: bool = False  # each query is also a passage, under its own id


class KnownData(Recipe):
    """Data that were once compared with those of an MTEB task; ``digest`` is ``tasks.content_digest``."""

    digest: str
    size: int  # passages, pairs or texts; data of another size need no digest
    mteb: str
    test_set: Literal["identical", "near", "other"]


class Protocol(Recipe):
    """``evaluation.toml`` as a record."""

    seed: int
    max_tokens: int
    retrieval: _Retrieval
    classification: _Classification
    clustering: _Clustering
    folder: dict[str, str]  # name of a folder -> the MTEB task that users keep under that name
    task: dict[str, TaskSettings]  # MTEB task -> settings
    data: tuple[KnownData, ...]


class _Scores(Recipe):
    published: dict[str, dict[str, dict[str, float]]] = Field(min_length=1)


@cache
def protocol() -> Protocol:
    return read_recipe(data_path("recipes") / "nv_embed_v2" / "evaluation.toml", Protocol)


def published_scores(model: str) -> dict[str, dict[str, float]]:
    """Return category -> MTEB task -> published score, 0 to 100.

    Raises:
        InputError: no published scores are known for that model.
    """
    known = _scores().published
    if model not in known:
        raise InputError(f"no published scores of {model!r}: {nearest(model, known)}")
    return known[model]


def category_of(mteb_task: str) -> str | None:
    """Return the MTEB category of a task that has a published score."""
    for categories in _scores().published.values():
        for category, scores in categories.items():
            if mteb_task in scores:
                return category
    return None


@cache
def _scores() -> _Scores:
    return read_recipe(data_path("recipes") / "nv_embed_v2" / "scores.toml", _Scores)
