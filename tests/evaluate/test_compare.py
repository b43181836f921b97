"""Paired tests and intervals: against enumeration, scipy, and their promised coverage."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from eval_folders import encode, make_all

from nvembed.cli.compare import compare as compare_command
from nvembed.errors import DataError, InputError
from nvembed.evaluate.compare import against_published, category, compare, paired_test
from nvembed.evaluate.outcome import Items
from nvembed.evaluate.record import Result, folder_of, read_results
from nvembed.evaluate.report import category_means, report_markdown
from nvembed.evaluate.run import evaluate
from nvembed.evaluate.subject import Subject, bm25, plain, random_encoder
from nvembed.evaluate.tasks import find_tasks, load_task


def result(value: np.ndarray, *, task: str = "t", revision: str = "r", kind: str = "retrieval") -> Result:
    conditions = {"data_revision": revision, "kind": kind, "model": "m"}
    items = Items("mean", [str(i) for i in range(len(value))], value)
    return Result(task, {"conditions": conditions}, {"main_score": float(value.mean())}, items, {})


def test_p_values_are_those_of_the_enumeration() -> None:
    """Ten queries have 1,024 sign patterns, six pairs 64 swaps: scipy goes through all of them."""
    rng = np.random.default_rng(0)
    a = rng.random(10)
    b = a + np.round(rng.normal(0.03, 0.1, 10), 2)
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = float(np.mean(np.abs(signs @ (b - a)) >= abs((b - a).sum()) - 1e-12))
    assert compare({"t": result(a)}, {"t": result(b)})[0].p == pytest.approx(exact)

    stats = pytest.importorskip("scipy.stats")
    gold, one, other = rng.random(6), rng.random(6), rng.random(6)
    items = [Items("spearman", list("abcdef"), value, gold) for value in (one, other)]
    nulls = []
    for swap in itertools.product([False, True], repeat=6):
        first, second = np.where(swap, other, one), np.where(swap, one, other)
        nulls.append(stats.spearmanr(gold, second)[0] - stats.spearmanr(gold, first)[0])
    exact = float(np.mean(np.abs(nulls) >= abs(nulls[0]) - 1e-12))
    assert paired_test(items[0], items[1], rng=rng).p == pytest.approx(exact)


def test_the_mean_of_small_tasks_is_no_surer_than_the_tasks() -> None:
    """One query can never be significant, nor can the mean of two such tasks."""
    a, b = result(np.array([0.2])), result(np.array([0.9]))
    row, mean, overall = compare({"t": a}, {"t": b})
    assert (row.p, mean.p, overall.p) == (1.0, 1.0, 1.0)
    assert (row.low, mean.low) == (None, None)
    two = compare({"t": a, "u": a}, {"t": b, "u": b})
    assert two[-1].name == "mean of 2"
    assert two[-1].p == pytest.approx(0.5, abs=0.02), "two of the four sign patterns are as far from 0"
    rng = np.random.default_rng(3)
    many = {f"t{i}": result(rng.random(40), task=f"t{i}") for i in range(4)}
    better = {name: result(one.items.value + 0.05, task=name) for name, one in many.items() if one.items}
    assert compare(many, better)[-1].p == pytest.approx(1 / 10_000)


def test_means_of_equal_models_are_rarely_significant() -> None:
    rng = np.random.default_rng(4)
    p_values = []
    for world in range(60):
        pairs = [(rng.random(8), rng.random(8)) for _ in range(3)]
        a, b = ({f"t{i}": result(pair[side]) for i, pair in enumerate(pairs)} for side in (0, 1))
        p_values.append(compare(a, b, draws=50, seed=world)[-1].p or 0.0)
    assert np.mean(np.array(p_values) < 0.05) < 0.15
    assert 0.35 < np.mean(p_values) < 0.65


def test_no_difference() -> None:
    row = compare({"t": result(np.ones(9))}, {"t": result(np.ones(9))})[0]
    assert (row.low, row.high, row.p) == (0.0, 0.0, 1.0)


def test_a_paired_interval_is_the_t_interval() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    a = rng.random(400)
    b = a + rng.normal(0.02, 0.1, 400)
    row = compare({"t": result(a)}, {"t": result(b)}, draws=4000)[0]
    assert row.low is not None
    assert row.high is not None
    d = 100 * (b - a)
    low, high = stats.t.interval(0.95, 399, d.mean(), d.std(ddof=1) / 20)
    assert (row.low, row.high) == pytest.approx((low, high), abs=0.08)
    assert row.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.01)
    assert row.difference == pytest.approx(d.mean())


def test_intervals_cover() -> None:
    """Of 200 worlds in which b is better by 2 points, about 95% of the intervals hold the 2 points."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        a = result(rng.normal(0.5, 0.2, 60)).items
        assert a is not None
        b = Items("mean", a.ids, a.value + rng.normal(0.02, 0.1, 60))
        test = paired_test(a, b, rng=rng, draws=300, flips=9)
        assert test.low is not None
        assert test.high is not None
        held += test.low <= 2.0 <= test.high
    assert 180 <= held <= 199


