"""Evaluation tasks in local folders, read and checked before anything is embedded.

A task is a folder. Its files decide its kind:

    corpus.jsonl queries.jsonl qrels/test.tsv    retrieval (BEIR layout); reranking, where each query is
                                                 scored on the passages that its qrels list
    test.jsonl of {"text1", "text2", "score"}    STS; pair classification if every score is 0 or 1
    test.jsonl of {"text1", "text2"}             bitext mining: each text1's translation among all text2
    train.jsonl, test.jsonl of {"text", "label"} classification; without a train or validation file
                                                 cross-validation, or clustering (see below)
    test.jsonl of {"sentences", "labels"}        clustering of several sets, as MTEB English v1 has them
    test.jsonl of {"text", "human_summaries",    summarisation
      "machine_summaries", "relevance"}

The files may also be compressed JSONL, or Parquet. If a layout fits two kinds, the name of the parent folder
decides (``pair_rerank`` or ``reranking``; ``clustering``). A file ``task.toml`` in the folder overrides that
and may name the MTEB task whose settings apply (see ``TaskFile``).
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from nvembed.errors import ConfigError, DataError, InputError
from nvembed.evaluate.settings import TaskSettings, protocol
from nvembed.read import beir, fields
from nvembed.read.lines import Row, read_rows
from nvembed.read.streams import open_binary
from nvembed.recipe import Recipe, nearest, read_recipe

Kind = Literal[
    "retrieval",
    "reranking",
    "sts",
    "pair_classification",
    "bitext_mining",
    "classification",
    "clustering",
    "summarization",
]
CATEGORY: dict[Kind, str] = {
    "retrieval": "Retrieval",
    "reranking": "Reranking",
    "sts": "STS",
    "pair_classification": "PairClassification",
    "bitext_mining": "BitextMining",
    "classification": "Classification",
    "clustering": "Clustering",
    "summarization": "Summarization",
}


@dataclass(frozen=True)
class Retrieval:
    """A corpus that is read block by block, the judged queries, and their grades."""

    passage_ids: Sequence[str]
    passages: Callable[[], Iterator[str]]  # reads the texts in the order of passage_ids
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    dropped: tuple[
        str, ...
    ] = ()  # queries left out, as MTEB's reranking leaves out those without both grades


@dataclass(frozen=True)
class Bitext:
    """Pairs of texts: translations, in the same order."""

    text1: Sequence[str]
    text2: Sequence[str]


@dataclass(frozen=True)
class Pairs(Bitext):
    """Pairs of texts with a gold score each (0 or 1 for pair classification)."""

    score: np.ndarray  # (pairs,) float64


@dataclass(frozen=True)
class Labelled:
    """Texts with a class each; ``train`` is empty if the test texts are cross-validated."""

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


Data = Retrieval | Bitext | Labelled | Sets | Summaries
TestSet = Literal["identical", "near", "other", "declared", "unverified"]


class TaskFile(Recipe):
    """``task.toml`` of a task folder. Every key is optional."""

    kind: Kind | None = None
    mteb: str | None = None  # the MTEB task in this folder; its settings apply
    samples_per_label: int | None = Field(default=None, ge=1)  # classification: training texts of each class
    skip_identical_ids: bool | None = None  # retrieval: ignore the passage that has the query's id


@dataclass(frozen=True)
class Task:
    """One task, read and checked.

    Args:
        revision: a hash of the bytes of the files.
        mteb: the MTEB task of the data, the folder's ``task.toml``, or the folder's name, in this order.
        test_set: how the data relate to those of ``mteb``: ``identical``, ``near`` and ``other`` follow from
            the data's digest, ``declared`` from ``task.toml``; ``unverified`` if only the name of the folder
            names the MTEB task.
        settings: those of ``mteb`` unless the test set is unverified; ``task.toml`` overrides them.
    """

    name: str
    kind: Kind
    split: str
    revision: str
    data: Data
    mteb: str | None = None
    test_set: TestSet = "unverified"
    settings: TaskSettings = field(default_factory=TaskSettings)

    @property
    def mteb_name(self) -> str:
        """The name of the MTEB task, or the folder's own."""
        return self.mteb or self.name

    @property
    def note(self) -> str:
        """What differs from the MTEB task of the folder's name, or ``""``."""
        known = protocol().task.get(self.mteb_name)
        if self.test_set != "unverified" or known is None or known == self.settings:
            return ""
        names = ", ".join(
            f"{key} = {json.dumps(value)}" for key, value in known.model_dump().items() if value
        )
        return (
            f"{self.name}: MTEB evaluates {self.mteb_name} with {names}. This is not applied, because the "
            "data in the folder are not known to be MTEB's. To apply it, write task.toml in the folder, with "
            f'the line mteb = "{self.mteb_name}"'
        )


