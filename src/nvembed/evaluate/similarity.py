"""STS, pair classification and summarisation: does similarity agree with people?

Shapes: N pairs, D hidden size.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nvembed.errors import InputError, MissingExtraError
from nvembed.evaluate import scores
from nvembed.evaluate.outcome import Embed, Items, Outcome, numbered
from nvembed.evaluate.tasks import Pairs, Summaries
from nvembed.vectors.metric import unit


def sts(data: Pairs, embed: Embed, prompt: str) -> Outcome:
    """Correlate the similarity of two texts with a judgement. Main score: Spearman's rho of the cosine."""
    found: dict[str, float] = {}
    similarities = _similarities(embed(data.text1, prompt), embed(data.text2, prompt))
    for name, value_N in similarities.items():
        found[f"{name}_pearson"] = scores.pearson(data.score, value_N)
        found[f"{name}_spearman"] = scores.spearman(data.score, value_N)
    found["pearson"], found["spearman"] = found["cosine_pearson"], found["cosine_spearman"]
    items = Items("spearman", numbered(data.score), similarities["cosine"], data.score)
    return Outcome(found, "cosine_spearman", items)


def pair_classification(data: Pairs, embed: Embed, prompt: str) -> Outcome:
    """Tell like pairs from unlike ones by a threshold on similarity.

    Main score: the best average precision of any similarity (``max_ap``).
    """
    found: dict[str, float] = {}
    similarities = _similarities(embed(data.text1, prompt), embed(data.text2, prompt))
    for name, value_N in similarities.items():
        f1, precision, recall = scores.best_f1(data.score, value_N)
        found[f"{name}_accuracy"] = scores.best_accuracy(data.score, value_N)
        found |= {f"{name}_f1": f1, f"{name}_precision": precision, f"{name}_recall": recall}
        found[f"{name}_ap"] = scores.average_precision(data.score, value_N)
    for metric in ("accuracy", "f1", "precision", "recall", "ap"):
        found[f"similarity_{metric}"] = found[f"dot_{metric}"] = found[f"cosine_{metric}"]
        found[f"max_{metric}"] = max(found[f"{name}_{metric}"] for name in similarities)
    best = max(similarities, key=lambda name: found[f"{name}_ap"])
    items = Items("average_precision", numbered(data.score), similarities[best], data.score)
    return Outcome(found, "max_ap", items)


def _similarities(a_ND: np.ndarray, b_ND: np.ndarray) -> dict[str, np.ndarray]:
    """Cosine and two distances, negated: larger is closer. On unit rows the dot product is the cosine.

    ``cos = 1 - |a - b|^2 / 2``: equal vectors get exactly 1, where a sum of products leaves a rounding error
    that would put equal pairs in an order.
    """
    a_ND, b_ND = unit(a_ND), unit(b_ND)
    difference_ND = (a_ND - b_ND).astype(np.float64)
    squared_N: np.ndarray = np.sum(np.square(difference_ND), axis=1)
    return {
        "cosine": np.asarray(1 - squared_N / 2),
        "manhattan": np.negative(np.sum(np.abs(difference_ND), axis=1)),
        "euclidean": np.negative(np.sqrt(squared_N)),
    }


def summarization(data: Summaries, embed: Embed, prompt: str) -> Outcome:
    """Correlate human judgement of machine summaries with their largest cosine to any human summary.

    Main score: Spearman's rho, averaged over source texts. A text whose summaries all have one cosine, or one
    judgement, has no correlation and is left out, as in mteb.

    ``cosine_spearman_with_p`` is what MTEB English v1 publishes as SummEval: its evaluator averages the
    coefficient and the p-value of scipy's result together (mteb, issue 1156).
    """
    human = np.split(embed([s for row in data.human for s in row], prompt), _ends(data.human))
    machine = np.split(embed([s for row in data.machine for s in row], prompt), _ends(data.machine))
    rows: list[tuple[int, float, float, float]] = []
    for i, gold in enumerate(data.relevance):
        best = (machine[i] @ human[i].T).max(axis=1).astype(np.float64)
        if len(np.unique(gold)) > 1 and len(np.unique(best)) > 1:
            rho = scores.spearman(gold, best)
            rows.append((i, rho, scores.pearson(gold, best), _p_value(rho, len(gold))))
    if not rows:
        raise InputError("no text has summaries of different judgement: nothing can be correlated")
    ids, rho_N, r_N, p_N = (np.array(column) for column in zip(*rows, strict=True))
    found = {"cosine_spearman": float(rho_N.mean()), "cosine_pearson": float(r_N.mean())}
    found |= {"spearman": found["cosine_spearman"], "pearson": found["cosine_pearson"]}
    found["cosine_spearman_with_p"] = float((rho_N.mean() + p_N.mean()) / 2)
    return Outcome(found, "cosine_spearman", Items("mean", [str(i) for i in ids], rho_N))


def _ends(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    return np.cumsum([len(row) for row in rows])[:-1]


def _p_value(rho: float, n: int) -> float:
    """Two-sided p-value of Spearman's rho by Student's t with n - 2 degrees of freedom, as scipy has it."""
    try:
        from scipy.special import stdtr
    except ImportError as error:
        raise MissingExtraError("summarisation needs scipy: pip install 'nvembed[eval]'") from error
    if n < 3:
        return 1.0
    if abs(rho) >= 1:
        return 0.0
    return float(2 * stdtr(n - 2, -abs(rho) * math.sqrt((n - 2) / (1 - rho * rho))))
