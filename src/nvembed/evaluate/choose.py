"""Several models on one set of documents and questions: how well each ranks, and what it costs.

With judgements, quality is nDCG@10 and recall@10. Without them it is agreement with a reference model: the
share of the first 10 documents that both rank first, and the rank correlation of all scores. A document's
score is that of its best passage.

Shapes: Q questions, P passages, D documents, E length of a vector.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvembed.errors import InputError
from nvembed.evaluate import record
from nvembed.evaluate.compare import DRAWS, paired_test
from nvembed.evaluate.outcome import Items, Prompts
from nvembed.evaluate.run import SIDES, own_prompts
from nvembed.evaluate.scores import scipy_stats, spearman
from nvembed.evaluate.subject import Subject
from nvembed.text.prompt import format_prompt
from nvembed.vectors.metric import Qrels, score_run
from nvembed.vectors.search import top_k

TOP = 10
QUESTIONS_AT_ONCE = 256  # their scores take 1 KiB a passage
WARM_UP = 8  # texts that are encoded before the clock starts


@dataclass(frozen=True)
class Material:
    """What every model ranks.

    Args:
        documents: ids.
        first_passages: (D,) the row of each document's first passage.
        questions: texts by id. Where ``own_document``, each is the text of the document with that id, which
            is left out of its ranking.
        instruction: for the questions, in models that take one.
    """

    documents: list[str]
    passages: list[str]
    first_passages: np.ndarray
    questions: dict[str, str]
    own_document: bool = False
    instruction: str = ""


@dataclass(frozen=True)
class Measurement:
    """What one model did: scores (Q, D) float32, and its cost. 0 is unknown, or none."""

    scores: np.ndarray
    dim: int = 0
    num_parameters: int = 0
    device: str = "cpu"
    precision: str = ""
    max_tokens: int | None = None
    tokens: int = 0
    texts_cut: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def tokens_per_second(self) -> float | None:
        """Of encoding the passages; None for a baseline without vectors."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


@dataclass(frozen=True)
class Quality:
    """Values of each question, in [0, 1], by the name of the measure; the first one is the main one."""

    questions: list[str]
    values: dict[str, np.ndarray]

    @property
    def main(self) -> str:
        return next(iter(self.values))

    def interval(self, name: str) -> tuple[float, float] | None:
        """Return bounds of the mean with 95% confidence, by a bootstrap; None of a single question."""
        values = self.values[name]
        if len(values) < 2:
            return None
        rng = np.random.default_rng(0)
        bounds = scipy_stats().bootstrap((values,), np.mean, n_resamples=DRAWS, method="percentile", rng=rng)
        return float(bounds.confidence_interval.low), float(bounds.confidence_interval.high)

    def p_value(self, other: "Quality") -> float:
        """Return the two-sided p of a paired permutation test of the main measure."""
        a, b = (Items("mean", each.questions, each.values[each.main]) for each in (self, other))
        return paired_test(a, b, rng=np.random.default_rng(0)).p


def measure(subject: Subject, material: Material) -> Measurement:
    """Score every document for every question; time the passages, after a few texts to warm up."""
    questions = list(material.questions.values())
    if subject.lexical is not None:
        scores_QP = np.zeros((len(questions), len(material.passages)), dtype=np.float32)
        scores, rows = subject.lexical(material.passages, questions, len(material.passages))
        np.put_along_axis(scores_QP, rows, scores.astype(np.float32), axis=1)
        return Measurement(best_passages(scores_QP, material))
    assert subject.encode is not None
    prompts = _prompts(subject, material)
    subject.encode(material.passages[:WARM_UP], prompts.corpus)
    record.peak_memory(subject, reset=True)
    start = time.perf_counter()
    encoded = subject.encode(material.passages, prompts.corpus)
    seconds = time.perf_counter() - start
    vectors_QE = subject.encode(questions, prompts.query).vectors
    scores_QD = np.concatenate(
        [
            best_passages(vectors_QE[first : first + QUESTIONS_AT_ONCE] @ encoded.vectors.T, material, first)
            for first in range(0, len(questions), QUESTIONS_AT_ONCE)
        ]
    )
    return Measurement(
        scores_QD,
        subject.dim,
        subject.num_parameters,
        subject.device,
        subject.precision,
        subject.max_tokens,
        tokens=int(encoded.num_tokens.sum()),
        texts_cut=int(encoded.truncated.sum()),
        seconds=seconds,
        peak_bytes=record.peak_memory(subject),
    )


def _prompts(subject: Subject, material: Material) -> Prompts:
    if not subject.instructions:
        query, corpus = (own_prompts(subject, (), "Retrieval", side).query for side in SIDES)
        return Prompts(corpus if material.own_document else query, corpus)
    return Prompts("" if material.own_document else format_prompt(material.instruction))


def best_passages(scores_QP: np.ndarray, material: Material, first: int = 0) -> np.ndarray:
    """Return scores (Q, D): of each document that of its best passage; ``first``: number of the first row."""
    scores_QD = np.maximum.reduceat(scores_QP, material.first_passages, axis=1)
    if material.own_document:
        row_of = {document: row for row, document in enumerate(material.documents)}
        ids = list(material.questions)[first : first + len(scores_QD)]
        scores_QD[np.arange(len(ids)), [row_of[id_] for id_ in ids]] = -np.inf
    return np.asarray(scores_QD)


def judged(measurement: Measurement, material: Material, qrels: Qrels) -> Quality:
    """Return nDCG@10 and recall@10 of the questions that have judgements."""
    run = {}
    for question, scores_D in zip(material.questions, measurement.scores, strict=True):
        best = _best(scores_D)
        run[question] = {material.documents[row]: float(scores_D[row]) for row in best}
    table = score_run(run, qrels, (TOP,))
    ids = list(table[f"ndcg@{TOP}"])
    names = {f"nDCG@{TOP}": f"ndcg@{TOP}", f"recall@{TOP}": f"recall@{TOP}"}
    return Quality(ids, {name: np.array([table[key][i] for i in ids]) for name, key in names.items()})


def agreement(measurement: Measurement, reference: Measurement, material: Material) -> Quality:
    """Return the overlap of the first 10 documents, and the rank correlation of the scores of all."""
    overlaps, correlations = [], []
    for own_D, other_D in zip(measurement.scores, reference.scores, strict=True):
        seen_D = np.isfinite(own_D)
        best, other = set(_best(own_D)), set(_best(other_D))
        overlaps.append(len(best & other) / max(1, len(other)))
        correlations.append(spearman(own_D[seen_D], other_D[seen_D]))
    values = {f"overlap@{TOP}": np.array(overlaps), "correlation": np.array(correlations)}
    return Quality(list(material.questions), values)


def _best(scores_D: np.ndarray) -> list[int]:
    """Return the rows of the best documents, the document itself left out."""
    scores, rows = top_k(np.ones((1, 1)), [np.nan_to_num(scores_D, neginf=-1e30)[:, None]], TOP)
    return [int(row) for score, row in zip(scores[0], rows[0], strict=True) if score > -1e29]


def check_material(material: Material) -> None:
    """Refuse what cannot be ranked.

    Raises:
        InputError: fewer than 2 documents, or no question.
    """
    if len(material.documents) < 2 or not material.questions:
        raise InputError(
            f"{len(material.documents):,} documents and {len(material.questions):,} questions; expected at "
            "least 2 documents and 1 question"
        )


def first_rows(passages_of_documents: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the row of each document's first passage, where all passages stand in one list."""
    sizes = [len(passages) for passages in passages_of_documents]
    return np.cumsum([0, *sizes[:-1]])