def find_tasks(root: Path, names: Sequence[str] | None = None) -> list[Path]:
    """Return the task folders under ``root`` (itself, one or two levels down), in the order of ``names``.

    ``names`` of None, or ``["all"]``, means every one, sorted.

    Raises:
        InputError: ``root`` is no folder or has no task, or a name is not there (the nearest are named) or
            that of two folders.
    """
    if not root.is_dir():
        raise InputError(f"--data {root} is not a folder; expected a folder with one folder per task")
    candidates = [root, *root.glob("*"), *root.glob("*/*")]
    folders = sorted(path for path in candidates if path.is_dir() and _is_task(path))
    folder_of: dict[str, Path] = {}
    twice: dict[str, Path] = {}
    for path in folders:
        if folder_of.setdefault(path.resolve().name, path).resolve() != path.resolve():
            twice[path.resolve().name] = path
    if not folder_of:
        raise InputError(f"no task under {root}: expected folders with corpus.jsonl or test.jsonl in them")
    if names is None or list(names) == ["all"]:
        names = sorted(folder_of)
    for name in names:
        if name not in folder_of:
            raise InputError(f"no task {name!r} under {root}: {nearest(name, folder_of)}")
        if name in twice:
            raise InputError(
                f"two tasks are named {name!r}: {folder_of[name]} and {twice[name]}. Results are stored by "
                "name: rename one folder, or pass one of them as --data"
            )
    return [folder_of[name] for name in dict.fromkeys(names)]


def load_task(folder: Path, *, split: str = "test", drop_unanswerable: bool = False) -> Task:
    """Read and check one task folder.

    Args:
        split: the file that is evaluated; a set that has only a ``train`` file is cross-validated on it.
        drop_unanswerable: leave out retrieval queries without a relevant passage instead of refusing them.

    Raises:
        DataError: the folder's content is malformed; the message says file, line, expected and got.
        InputError: ``split`` cannot be the name of a file.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", split):
        raise InputError(
            f"the split is {split!r}; expected the name of a file without its suffix, such as dev"
        )
    declared = _task_file(folder)
    kind = declared.kind or _kind(folder, split)
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
        elif kind == "bitext_mining":
            data, files = _load_bitext(path), [path]
        else:
            data, files = _load_pairs(path, binary=kind == "pair_classification"), [path]
    name = folder.resolve().name
    return _identified(Task(name, kind, split, _hash(files), data), declared)


def _identified(task: Task, declared: TaskFile) -> Task:
    """Return the task with its MTEB name and settings: the data's digest decides, then ``task.toml``."""
    rules = protocol()
    mteb, settings = rules.folder.get(task.name), TaskSettings()
    test_set: TestSet = "unverified"
    size = _size(task.data)
    known = {each.digest: each for each in rules.data if each.size == size}
    if known and (match := known.get(content_digest(task.data))):
        mteb, test_set = match.mteb, match.test_set
    elif declared.mteb:
        mteb, test_set = declared.mteb, "declared"
    if mteb and test_set != "unverified":
        settings = rules.task.get(mteb, settings)
    own = declared.model_dump(include={"samples_per_label", "skip_identical_ids"}, exclude_none=True)
    return replace(task, mteb=mteb, test_set=test_set, settings=settings.model_copy(update=own))


def content_digest(data: Data) -> str:
    """Digest the evaluation data, independently of the order of the rows and the format of the files.

    It is the sum of the SHA-256 of every row, so memory does not grow with the corpus.
    """
    total = 0
    for row in _rows(data):
        content = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        total += int.from_bytes(hashlib.sha256(content).digest())
    return f"{total % 2**256:064x}"


def _rows(data: Data) -> Iterator[list[Any]]:
    if isinstance(data, Retrieval):
        for passage, text in zip(data.passage_ids, data.passages(), strict=True):
            yield ["passage", passage, text]
        for query, grades in data.qrels.items():
            yield ["query", query, data.queries[query], sorted(grades.items())]
    elif isinstance(data, Pairs):
        yield from map(list, zip(data.text1, data.text2, data.score.tolist(), strict=True))
    elif isinstance(data, Bitext):
        yield from map(list, zip(data.text1, data.text2, strict=True))
    elif isinstance(data, Labelled):
        yield from (["test", *row] for row in zip(data.texts, data.labels.tolist(), strict=True))
        yield from (["train", *row] for row in zip(data.train_texts, data.train_labels.tolist(), strict=True))
    elif isinstance(data, Sets):
        for number, (texts, labels) in enumerate(zip(data.texts, data.labels, strict=True)):
            yield from ([number, *row] for row in zip(texts, labels.tolist(), strict=True))
    else:
        rows = zip(data.human, data.machine, data.relevance, strict=True)
        yield from ([list(human), list(machine), gold.tolist()] for human, machine, gold in rows)


def _size(data: Data) -> int:
    if isinstance(data, Retrieval):
        return len(data.passage_ids)
    if isinstance(data, Bitext):
        return len(data.text1)
    if isinstance(data, Labelled):
        return len(data.texts)
    return sum(map(len, data.texts)) if isinstance(data, Sets) else len(data.human)


