"""Hard negatives: passages that a teacher ranks high for a query, and that do not answer it.

Mining has three steps: *score* (the teacher's best passages, and its scores of the known positives), *filter*
(a passage too close to a positive is probably an unlabelled positive) and *sample*.

    naive        every candidate
    shifted      all but the first N
    absolute     score below T
    margin       score below p - m,      p the lowest score of a known positive
    percentage   score below alpha * p   (NV-Embed: alpha = 0.95)

Shapes: Q queries, K candidates of each.  Paper: section 4.1.1; NV-Retriever (2407.15831).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from nvembed.errors import InputError, NumericsError
from nvembed.recipe import Recipe

Method = Literal["naive", "shifted", "absolute", "margin", "percentage"]
Sampling = Literal["top", "random", "top1_random"]


class Rule(Recipe):
    """``[rule]``: which candidates become hard negatives."""

    method: Method
    """Which candidates are kept: naive, shifted, absolute, margin or percentage."""
    threshold: float = 0.0
    """N, T, m or alpha of the method; naive has none."""
    negatives: int = Field(gt=0)
    """Most hard negatives of a query."""
    depth: int = Field(gt=0)
    """How many candidates of each query the teacher returns."""
    sampling: Sampling = "top"
    """Which of the kept candidates are taken: the best, random ones, or the best and random ones."""
    pool: int = Field(default=0, ge=0)
    """Random sampling draws from the first ``pool`` kept candidates; 0: from all."""
    top_up: bool = False
    """Add random passages where fewer than ``negatives`` are kept."""


@dataclass(frozen=True)
class Candidates:
    """A teacher's best passages for some queries, with scores."""

    scores: np.ndarray
    """(Q, K) float32, best first."""
    ids: np.ndarray
    """(Q, K) int64, numbers of passages."""
    positive: np.ndarray
    """(Q,) float32: the lowest score of a query's known positives."""


# (queries, numbers of each query's known positives) -> candidates
Teacher = Callable[[Sequence[str], Sequence[Sequence[int]]], Candidates]


def limit(method: Method, threshold: float, positive_Q: np.ndarray) -> np.ndarray:
    """Return the score (Q,) below which a candidate is kept.

    Differs: ``alpha * p`` is above p if p is negative. ``p - (1 - alpha) * |p|`` is equal to it for
    positive p, and always below p.
    """
    if method == "absolute":
        return np.full(len(positive_Q), threshold, dtype=np.float32)
    if method == "margin":
        return np.asarray(positive_Q - np.float32(threshold))
    if method == "percentage":
        return np.asarray(positive_Q - np.float32(1 - threshold) * np.abs(positive_Q))
    return np.full(len(positive_Q), np.inf, dtype=np.float32)


def keep(candidates: Candidates, rule: Rule, forbidden: Sequence[set[int]]) -> np.ndarray:
    """Return which candidates (Q, K) the rule keeps; ``forbidden`` are each query's known positives.

    ``shifted`` counts ranks among candidates that are not forbidden: a positive takes no rank.
    """
    rows = zip(candidates.ids.tolist(), forbidden, strict=True)
    known = np.array([[number in wrong for number in row] for row, wrong in rows], dtype=bool)
    known = known.reshape(candidates.ids.shape)  # no candidates at all would lose their second axis
    below = limit(rule.method, rule.threshold, candidates.positive)
    kept = ~known & (candidates.scores < below[:, None])
    if rule.method == "shifted":
        kept &= np.cumsum(~known, axis=1) > int(rule.threshold)
    return kept


def sample(kept: np.ndarray, rule: Rule, rng: np.random.Generator, *, count: int) -> np.ndarray:
    """Return the places (rising) of up to ``count`` candidates for one query, of those ``kept`` (K,) allows.

    Paper: NV-Retriever (2407.15831): the best; random ones of the best ``pool``; or the best one and random
    ones after it.
    """
    places = np.flatnonzero(kept)
    count = min(count, len(places))
    if rule.sampling == "top":
        return places[:count]
    places = places[: max(rule.pool, count)] if rule.pool else places
    if rule.sampling == "random":
        return np.sort(rng.choice(places, count, replace=False))
    rest = rng.choice(places[1:], max(count - 1, 0), replace=False)
    return np.sort(np.concatenate([places[:1], rest])).astype(np.int64)


def fill(
    chosen: Sequence[int], count: int, forbidden: set[int], num_passages: int, rng: np.random.Generator
) -> list[int]:
    """Return up to ``count - len(chosen)`` random passages that are neither chosen nor forbidden."""
    excluded = forbidden | set(chosen)
    count = min(count - len(chosen), num_passages - len(excluded))
    numbers: list[int] = []
    while len(numbers) < count:
        number = int(rng.integers(num_passages))
        if number not in excluded:
            excluded.add(number)
            numbers.append(number)
    return numbers


def check_rule(rule: Rule) -> None:
    """Refuse a rule whose values do not fit each other.

    Raises:
        InputError: the message names the value and its range.
    """
    ranges: dict[str, tuple[float, float]] = {
        "naive": (0, 0),
        "shifted": (1, rule.depth - 1),
        "absolute": (-np.inf, np.inf),
        "margin": (0, np.inf),
        "percentage": (0, 1),
    }
    low, high = ranges[rule.method]
    if not low <= rule.threshold <= high:
        raise InputError(f"threshold of {rule.method}: expected {low:g} to {high:g}, got {rule.threshold:g}")
    if rule.method == "shifted" and rule.threshold != int(rule.threshold):
        raise InputError(f"threshold of shifted: expected a whole number of ranks, got {rule.threshold:g}")
    if rule.depth < rule.negatives:
        raise InputError(
            f"depth is {rule.depth}: expected at least {rule.negatives}, the number of negatives"
        )
    if rule.pool and (rule.sampling == "top" or rule.pool < rule.negatives):
        least = f"with random sampling at least the {rule.negatives} negatives"
        raise InputError(f"pool is {rule.pool}: expected 0, or {least}")


def check_candidates(candidates: Candidates, num_queries: int, num_passages: int) -> None:
    """Check what a teacher returned.

    Raises:
        NumericsError: a score that is not finite.
        InputError: shapes that do not fit, or a passage that does not exist.
    """
    shape = candidates.ids.shape
    if len(shape) != 2 or shape[0] != num_queries or candidates.scores.shape != shape:
        got = f"scores {candidates.scores.shape} and ids {shape}"
        raise InputError(f"a teacher returned {got}; expected ({num_queries}, K) for both")
    if not (np.isfinite(candidates.scores).all() and np.isfinite(candidates.positive).all()):
        raise NumericsError("a teacher's score is not finite: check the teacher before mining with it")
    if shape[1] and not 0 <= candidates.ids.min() <= candidates.ids.max() < num_passages:
        raise InputError(f"a teacher names passage {candidates.ids.max()}; there are {num_passages:,}")
