"""MTEB's protocol and the published scores, read from the recipe."""

from functools import cache

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


class _ClusteringV2(Recipe):
    fraction: float
    documents: int
    experiments: int
    batch_size: int


class TaskSettings(Recipe):
    """What differs from the protocol for one task."""

    mteb: str | None = None  # the MTEB task that a local folder holds
    identical: bool = True  # whether its test set is that task's, text by text
    samples_per_label: int | None = None
    skip_identical_ids: bool = False  # a query stands in the corpus under its own id


class Protocol(Recipe):
    """``evaluation.toml`` as a record."""

    seed: int
    max_tokens: int
    retrieval: _Retrieval
    classification: _Classification
    clustering: _Clustering
    clustering_v2: _ClusteringV2
    task: dict[str, TaskSettings]

    def of(self, task: str) -> TaskSettings:
        return self.task.get(task, TaskSettings())


class _Scores(Recipe):
    published: dict[str, dict[str, dict[str, float]]] = Field(min_length=1)


@cache
def protocol() -> Protocol:
    return read_recipe(data_path("recipes") / "nv_embed_v2" / "evaluation.toml", Protocol)


def published_scores(model: str) -> dict[str, dict[str, float]]:
    """Return category -> MTEB task -> published score, 0 to 100.

    Raises:
        InputError: no scores of that model are known; the message names the nearest.
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
