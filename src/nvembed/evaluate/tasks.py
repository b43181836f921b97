"""Evaluation tasks in local folders: found, read, and checked before anything is embedded.

A task is a folder. What lies in it says what it is:

    corpus.jsonl queries.jsonl qrels/test.tsv    retrieval (BEIR layout); reranking, where each query is
                                                 scored on the passages that its qrels list
    test.jsonl of {"text1", "text2", "score"}    STS; pair classification if every score is 0 or 1
    train.jsonl, test.jsonl of {"text", "label"} classification; without a train or validation file
                                                 cross-validation, or clustering (see below)
    test.jsonl of {"sentences", "labels"}        clustering of several sets, as MTEB English v1 has them
    test.jsonl of {"text", "human_summaries",    summarisation
      "machine_summaries", "relevance"}

``.jsonl`` may be compressed (``.gz``, ``.bz2``, ``.xz``, ``.zst``), or ``.parquet``. Where a layout means two
things, the parent folder's name decides (``pair_rerank`` or ``reranking``; ``clustering``), or a file
``task.toml`` in it: ``kind = "reranking"``.
"""

import hashlib
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from nvembed.errors import DataError, InputError
from nvembed.evaluate.settings import TaskSettings, protocol
from nvembed.read import beir, fields
from nvembed.read.lines import Row, read_rows
from nvembed.read.streams import open_binary
from nvembed.recipe import nearest

Kind = Literal[
    "retrieval", "reranking", "sts", "pair_classification", "classification", "clustering", "summarization"
]
CATEGORY: dict[Kind, str] = {
    "retrieval": "Retrieval",
    "reranking": "Reranking",
    "sts": "STS",
    "pair_classification": "PairClassification",
    "classification": "Classification",
    "clustering": "Clustering",
    "summarization": "Summarization",
}


@dataclass(frozen=True)
class Retrieval:
    """A corpus that is read block by block, the judged queries, and their grades."""

    passage_ids: Sequence[str]
    passages: Callable[[], Iterator[str]]  # the texts, in the order of passage_ids, read anew at each call
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    dropped: tuple[
        str, ...
    ] = ()  # queries left out, as MTEB's reranking leaves out those without both grades


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts with a gold score each (0 or 1 for pair classification)."""

    text1: Sequence[str]
    text2: Sequence[str]
    score: np.ndarray  # (pairs,) float64


@dataclass(frozen=True)
class Labelled:
    """Texts with a class each; ``train`` is empty where the test texts are cross-validated."""

    texts: Sequence[str]
    labels: np.ndarray  # (texts,) int64
    train_texts: Sequence[str]
    train_labels: np.ndarray


@dataclass(frozen=True)
class Sets:
    """Sets of texts to cluster, each with its gold classes."""

    texts: Sequence[Sequence[str]]
    labels: Sequence[np.ndarray]


@dataclass(frozen=True)
class Summaries:
    """Per source text: human summaries, machine summaries, and a gold score of each machine summary."""

    human: Sequence[Sequence[str]]
    machine: Sequence[Sequence[str]]
    relevance: Sequence[np.ndarray]


Data = Retrieval | Pairs | Labelled | Sets | Summaries


@dataclass(frozen=True)
class Task:
    """One task, read and checked. ``revision`` is a hash of the files' bytes."""

    name: str
    kind: Kind
    split: str
    revision: str
    data: Data

    @property
    def settings(self) -> TaskSettings:
        return protocol().of(self.name)

    @property
    def mteb_name(self) -> str:
        """The name of the MTEB task in this folder, or the folder's own."""
        return self.settings.mteb or self.name


