"""BM25 against the formula written out, on real text where the shared data is at hand."""

import gzip
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import pytest
import Stemmer

from nvembed.errors import InputError
from nvembed.text.bm25 import K1, B, Bm25

PASSAGES = [
    "Judo throws are allowed in freestyle wrestling, and judo is taught to wrestlers.",
    "Radiology technicians in Michigan need a licence.",
    "The cat sat on the mat; the cats sit on mats.",
    "",
    "the of and",
    "Wrestling, wrestlers, wrestled: wrestling!",
    "A licence for judo",
    "A licence for judo",
]
QUERIES = ["are judo throws allowed in wrestling?", "licence licence judo", "zebra", "", "the", "cats"]


def oracle(passages: Sequence[str], query: str, k1: float, b: float) -> list[float]:
    """One double loop, as the formula reads."""
    stopwords = set(bm25s.stopwords.STOPWORDS_EN)
    stem = Stemmer.Stemmer("english").stemWord

    def words(text: str) -> list[str]:
        found = re.findall(r"(?u)\b\w\w+\b", text.lower())
        return [stem(word) for word in found if word not in stopwords]

    counts = [Counter(words(passage)) for passage in passages]
    mean = sum(c.total() for c in counts) / len(counts)
    scores = []
    for count in counts:
        score = 0.0
        for word in words(query):
            df = sum(word in c for c in counts)
            if df:
                idf = math.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
                tf = count[word]
                score += idf * tf / (tf + k1 * (1 - b + b * count.total() / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("k", [1, 3, 100])
def test_scores_and_order_are_the_formula(k: int) -> None:
    scores, ids = Bm25(PASSAGES).top_k(QUERIES, k)
    assert scores.shape == ids.shape == (len(QUERIES), min(k, len(PASSAGES)))
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64
    for row, query in enumerate(QUERIES):
        expected = oracle(PASSAGES, query, K1, B)
        best = sorted(range(len(expected)), key=lambda i: (-round(expected[i], 5), i))[:k]
        assert ids[row].tolist() == best
        np.testing.assert_allclose(scores[row], [expected[i] for i in best], rtol=1e-5, atol=1e-7)


def test_real_text_against_the_formula() -> None:
    demo = Path(__file__).parents[2] / "demo" / "xquad_en"
    corpus = [json.loads(line)["text"] for line in (demo / "corpus.jsonl").read_text().splitlines()][:60]
    queries = [json.loads(line)["text"] for line in (demo / "queries.jsonl").read_text().splitlines()][:20]
    scores, ids = Bm25(corpus).top_k(queries, 5)
    for row, query in enumerate(queries):
        expected = oracle(corpus, query, 1.2, 0.75)
        np.testing.assert_allclose(scores[row], sorted(expected, reverse=True)[:5], rtol=1e-4)
        np.testing.assert_allclose(scores[row], [expected[i] for i in ids[row]], rtol=1e-4)


def test_nothing_but_stop_words_matches_nothing() -> None:
    scores, ids = Bm25(["the of", ""]).top_k(["the cat"], 5)
    assert scores.tolist() == [[0.0, 0.0]]
    assert ids.tolist() == [[0, 1]]


def test_no_queries() -> None:
    scores, ids = Bm25(PASSAGES).top_k([], 3)
    assert scores.shape == ids.shape == (0, 3)


@pytest.mark.parametrize("passages", [[], "one string"])
def test_passages_must_be_a_list(passages: Any) -> None:
    with pytest.raises(InputError, match="a list of at least one passage"):
        Bm25(passages)


def test_bad_arguments() -> None:
    index = Bm25(PASSAGES)
    with pytest.raises(InputError, match="k is 0; expected at least 1"):
        index.top_k(["judo"], 0)
    with pytest.raises(InputError, match="queries is one string"):
        index.top_k("judo", 1)


def shared_scifact() -> Path:
    for parent in Path(__file__).resolve().parents:
        folder = parent / "shared" / "data" / "retrieval" / "scifact"
        if folder.is_dir():
            return folder
    pytest.skip("no folder shared/ beside the checkout: SciFact is not at hand")


def test_scifact_is_near_the_published_figure() -> None:
    """BEIR prints nDCG@10 of 66.5 for BM25 on SciFact (another stemmer and stop word list)."""
    folder = shared_scifact()
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as handle:
        corpus = [json.loads(line) for line in handle]
    queries = {
        row["_id"]: row["text"]
        for row in map(json.loads, (folder / "queries.jsonl").read_text().splitlines())
    }
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, passage, grade = line.split("\t")
        if int(grade) > 0:
            relevant.setdefault(query, set()).add(passage)
    index = Bm25([f"{row['title']} {row['text']}" for row in corpus])
    _, ids = index.top_k([queries[query] for query in relevant], 10)
    total = 0.0
    for row, wanted in zip(ids, relevant.values(), strict=True):
        gains = [corpus[i]["_id"] in wanted for i in row]
        gain = sum(hit / math.log2(rank + 2) for rank, hit in enumerate(gains))
        total += gain / sum(1 / math.log2(rank + 2) for rank in range(min(10, len(wanted))))
    assert 0.65 < total / len(relevant) < 0.70