def _is_task(folder: Path) -> bool:
    if beir.file_of(folder, "corpus"):
        return (folder / "qrels").is_dir()
    first = _first_row(folder)
    return first is not None and not {"query", "positive"} <= first.keys()


def _task_file(folder: Path) -> TaskFile:
    path = folder / "task.toml"
    try:
        return read_recipe(path, TaskFile) if path.is_file() else TaskFile()
    except ConfigError as error:
        raise DataError(str(error)) from error


def _first_row(folder: Path, split: str = "test") -> Row | None:
    """Return the first object of the folder's ``split`` (else ``train``) file, or None without one."""
    path = beir.file_of(folder, split) or beir.file_of(folder, "train")
    return next(read_rows(path))[1] if path else None


def _passages(path: Path) -> Iterator[str]:
    """Yield every passage of a corpus as MTEB embeds it: title and text, joined and stripped."""
    for where, row in read_rows(path):
        yield beir.passage_text(row, where).strip()


def _kind(folder: Path, split: str) -> Kind:
    parent = folder.resolve().parent.name
    if beir.file_of(folder, "corpus"):
        return "reranking" if parent in ("pair_rerank", "reranking") else "retrieval"
    first = _first_row(folder, split)
    keys = first.keys() if first else set()
    if {"text1", "text2", "score"} <= keys:
        path = beir.file_of(folder, split)
        binary = path is not None and all(row.get("score") in (0, 1) for _, row in read_rows(path))
        return "pair_classification" if binary else "sts"
    if {"text1", "text2"} <= keys:
        return "bitext_mining"
    if {"sentences", "labels"} <= keys:
        return "clustering"
    if {"human_summaries", "machine_summaries"} <= keys:
        return "summarization"
    if {"text", "label"} <= keys:
        return "clustering" if parent == "clustering" else "classification"
    raise DataError(
        f"{folder}: unknown kind of task, with the keys {sorted(keys)}. Write task.toml in the folder, with "
        'a line such as kind = "classification"'
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


def _load_bitext(path: Path) -> Bitext:
    pairs = [
        (fields.text(row, "text1", where), fields.text(row, "text2", where)) for where, row in read_rows(path)
    ]
    if not pairs:
        raise DataError(f"{path}: expected at least one pair of texts; the file is empty")
    text1, text2 = zip(*pairs, strict=True)
    return Bitext(text1, text2)


def _load_labelled(folder: Path, path: Path) -> tuple[Labelled, list[Path]]:
    texts, labels = _texts_and_labels(path)
    train = next((p for p in (beir.file_of(folder, n) for n in ("train", "validation", "dev")) if p), None)
    if train is None or train == path:
        return Labelled(texts, _numbered(labels, labels), [], np.empty(0, dtype=np.int64)), [path]
    train_texts, train_labels = _texts_and_labels(train)
    kinds = [_LABEL_KIND[type(part[0])] for part in (labels, train_labels)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{path}: the labels are {kinds[0]}, those of {train.name} are {kinds[1]}; expected one kind in "
            "both files. Write all of them with or without quotes."
        )
    if not set(labels) & set(train_labels):
        raise DataError(f"{path}: none of its labels is in {train.name}; expected the same classes in both")
    both = [*train_labels, *labels]
    data = Labelled(texts, _numbered(labels, both), train_texts, _numbered(train_labels, both))
    return data, [train, path]


def _texts_and_labels(path: Path) -> tuple[list[str], list[str | int]]:
    texts: list[str] = []
    labels: list[str | int] = []
    for where, row in read_rows(path):
        texts.append(fields.text(row, "text", where))
        labels.append(_like(labels, fields.label(row, "label", where), where))
    if len(set(labels)) < 2:
        raise DataError(f"{path}: expected at least two classes, got {len(set(labels))}")
    return texts, labels


_LABEL_KIND: dict[type, str] = {int: "whole numbers", str: "strings"}


def _like(labels: Sequence[str | int], label: str | int, where: str) -> str | int:
    """Return ``label``; refuse strings beside numbers: 1 and "1" would be two classes."""
    if labels and type(label) is not type(labels[0]):
        raise DataError(
            f"{where}: the label is {json.dumps(label)}, the labels before it are "
            f"{_LABEL_KIND[type(labels[0])]}; expected one kind. Write all of them with or without quotes."
        )
    return label


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
        labels_json = row.get("labels")
        if not isinstance(labels_json, list) or len(labels_json) != len(all_texts[-1]):
            raise DataError(f"{where}: expected one label per sentence in 'labels'")
        own: list[str | int] = []
        for value in labels_json:
            own.append(_like(own, fields.label({"labels": value}, "labels", where), where))
        all_labels.append(_numbered(own, own))
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
    """Digest the content of files, which is the same if they are compressed."""
    digest = hashlib.sha256()
    for path in files:
        with open_binary(path) as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:40]
