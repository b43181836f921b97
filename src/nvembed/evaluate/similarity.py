"""STS, pair classification, bitext mining, summarisation: the agreement of similarity with human judgement.

Shapes: N pairs, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from nvembed.errors import InputError
from nvembed.evaluate import scores
from nvembed.evaluate.outcome import Embed, Items, TaskOutcome, numbered
from nvembed.evaluate.tasks import Bitext, Pairs, Summaries
from nvembed.vectors.metric import paired_cosine
from nvembed.vectors.search import top_k


def sts(data: Pairs, embed: Embed, prompt: str) -> TaskOutcome:
    """Correlate the similarity of two texts with a judgement. Main score: Spearman's rho of the cosine."""
    values: dict[str, float] = {}
    similarities = _similarities(embed(data.text1, prompt), embed(data.text2, prompt))
    for name, value_N in similarities.items():
        values[f"{name}_pearson"] = scores.pearson(data.score, value_N)
        values[f"{name}_spearman"] = scores.spearman(data.score, value_N)
    values["pearson"], values["spearman"] = values["cosine_pearson"], values["cosine_spearman"]
    items = Items("spearman", numbered(data.score), similarities["cosine"], data.score)
    return TaskOutcome(values, "cosine_spearman", items)


def pair_classification(data: Pairs, embed: Embed, prompt: str) -> TaskOutcome:
    """Separate similar pairs from others by a threshold on similarity.

    Main score: the best average precision of any similarity (``max_ap``).
    """
    values: dict[str, float] = {}
    similarities = _similarities(embed(data.text1, prompt), embed(data.text2, prompt))
    for name, value_N in similarities.items():
        f1, precision, recall = scores.best_f1(data.score, value_N)
        values[f"{name}_accuracy"] = scores.best_accuracy(data.score, value_N)
        values |= {f"{name}_f1": f1, f"{name}_precision": precision, f"{name}_recall": recall}
        values[f"{name}_ap"] = scores.average_precision(data.score, value_N)
    for metric in ("accuracy", "f1", "precision", "recall", "ap"):
        values[f"similarity_{metric}"] = values[f"dot_{metric}"] = values[f"cosine_{metric}"]
        values[f"max_{metric}"] = max(values[f"{name}_{metric}"] for name in similarities)
    best = max(similarities, key=lambda name: values[f"{name}_ap"])
    items = Items("average_precision", numbered(data.score), similarities[best], data.score)
    return TaskOutcome(values, "max_ap", items)


def _similarities(a_ND: np.ndarray, b_ND: np.ndarray) -> dict[str, np.ndarray]:
    """Return the cosine (of unit rows, the dot product) and two negated distances: larger is closer."""
    difference_ND = (a_ND - b_ND).astype(np.float64)
    return {
        "cosine": paired_cosine(a_ND, b_ND),
        "manhattan": np.negative(np.sum(np.abs(difference_ND), axis=1)),
        "euclidean": np.negative(np.sqrt(np.sum(np.square(difference_ND), axis=1))),
    }


def bitext_mining(data: Bitext, embed: Embed, prompt: str) -> TaskOutcome:
    """Find the translation of each ``text1`` among all ``text2``, by cosine.

    Main score: F1 of the numbers of the translations as classes, weighted by their counts.
    """
    guess_N = top_k(embed(data.text1, prompt), [embed(data.text2, prompt)], 1)[1][:, 0]
    gold_N = np.arange(len(guess_N))
    weighted = scores.classification_scores(gold_N, guess_N)
    values = {name: weighted[f"{name}_weighted"] for name in ("precision", "recall", "f1")}
    values["accuracy"] = weighted["accuracy"]
    f1_N = 2 * (guess_N == gold_N) / (1 + np.bincount(guess_N, minlength=len(gold_N)))
    return TaskOutcome(values, "f1", Items("mean", numbered(gold_N), f1_N))


def summarization(data: Summaries, embed: Embed, prompt: str) -> TaskOutcome:
    """Correlate human judgements of machine summaries with their largest cosine to any human summary.

    Main score: Spearman's rho, averaged over source texts. A text whose summaries all have the same cosine or
    the same judgement has no correlation and is left out, as in mteb.

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
            rows.append((i, rho, scores.pearson(gold, best), scores.spearman_p_value(gold, best)))
    if not rows:
        raise InputError("the judgements of each text's summaries are all equal: nothing can be correlated")
    ids, rho_N, r_N, p_N = (np.array(column) for column in zip(*rows, strict=True))
    values = {"cosine_spearman": float(rho_N.mean()), "cosine_pearson": float(r_N.mean())}
    values |= {"spearman": values["cosine_spearman"], "pearson": values["cosine_pearson"]}
    values["cosine_spearman_with_p"] = float((rho_N.mean() + p_N.mean()) / 2)
    return TaskOutcome(values, "cosine_spearman", Items("mean", [str(i) for i in ids], rho_N))


def _ends(rows: Sequence[Sequence[Any]]) -> np.ndarray:
    return np.cumsum([len(row) for row in rows])[:-1]
