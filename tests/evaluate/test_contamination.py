"""Exact and near duplicates, against brute force."""

from pathlib import Path

import numpy as np
import pytest
from eval_folders import make_labelled, make_pairs, make_retrieval, sentence, write_jsonl

from nvembed.errors import DataError
from nvembed.evaluate.contamination import contamination, training_texts
from nvembed.evaluate.tasks import Labelled, Pairs, Retrieval, load_task
from nvembed.text.near import normalise


def slow_jaccard(a: str, b: str) -> float:
    x, y = ({t[i : i + 5] for i in range(len(t) - 4)} for t in (a, b))
    return len(x & y) / len(x | y)


def test_texts_against_brute_force(tmp_path: Path) -> None:
    task = load_task(make_labelled(tmp_path / "topics", n=50))
    assert isinstance(task.data, Labelled)
    rng = np.random.default_rng(3)
    training = [[sentence(rng, i)] for i in range(40)]
    training += [[text.upper() + "!"] for text in task.data.texts[:4]]
    training += [[text + " and so"] for text in task.data.texts[4:9]]
    found = contamination(task, training, threshold=0.7, shortest=0)
    known = [normalise(text) for (text,) in training]
    exact = sum(normalise(text) in known for text in task.data.texts)
    either = sum(any(slow_jaccard(normalise(t), k) >= 0.7 for k in known) for t in task.data.texts)
    assert (found.unit, found.units, found.exact) == ("text", 50, exact)
    assert exact >= 4
    assert found.exact + found.near == either
    assert found.near >= 5
    assert all(similarity >= 0.7 for _, _, similarity in found.examples)
    assert max(len(normalise(text)) for text in task.data.texts) < 60
    short = contamination(task, training, threshold=0.7)
    assert (short.exact, short.near) == (exact, 0)  # short texts match only exactly


def test_pairs_count_as_pairs_in_either_order(tmp_path: Path) -> None:
    task = load_task(make_pairs(tmp_path / "alike", binary=False))
    assert isinstance(task.data, Pairs)
    pairs = list(zip(task.data.text1, task.data.text2, strict=True))
    training = [[b, a] for a, b in pairs[:5]] + [[a, "quite another thing"] for a, _ in pairs[5:20]]
    found = contamination(task, training, threshold=0.95)
    assert (found.unit, found.exact) == ("pair", 5)


def test_queries_count_and_passages_do_not(tmp_path: Path) -> None:
    task = load_task(make_retrieval(tmp_path / "news"))
    assert isinstance(task.data, Retrieval)
    queries = list(task.data.queries.values())
    training = [[queries[0], "a positive"], ["a query", next(task.data.passages())]]
    found = contamination(task, training, threshold=0.999)
    assert (found.unit, found.exact) == ("query", 1)


def test_training_files(tmp_path: Path) -> None:
    rows = [
        {"query": "q", "positive": "p", "negatives": ["n", "m"]},
        {"text1": "a", "text2": "b", "score": 1},
        {"text": "t", "label": 0},
    ]
    write_jsonl(tmp_path / "train.jsonl.gz", rows)
    found = list(training_texts(tmp_path / "train.jsonl.gz"))
    assert found == [["q", "p", "n", "m"], ["a", "b"], ["t"]]
    write_jsonl(tmp_path / "bad.jsonl", [{"label": 1}])
    with pytest.raises(DataError, match=r"bad.jsonl:1: expected query and positive"):
        list(training_texts(tmp_path / "bad.jsonl"))