def find_tasks(root: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the task folders under ``root`` (itself, one or two levels down), in the order of ``names``.

    ``names`` of None, or ``["all"]``, means every one, sorted.

    Raises:
        InputError: ``root`` is no folder or has no task, or a name is not there (the nearest are named) or
            that of two folders.
    """
    if not root.is_dir():
        raise InputError(f"--data {root} is no folder; expected one with a folder per task")
    candidates = [root, *root.glob("*"), *root.glob("*/*")]
    folders = sorted(path for path in candidates if path.is_dir() and _is_task(path))
    found: dict[str, Path] = {}
    twice: dict[str, Path] = {}
    for path in folders:
        if found.setdefault(path.resolve().name, path).resolve() != path.resolve():
            twice[path.resolve().name] = path
    if not found:
        raise InputError(f"no task under {root}: expected folders with corpus.jsonl or test.jsonl in them")
    if names is None or list(names) == ["all"]:
        names = sorted(found)
    for name in names:
        if name not in found:
            raise InputError(f"no task {name!r} under {root}: {nearest(name, found)}")
        if name in twice:
            raise InputError(
                f"two tasks are named {name!r}, {found[name]} and {twice[name]}: results go by name, so give "
                "--data the folder of one"
            )
    return [found[name] for name in dict.fromkeys(names)]


def load_task(folder: Path, *, split: str = "test", drop_unanswerable: bool = False) -> Task:
    """Read and check one task folder.

    Args:
        split: the file that is evaluated; a set that has only a ``train`` file is cross-validated on it.
        drop_unanswerable: leave out retrieval queries without a relevant passage instead of refusing them.

    Raises:
        DataError: the folder's content is malformed; the message says file, line, expected and got.
    """
    kind = _kind(folder, split)
    data: Data
    if kind in ("retrieval", "reranking"):
        data, files = _load_retrieval(folder, split, rerank=kind == "reranking", drop=drop_unanswerable)
    else:
        path = beir.file_of(folder, split) or beir.file_of(folder, "train")
        if path is None:
            raise DataError(
                f"{folder}: expected {split}.jsonl, compressed or not, or {split}.parquet; found none"
            )
        if kind == "classification":
            data, files = _load_labelled(folder, path)
        elif kind == "clustering":
            data, files = _load_sets(path), [path]
        elif kind == "summarization":
            data, files = _load_summaries(path), [path]
        else:
            data, files = _load_pairs(path, binary=kind == "pair_classification"), [path]
    return Task(folder.resolve().name, kind, split, _hash(files), data)


def _is_task(folder: Path) -> bool:
    if beir.file_of(folder, "corpus"):
        return (folder / "qrels").is_dir()
    first = _first_row(folder)
    return first is not None and not {"query", "positive"} <= first.keys()


def _first_row(folder: Path, split: str = "test") -> Row | None:
    """Return the first object of the folder's ``split`` (else ``train``) file, or None without one."""
    path = beir.file_of(folder, split) or beir.file_of(folder, "train")
    return next(read_rows(path))[1] if path else None


def _passages(path: Path) -> Iterator[str]:
    """Yield every passage of a corpus as MTEB embeds it: title and text joined, and stripped."""
    for where, row in read_rows(path):
        yield beir.passage_text(row, where).strip()


def _kind(folder: Path, split: str) -> Kind:
    declared = folder / "task.toml"
    if declared.is_file():
        try:
            kind = tomllib.loads(declared.read_text(encoding="utf-8")).get("kind")
        except (ValueError, OSError) as error:
            raise DataError(
                f"{declared}: expected TOML in UTF-8, such as kind = 'reranking': {error}"
            ) from error
        if not isinstance(kind, str) or kind not in CATEGORY:
            raise DataError(f"{declared}: kind is {kind!r}; {nearest(str(kind), CATEGORY)}")
        return kind
    parent = folder.resolve().parent.name
    if beir.file_of(folder, "corpus"):
        return "reranking" if parent in ("pair_rerank", "reranking") else "retrieval"
    first = _first_row(folder, split)
    keys = first.keys() if first else set()
    if {"text1", "text2", "score"} <= keys:
        path = beir.file_of(folder, split)
        binary = path is not None and all(row.get("score") in (0, 1) for _, row in read_rows(path))
        return "pair_classification" if binary else "sts"
    if {"sentences", "labels"} <= keys:
        return "clustering"
    if {"human_summaries", "machine_summaries"} <= keys:
        return "summarization"
    if {"text", "label"} <= keys:
        return "clustering" if parent == "clustering" else "classification"
    raise DataError(
        f"{folder}: cannot tell what kind of task this is from the keys {sorted(keys)}: add a task.toml"
    )


def _load_retrieval(folder: Path, split: str, *, rerank: bool, drop: bool) -> tuple[Retrieval, list[Path]]:
    paths = {name: beir.file_of(folder, name) for name in ("corpus", "queries")}
    for name, path in paths.items():
        if path is None:
            raise DataError(
                f"{folder}: expected {name}.jsonl, compressed or not, or {name}.parquet; found none"
            )
    corpus_path, queries_path = paths["corpus"], paths["queries"]
    assert corpus_path
    assert queries_path
    qrels_path = folder / "qrels" / f"{split}.tsv"
    ids = beir.read_identified(corpus_path, "passage", keep_text=False)
    queries = beir.read_identified(queries_path, "query")
    qrels = beir.read_qrels(qrels_path, queries=queries, passages=ids)
    lacking = [q for q, grades in qrels.items() if max(grades.values()) < 1]
    if rerank:  # MTEB: a query counts only if it has both, else every order is equally good
        lacking += [q for q, grades in qrels.items() if min(grades.values()) > 0]
    elif lacking and not drop:
        raise DataError(
            f"{qrels_path}: {len(lacking)} queries have no relevant passage (first: {lacking[0]!r}): "
            "expected a grade of 1 or more for each; mend the file, or pass --drop-unanswerable"
        )
    kept = {q: grades for q, grades in qrels.items() if q not in set(lacking)}
    if not kept:
        raise DataError(f"{qrels_path}: no query is left that has a relevant passage")
    data = Retrieval(
        passage_ids=list(ids),
        passages=lambda: _passages(corpus_path),
        queries={q: queries[q] for q in kept},
        qrels=kept,
        dropped=tuple(lacking),
    )
    return data, [corpus_path, queries_path, qrels_path]


def _load_pairs(path: Path, *, binary: bool) -> Pairs:
    text1, text2, scores = [], [], []
    for where, row in read_rows(path):
        text1.append(fields.text(row, "text1", where))
        text2.append(fields.text(row, "text2", where))
        scores.append(fields.number(row, "score", where))
        if binary and scores[-1] not in (0, 1):
            raise DataError(f"{where}: score is {scores[-1]}; pair classification expects 0 or 1")
    if len(set(scores)) < 2:
        raise DataError(f"{path}: every score is the same ({scores[:1]}); nothing can be correlated with it")
    return Pairs(text1, text2, np.array(scores, dtype=np.float64))


def _load_labelled(folder: Path, path: Path) -> tuple[Labelled, list[Path]]:
    texts, labels = _texts_and_labels(path)
    train = next((p for p in (beir.file_of(folder, n) for n in ("train", "validation", "dev")) if p), None)
    if train is None or train == path:
        return Labelled(texts, _numbered(labels, labels), [], np.empty(0, dtype=np.int64)), [path]
    train_texts, train_labels = _texts_and_labels(train)
    unseen = set(map(str, labels)) - set(map(str, train_labels))
    if unseen == set(map(str, labels)):
        raise DataError(f"{path}: no label of it is in {train.name}; expected the same classes in both")
    both = [*train_labels, *labels]
    data = Labelled(texts, _numbered(labels, both), train_texts, _numbered(train_labels, both))
    return data, [train, path]


def _texts_and_labels(path: Path) -> tuple[list[str], list[str | int]]:
    texts, labels = [], []
    for where, row in read_rows(path):
        texts.append(fields.text(row, "text", where))
        labels.append(fields.label(row, "label", where))
    if len(set(labels)) < 2:
        raise DataError(f"{path}: expected at least two classes, got {len(set(labels))}")
    return texts, labels


def _numbered(labels: Sequence[str | int], all_labels: Sequence[str | int]) -> np.ndarray:
    """Number the classes in sorted order; numbers stay in the order of numbers."""
    number = {
        label: i for i, label in enumerate(sorted(set(all_labels), key=lambda x: (isinstance(x, str), x)))
    }
    return np.array([number[label] for label in labels], dtype=np.int64)


def _load_sets(path: Path) -> Sets:
    first = next(read_rows(path))[1]
    if "sentences" not in first:
        texts, labels = _texts_and_labels(path)
        return Sets([texts], [_numbered(labels, labels)])
    all_texts, all_labels = [], []
    for where, row in read_rows(path):
        all_texts.append(fields.texts(row, "sentences", where))
        given = row.get("labels")
        if not isinstance(given, list) or len(given) != len(all_texts[-1]):
            raise DataError(f"{where}: expected one label per sentence in 'labels'")
        labels = [fields.label({"labels": value}, "labels", where) for value in given]
        all_labels.append(_numbered(labels, labels))
    return Sets(all_texts, all_labels)


def _load_summaries(path: Path) -> Summaries:
    human, machine, relevance = [], [], []
    for where, row in read_rows(path):
        human.append(fields.texts(row, "human_summaries", where))
        machine.append(fields.texts(row, "machine_summaries", where))
        gold = row.get("relevance")
        if not isinstance(gold, list) or len(gold) != len(machine[-1]):
            raise DataError(f"{where}: expected one number per machine summary in 'relevance'")
        relevance.append(np.array([fields.number({"relevance": g}, "relevance", where) for g in gold]))
    return Summaries(human, machine, relevance)


def _hash(files: Sequence[Path]) -> str:
    """Digest what the files hold: gzip or not, the same data have the same digest."""
    digest = hashlib.sha256()
    for path in files:
        with open_binary(path) as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:40]
