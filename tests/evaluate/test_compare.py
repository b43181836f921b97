"""Paired tests and intervals: against enumeration, scipy, and their promised coverage."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from eval_folders import encode, make_all

from nvembed.cli.compare import compare as compare_command
from nvembed.errors import DataError, InputError
from nvembed.evaluate.compare import against_published, category, compare, randomisation
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


@pytest.mark.parametrize("seed", range(3))
def test_randomisation_is_the_enumeration(seed: int) -> None:
    """Ten queries have 1,024 sign patterns; the sampled p is near the exact one."""
    d = np.round(np.random.default_rng(seed).normal(0.3, 1, 10), 2)
    signs = np.array(list(itertools.product([-1, 1], repeat=10)))
    exact = float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12))
    assert randomisation(d, np.random.default_rng(0), flips=40_000) == pytest.approx(exact, abs=0.01)


def test_no_difference() -> None:
    assert randomisation(np.zeros(9), np.random.default_rng(0)) == 1.0


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
    for world in range(200):
        a = rng.normal(0.5, 0.2, 60)
        row = compare({"t": result(a)}, {"t": result(a + rng.normal(0.02, 0.1, 60))}, draws=300, seed=world)[
            0
        ]
        assert row.low is not None
        assert row.high is not None
        held += row.low <= 2.0 <= row.high
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
    overall = rows["mean of 9", "all"]
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
    with pytest.raises(InputError, match="no results given"):
        compare_command()
    with pytest.raises(InputError, match="the results of random are given twice; expected each model once"):
        compare_command(folders[1], folders[2], folders[1])
    again = Subject("fake/words", "f1", encode=plain(encode))
    evaluate(again, tasks, tmp_path / "out")
    both = [folders[0], folder_of(tmp_path / "out", again)]
    compare_command(*both, out=tmp_path / "twins")
    assert "| task | category | fake/words f0 | fake/words f1 |" in capsys.readouterr().out
    assert (tmp_path / "twins" / "difference-fake__words f1.png").is_file()
    with pytest.raises(DataError, match="results of 2 models of one name: give the folder of one of them"):
        compare_command(folders[0].parent)
