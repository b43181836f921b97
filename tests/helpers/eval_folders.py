"""Small task folders of every kind, made up, and a fake encoder that knows a little about words."""

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["river", "stone", "cloud", "bread", "engine", "violin", "planet"]
WORDS += ["sugar", "winter", "mirror", "forest", "candle", "market", "island"]


def sentence(rng: np.random.Generator, topic: int, length: int = 8) -> str:
    """A sentence in which a topic's own two words are frequent."""
    own = WORDS[2 * (topic % 7) : 2 * (topic % 7) + 2]
    return " ".join(str(rng.choice(own if rng.random() < 0.5 else WORDS)) for _ in range(length))


def encode(texts: Sequence[str], prompt: str, dim: int = 24) -> np.ndarray:
    """Sum a fixed random vector per word: texts that share words are close."""
    rows = []
    for text in texts:
        words = (prompt + text).split() or ["(empty)"]
        seeds = [int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little") for word in words]
        rows.append(sum(np.random.default_rng(seed).standard_normal(dim) for seed in seeds))
    vectors = np.array(rows, dtype=np.float32).reshape(len(texts), dim)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content)


def make_retrieval(folder: Path, *, seed: int = 0, passages: int = 40, queries: int = 15) -> Path:
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, 7, passages)
    corpus = [
        {"_id": f"d{i}", "title": WORDS[i % 14] if i % 3 else "", "text": sentence(rng, t)}
        for i, t in enumerate(topics)
    ]
    write_jsonl(folder / "corpus.jsonl.gz", corpus)
    write_jsonl(
        folder / "queries.jsonl", [{"_id": f"q{i}", "text": sentence(rng, i, 4)} for i in range(queries)]
    )
    lines = ["query-id\tcorpus-id\tscore"]
    for q in range(queries):
        judged = rng.permutation(passages)[:6]
        grades = [2, 1, 1, 0, 0, 0]
        lines += [f"q{q}\td{d}\t{g}" for d, g in zip(judged, grades, strict=True)]
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    return folder


def make_pairs(folder: Path, *, binary: bool, seed: int = 1, n: int = 60) -> Path:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        same = rng.random()
        a = sentence(rng, i)
        b = " ".join(w if rng.random() < same else str(rng.choice(WORDS)) for w in a.split())
        rows.append({"text1": a, "text2": b, "score": int(same > 0.6) if binary else round(5 * same, 1)})
    write_jsonl(folder / "test.jsonl", rows)
    return folder


def make_bitext(folder: Path, *, seed: int = 8, n: int = 40) -> Path:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        words = sentence(rng, i).split()
        rows.append({"text1": " ".join(words), "text2": " ".join(rng.permutation(words[: 3 + i % 6]))})
    write_jsonl(folder / "test.jsonl", rows)
    return folder


def make_labelled(folder: Path, *, seed: int = 2, n: int = 60, train: bool = True, classes: int = 4) -> Path:
    rng = np.random.default_rng(seed)
    for name in ("train", "test") if train else ("test",):
        topics = [int(t) for t in rng.integers(0, classes, n)]
        write_jsonl(
            folder / f"{name}.jsonl", [{"text": sentence(rng, t), "label": f"class {t}"} for t in topics]
        )
    return folder


def make_sets(folder: Path, *, seed: int = 3) -> Path:
    rng = np.random.default_rng(seed)
    rows = []
    for size in (50, 30):
        topics = [int(t) for t in rng.integers(0, 3, size)]
        rows.append({"sentences": [sentence(rng, t) for t in topics], "labels": topics})
    write_jsonl(folder / "test.jsonl", rows)
    return folder


def make_summaries(folder: Path, *, seed: int = 4) -> Path:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "text": "source",
            "human_summaries": [sentence(rng, i) for _ in range(3)],
            "machine_summaries": [sentence(rng, i + j % 2) for j in range(6)],
            "relevance": [float(x) for x in rng.integers(1, 5, 6) / 4],
        }
        for i in range(8)
    ]
    write_jsonl(folder / "test.jsonl", rows)
    return folder


def make_all(root: Path) -> Path:
    """One folder of each kind."""
    make_retrieval(root / "retrieval" / "news")
    make_retrieval(root / "reranking" / "answers", seed=7)
    make_pairs(root / "sts" / "alike", binary=False)
    make_pairs(root / "pairs" / "twins", binary=True)
    make_bitext(root / "bitext" / "translated")
    make_labelled(root / "classification" / "topics")
    make_labelled(root / "classification" / "folds", train=False, n=53, seed=5)
    make_labelled(root / "clustering" / "flat", train=False, seed=6)
    make_sets(root / "clustering" / "sets")
    make_summaries(root / "summarization" / "briefs")
    return root