def test_every_statistic_and_the_categories(tmp_path: Path) -> None:
    """The rows of every kind of task are resampled; a model against itself differs by nothing."""
    tasks = [load_task(path) for path in find_tasks(make_all(tmp_path / "data"))]
    good = Subject("fake/words", "f0", encode=plain(encode))
    for subject in (good, random_encoder(dim=16)):
        evaluate(subject, tasks, tmp_path / "out")
    words = read_results(folder_of(tmp_path / "out", good))
    noise = read_results(folder_of(tmp_path / "out", random_encoder(dim=16)))
    rows = {(row.name, row.category): row for row in compare(noise, words, draws=100)}
    for task in ("alike", "twins", "topics", "flat"):
        row = rows[task, category(words[task])]
        assert row.low is not None
        assert row.low > 0, task
        assert row.p is not None
        assert row.p < 0.05
    overall = rows["mean of 10", "all"]
    assert overall.b == pytest.approx(np.mean([r.main_score for r in words.values()]))
    assert overall.low is not None
    assert overall.high is not None
    assert overall.low < overall.difference < overall.high
    for row in compare(words, words, draws=20):
        assert (row.difference, row.low, row.high) == (0, 0, 0)
        assert row.p == 1.0


def test_what_cannot_be_compared() -> None:
    a = {"t": result(np.ones(3))}
    with pytest.raises(DataError, match=r"no task in common: \['t'\] and \['u'\]"):
        compare(a, {"u": result(np.ones(3), task="u")})
    with pytest.raises(DataError, match=r"t: the two models were evaluated on different data \(r and s\)"):
        compare(a, {"t": result(np.ones(3), revision="s")})


def test_published() -> None:
    values = {"SciFact": 80.3, "STS12": 70.0, "home": 1.0}
    results = {task: result(np.full(2, score / 100), task=task) for task, score in values.items()}
    checks = {check.task: check for check in against_published(results, "nv-embed-v2", tolerance=0.3)}
    assert set(checks) == {"SciFact", "STS12"}
    assert checks["SciFact"].within
    assert checks["SciFact"].difference == pytest.approx(0.173)
    assert not checks["STS12"].within
    assert checks["STS12"].test_set == "unverified"
    results["STS12"].record["conditions"]["test_set"] = "identical"
    assert against_published(results, "nv-embed-v2", tolerance=0.3)[1].test_set == "identical"
    with pytest.raises(DataError, match=r"none of \['home'\] has a published score"):
        against_published({"home": results["home"]}, "nv-embed-v2", tolerance=1)
    with pytest.raises(InputError, match="no published scores of 'gpt'"):
        against_published(results, "gpt", tolerance=1)


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`compare` writes tables, JSON and charts; a model without vectors has no mean over all."""
    pytest.importorskip("matplotlib")
    root = make_all(tmp_path / "data")
    tasks = [load_task(path) for path in find_tasks(root, ["news", "answers", "alike"])]
    subjects = [Subject("fake/words", "f0", encode=plain(encode)), random_encoder(dim=16), bm25()]
    folders = []
    for subject in subjects:
        evaluate(subject, tasks, tmp_path / "out")
        folders.append(folder_of(tmp_path / "out", subject))
    compare_command(*folders, out=tmp_path / "report")
    table = (tmp_path / "report" / "compare.md").read_text()
    assert "| alike | STS |" in table
    assert table in capsys.readouterr().out + "\n"
    for name in ("quality.png", "difference-random.png", "difference-bm25.png"):
        assert (tmp_path / "report" / name).read_bytes()[1:4] == b"PNG"
    models = {folder.parent.name: read_results(folder) for folder in folders}
    means = category_means(models)
    assert set(means["Retrieval"]) == set(models)
    assert set(means["all"]) == {"fake__words", "local__random"}
    assert "| local__random | cpu |" in report_markdown(models)
    with pytest.raises(InputError, match="expected folders of models"):
        compare_command()
    with pytest.raises(InputError, match="the results of random occur twice; expected each model once"):
        compare_command(folders[1], folders[2], folders[1])
    again = Subject("fake/words", "f1", encode=plain(encode))
    evaluate(again, tasks, tmp_path / "out")
    both = [folders[0], folder_of(tmp_path / "out", again)]
    compare_command(*both, out=tmp_path / "twins")
    assert "| task | category | fake/words f0 | fake/words f1 |" in capsys.readouterr().out
    assert (tmp_path / "twins" / "difference-fake__words f1.png").is_file()
    with pytest.raises(DataError, match="results of 2 models or settings"):
        compare_command(folders[0].parent)
