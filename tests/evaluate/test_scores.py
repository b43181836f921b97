"""Statistics of whole tasks: slow oracles, scipy and scikit-learn."""

import math
import warnings

import numpy as np
import pytest

from nvembed.evaluate import scores

sklearn = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")


def sample(seed: int, *, ties: bool, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 6, n).astype(float) if ties else rng.normal(size=n)
    return x, x + rng.normal(size=n) if not ties else rng.integers(0, 6, n).astype(float)


def slow_ranks(x: np.ndarray) -> list[float]:
    return [sum(1 for b in x if b < a) + (sum(1 for b in x if b == a) + 1) / 2 for a in x]


def slow_pearson(x: list[float], y: list[float]) -> float:
    mx, my = math.fsum(x) / len(x), math.fsum(y) / len(y)
    top = math.fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(math.fsum((a - mx) ** 2 for a in x) * math.fsum((b - my) ** 2 for b in y))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_correlations(seed: int, ties: bool) -> None:
    x, y = sample(seed, ties=ties)
    assert scores.pearson(x, y) == pytest.approx(slow_pearson(list(x), list(y)), abs=1e-12)
    assert scores.spearman(x, y) == pytest.approx(slow_pearson(slow_ranks(x), slow_ranks(y)), abs=1e-12)
    assert scores.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert scores.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_a_constant_side_correlates_with_nothing() -> None:
    assert scores.spearman(np.ones(5), np.arange(5.0)) == 0.0


def slow_average_precision(gold: np.ndarray, score: np.ndarray) -> float:
    total, before = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = score >= threshold
        recall = gold[taken].sum() / gold.sum()
        total += (recall - before) * gold[taken].mean()
        before = recall
    return total


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_thresholds(seed: int, ties: bool) -> None:
    _, score = sample(seed, ties=ties)
    gold = np.random.default_rng(seed + 100).integers(0, 2, len(score)).astype(float)
    want = slow_average_precision(gold, score)
    assert scores.average_precision(gold, score) == pytest.approx(want, abs=1e-12)
    assert scores.average_precision(gold, score) == pytest.approx(
        sklearn.average_precision_score(gold, score), abs=1e-12
    )
    cuts = sorted(set(score))[1:]  # a threshold takes some and leaves some
    assert scores.best_accuracy(gold, score) == max(np.mean((score >= cut) == gold) for cut in cuts)
    f1s = [sklearn.f1_score(gold, score >= cut) for cut in cuts]
    f1, precision, recall = scores.best_f1(gold, score)
    assert f1 == pytest.approx(max(f1s), abs=1e-12)
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-12)


def test_no_positive_gives_zero() -> None:
    gold, score = np.zeros(4), np.arange(4.0)
    assert scores.average_precision(gold, score) == 0.0
    assert scores.best_f1(gold, score) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_classification(seed: int) -> None:
    rng = np.random.default_rng(seed)
    gold, guess = rng.integers(0, 4, 30), rng.integers(0, 5, 30)
    found = scores.classification_scores(gold, guess)
    slow = []
    for label in sorted(set(gold) | set(guess)):
        hit = sum(g == p == label for g, p in zip(gold, guess, strict=True))
        slow.append(2 * hit / (np.sum(gold == label) + np.sum(guess == label)))
    assert found["f1"] == pytest.approx(np.mean(slow), abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["accuracy"] == sklearn.accuracy_score(gold, guess)
        for name in ("f1", "precision", "recall"):
            score = getattr(sklearn, f"{name}_score")
            assert found[name] == pytest.approx(score(gold, guess, average="macro"), abs=1e-12)
            want = score(gold, guess, average="weighted")
            assert found[f"{name}_weighted"] == pytest.approx(want, abs=1e-12)


def slow_entropy(labels: list[int]) -> float:
    return -sum(labels.count(x) / len(labels) * math.log(labels.count(x) / len(labels)) for x in set(labels))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clusters", [1, 3, 30])
def test_v_measure(seed: int, clusters: int) -> None:
    rng = np.random.default_rng(seed)
    gold, cluster = rng.integers(0, 4, 50), rng.integers(0, clusters, 50)

    def given(x: np.ndarray, by: np.ndarray) -> float:
        return sum(np.mean(by == b) * slow_entropy(x[by == b].tolist()) for b in set(by))

    h = 1 - given(gold, cluster) / slow_entropy(gold.tolist())
    c = 1 - given(cluster, gold) / slow_entropy(cluster.tolist()) if len(set(cluster)) > 1 else 1.0
    slow = 2 * h * c / (h + c) if h + c > 1e-12 else 0.0
    assert scores.v_measure(gold, cluster) == pytest.approx(slow, abs=1e-12)
    assert scores.v_measure(gold, cluster) == pytest.approx(sklearn.v_measure_score(gold, cluster), abs=1e-12)
