"""Ranking metrics against a slow oracle and against trec_eval itself."""

import math

import numpy as np
import pytest
import pytrec_eval

from nvembed.errors import InputError, NumericsError
from nvembed.vectors.metric import cosine, paired_cosine, ranked, score_run, unit

CUTOFFS = (1, 3, 10, 100)


def random_task(seed: int, *, ties: bool) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    rng = np.random.default_rng(seed)
    passages = [f"p{i}" for i in range(60)]
    run: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, int]] = {}
    for q in range(20):
        chosen = rng.permutation(passages)[: rng.integers(1, 50)]
        scores = rng.integers(0, 5, len(chosen)) if ties else rng.normal(size=len(chosen))
        run[f"q{q}"] = {str(p): float(s) for p, s in zip(chosen, scores, strict=True)}
        judged = rng.permutation(passages)[: rng.integers(1, 30)]
        qrels[f"q{q}"] = {
            str(p): int(g) for p, g in zip(judged, rng.integers(-1, 4, len(judged)), strict=True)
        }
    return run, qrels


def slow_metrics(scores: dict[str, float], grades: dict[str, int], k: int) -> dict[str, float]:
    """The textbook definitions, one loop each."""
    order = sorted(scores, key=lambda p: (scores[p], p), reverse=True)[:k]
    relevant = {p for p, g in grades.items() if g > 0}
    if not relevant:
        return dict.fromkeys(("ndcg", "map", "recall", "precision", "mrr"), 0.0)
    dcg = ideal = total = mrr = 0.0
    found = 0
    for rank, pid in enumerate(order, start=1):
        dcg += max(0, grades.get(pid, 0)) / math.log2(rank + 1)
        if pid in relevant:
            found += 1
            total += found / rank
            mrr = mrr or 1 / rank
    for rank, grade in enumerate(sorted((grades[p] for p in relevant), reverse=True)[:k], start=1):
        ideal += grade / math.log2(rank + 1)
    n = len(relevant)
    return {"ndcg": dcg / ideal, "map": total / n, "recall": found / n, "precision": found / k, "mrr": mrr}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_slow_oracle(seed: int, ties: bool) -> None:
    run, qrels = random_task(seed, ties=ties)
    got = score_run(run, qrels, CUTOFFS)
    for qid in run:
        for k in CUTOFFS:
            for name, value in slow_metrics(run[qid], qrels[qid], k).items():
                assert got[f"{name}@{k}"][qid] == pytest.approx(value, abs=1e-12), (name, k, qid)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_trec_eval(seed: int, ties: bool) -> None:
    run, qrels = random_task(seed, ties=ties)
    got = score_run(run, qrels, CUTOFFS)
    cuts = ",".join(map(str, CUTOFFS))
    ours = {"ndcg_cut": "ndcg", "map_cut": "map", "recall": "recall", "P": "precision"}
    oracle = pytrec_eval.RelevanceEvaluator(qrels, {f"{name}.{cuts}" for name in ours}).evaluate(run)
    assert oracle.keys() == run.keys()
    for qid, values in oracle.items():
        for theirs, name in ours.items():
            for k in CUTOFFS:
                assert got[f"{name}@{k}"][qid] == pytest.approx(values[f"{theirs}_{k}"], abs=1e-12)
    for k in CUTOFFS:  # trec_eval has no mrr@k: cut the run by hand
        cut = {qid: {p: run[qid][p] for p in ranked(run[qid])[:k]} for qid in run}
        oracle = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(cut)
        for qid, values in oracle.items():
            assert got[f"mrr@{k}"][qid] == pytest.approx(values["recip_rank"], abs=1e-12)


def test_scores_tie_as_float32_like_trec_eval() -> None:
    """Two scores that differ only beyond float32 tie in trec_eval, which then takes the larger id first."""
    run = {"q": {"a": 1.0 + 1e-12, "b": 1.0}}
    assert ranked(run["q"]) == ["b", "a"]
    oracle = pytrec_eval.RelevanceEvaluator({"q": {"a": 1}}, {"recip_rank"}).evaluate(run)
    assert score_run(run, {"q": {"a": 1}}, [10])["mrr@10"]["q"] == oracle["q"]["recip_rank"] == 0.5


def test_queries_are_those_of_both_sides() -> None:
    got = score_run({"q1": {"a": 1.0}, "q2": {"a": 1.0}}, {"q2": {"a": 1}, "q3": {"a": 1}}, [10])
    assert got["ndcg@10"] == {"q2": 1.0}


@pytest.mark.parametrize(("cutoffs", "score"), [([], 1.0), ([0], 1.0), ([10], math.nan), ([10], math.inf)])
def test_refusals(cutoffs: list[int], score: float) -> None:
    with pytest.raises(InputError, match=r"expected (cutoffs|finite scores)"):
        score_run({"q": {"a": score}}, {"q": {"a": 1}}, cutoffs)


def test_cosine_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(4, 7)), rng.normal(size=(5, 7))
    slow = [[sum(x * y) / math.sqrt(sum(x * x) * sum(y * y)) for y in b] for x in a]
    np.testing.assert_allclose(cosine(a, b), slow, atol=1e-12)
    np.testing.assert_allclose(paired_cosine(a, b[:4]), np.diag(np.array(slow)), atol=1e-12)
    assert cosine(a.astype(np.float16), b).dtype == np.float64
    assert cosine(a.astype(np.float16), b.astype(np.float32)).dtype == np.float32


def test_vectors_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="vectors have 3 and 2 dimensions; expected as many: embed"):
        cosine(np.ones((1, 3)), np.ones((4, 2)))


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_vector_without_direction_is_refused(bad: float) -> None:
    with pytest.raises(NumericsError, match=r"1 of 2 vectors are zero or not finite .first: row 1."):
        unit(np.array([[1.0, 0.0], [bad, bad]]))
