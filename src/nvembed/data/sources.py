"""Where training records come from: data sets of the hub, or local files, each described in a recipe.

A source says which rows to read and what form they have; ``read_source`` turns them into examples.

    pairs    query and positive, perhaps negatives
    qrels    the BEIR layout: corpus, queries, and qrels that join them
    nli      premise, hypothesis, label: entailments are positives, contradictions of the premise negatives
    scores   two texts and a similarity: pairs of ``min_score`` or more, in both directions
    label    text and label; the passages are the label texts
    example  text and label; the passages are other texts
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nvembed.data.example import Example
from nvembed.data.label import by_example, by_label, by_score
from nvembed.data.rows import Row, read_rows, text_key
from nvembed.errors import DataError, DownloadError, MissingExtraError
from nvembed.recipe import Recipe, nearest

Form = Literal["pairs", "qrels", "nli", "scores", "label", "example"]

# form -> the roles that its columns must and may play
_ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pairs": (("query", "positive"), ("negatives", "query_title", "positive_title")),
    "qrels": (("id", "text", "query_id", "passage_id", "grade"), ("title",)),
    "nli": (("premise", "hypothesis", "label"), ()),
    "scores": (("text1", "text2", "score"), ()),
    "label": (("text", "label"), ("title",)),
    "example": (("text", "label"), ("title",)),
}

# the column that plays a role unless the recipe names another; else it has the role's own name
_COLUMNS = {"id": "_id", "query_id": "query-id", "passage_id": "corpus-id", "grade": "score"}


class Source(Recipe):
    """One training set: where it is, what its rows look like, and how much of it is used."""

    task: str
    form: Form
    licence: str
    samples: int = Field(gt=0)
    """How many examples the blend draws."""
    stages: tuple[int, ...]
    """The stages that train on it."""
    hub: str = ""
    """A data set of the hub, ``owner/name``; or else ``path``."""
    path: str = ""
    """A local file, or for qrels a folder, below the root that is given when reading."""
    config: str = ""
    revision: str = ""
    split: str = "train"
    rows: int | None = None
    """How many rows the split is known to have; another number is an error. Unknown: left out."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Role -> column, where the column has another name than the role."""
    keep: dict[str, str] = Field(default_factory=dict)
    """Column -> the value (as text) that a row must have to be read."""
    label_texts: dict[str, str] = Field(default_factory=dict)
    """Form ``label``: value of the label -> text of the passage."""
    min_score: float = 4.0
    min_grade: int = 1
    mine: bool = True
    """Hard negatives are mined from the passages of the set; else the set brings or makes its own."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.hub) == bool(self.path):
            raise ValueError(f"either hub or path, got hub={self.hub!r} and path={self.path!r}")
        if self.hub and not self.revision:
            raise ValueError("a revision of the hub's data set ('main' if none can be pinned)")
        must, may = _ROLES[self.form]
        for role in self.columns.keys() - {*must, *may}:
            raise ValueError(f"roles of form {self.form!r}, got {role!r}: {nearest(role, [*must, *may])}")
        if (self.form == "label") != bool(self.label_texts):
            raise ValueError(f"label_texts with form 'label', and only there; form is {self.form!r}")
        if self.mine and self.form in ("label", "example"):
            raise ValueError(f"mine = false with form {self.form!r}, which makes its own negatives")
        return self


class BlendRecipe(Recipe):
    """``blend.toml``: every training set of a model, by name."""

    seed: int
    sets: dict[str, Source] = Field(min_length=1)

    def of_stage(self, stage: int) -> dict[str, Source]:
        return {name: source for name, source in self.sets.items() if stage in source.stages}


Rows = Iterable[tuple[str, Row]]
# (config, split) of a source -> its rows, each with the words that name it in an error
Table = Callable[[str, str], Rows]


def read_source(source: Source, *, root: Path, seed: int, mirror: Path | None = None) -> Iterator[Example]:
    """Yield every example that ``source`` gives, not yet mined, in the order of its rows.

    Args:
        root: the folder below which local paths lie.
        seed: decides what is random in sets made by example.
        mirror: a folder that holds copies of the hub's data sets as ``owner/name``; nothing is downloaded.

    Raises:
        DataError: rows that do not fit the source's form, or another number of them than stated.
        DownloadError: the hub's data set could not be read.
        MissingExtraError: a hub's set without the extra ``train``.
    """
    table = _local_table(source, root) if source.path else _hub_table(source, mirror)
    if source.form == "example":
        yield from by_example(list(_labelled(source, table)), task=source.task, seed=seed)
    else:
        yield from _READERS[source.form](source, table)


def _pairs(source: Source, table: Table) -> Iterator[Example]:
    for where, row in _main_rows(source, table):
        positives = _several(source, row, "positive", where)
        if positives:
            yield Example(
                query=_text(source, row, "query", where),
                positives=positives,
                hard_negatives=_without(_several(source, row, "negatives", where), positives),
                task=source.task,
            )


def _qrels(source: Source, table: Table) -> Iterator[Example]:
    """Join qrels with their texts, holding only the passages that some query needs."""
    wanted: dict[str, list[str]] = defaultdict(list)
    for where, row in _main_rows(source, table):
        grade = _number(source, row, "grade", where)
        if grade >= source.min_grade:
            wanted[_identity(source, row, "query_id", where)].append(
                _identity(source, row, "passage_id", where)
            )
    needed = {passage for passages in wanted.values() for passage in passages}
    texts: dict[str, str] = {}
    for where, row in table("corpus", "corpus"):
        if (name := _identity(source, row, "id", where)) in needed:
            texts[name] = _text(source, row, "text", where)
    for where, row in table("queries", "queries"):
        query_id = _identity(source, row, "id", where)
        ids = [name for name in dict.fromkeys(wanted.pop(query_id, [])) if texts.get(name, "").strip()]
        if ids:
            yield Example(
                query=_text(source, row, "text", where, title=False),
                positives=tuple(texts[name] for name in ids),
                positive_ids=tuple(f"{source.task}/{name}" for name in ids),
                task=source.task,
            )
    if wanted:
        raise DataError(f"{source.hub or source.path}: qrels name {len(wanted):,} queries that are not there")


def corpus_of(source: Source, *, root: Path, mirror: Path | None = None) -> Iterator[str]:
    """Yield the passages of a qrels source: the whole corpus, from which its negatives are mined."""
    table = _local_table(source, root) if source.path else _hub_table(source, mirror)
    for where, row in table("corpus", "corpus"):
        if text := _text(source, row, "text", where).strip():
            yield text


def _nli(source: Source, table: Table) -> Iterator[Example]:
    premises: dict[str, tuple[list[str], list[str]]] = {}
    for where, row in _main_rows(source, table):
        label = str(_value(source, row, "label", where))
        if label in ("0", "2", "entailment", "contradiction"):
            yes, no = premises.setdefault(_text(source, row, "premise", where), ([], []))
            (yes if label in ("0", "entailment") else no).append(_text(source, row, "hypothesis", where))
    for premise, (entailed, contradicted) in premises.items():
        for positive in dict.fromkeys(entailed):
            negatives = _without(tuple(dict.fromkeys(contradicted)), (positive,))
            yield Example(query=premise, positives=(positive,), hard_negatives=negatives, task=source.task)


def _scores(source: Source, table: Table) -> Iterator[Example]:
    rows = (
        (
            _text(source, row, "text1", where),
            _text(source, row, "text2", where),
            _number(source, row, "score", where),
        )
        for where, row in _main_rows(source, table)
    )
    yield from by_score(rows, task=source.task, min_score=source.min_score)


def _label(source: Source, table: Table) -> Iterator[Example]:
    yield from by_label(_labelled(source, table), source.label_texts, task=source.task)


_READERS: dict[str, Callable[[Source, Table], Iterator[Example]]] = {
    "pairs": _pairs,
    "qrels": _qrels,
    "nli": _nli,
    "scores": _scores,
    "label": _label,
}


def _labelled(source: Source, table: Table) -> Iterator[tuple[str, str]]:
    """Yield (text, label); a row may hold lists of both, as clustering sets do."""
    for where, row in _main_rows(source, table):
        text, label = _value(source, row, "text", where), _value(source, row, "label", where)
        if isinstance(text, list) and isinstance(label, list):
            yield from ((str(t), str(name)) for t, name in zip(text, label, strict=True) if str(t).strip())
        elif text and str(text).strip():
            yield _text(source, row, "text", where), str(label[0] if isinstance(label, list) else label)


def _main_rows(source: Source, table: Table) -> Rows:
    count = 0
    for where, row in table(source.config, source.split):
        count += 1
        if all(str(row.get(column)) == value for column, value in source.keep.items()):
            yield where, row
    if source.rows is not None and count != source.rows:
        name = source.hub or source.path
        raise DataError(
            f"{name}: expected {source.rows:,} rows, got {count:,}: another version, or half a download?"
        )


def _value(source: Source, row: Row, role: str, where: str) -> Any:
    column = _column(source, role)
    if column not in row:
        raise DataError(f"{where}: no column {column!r} (the {role}); columns: {', '.join(sorted(row))}")
    return row[column]


def _column(source: Source, role: str) -> str:
    return source.columns.get(role) or _COLUMNS.get(role, role)


def _identity(source: Source, row: Row, role: str, where: str) -> str:
    return str(_value(source, row, role, where))


def _text(source: Source, row: Row, role: str, where: str, *, title: bool = True) -> str:
    """Return the text in ``role``, after its title where the source names a column for it."""
    value = _value(source, row, role, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: {role}: expected a string, got {type(value).__name__} {str(value)[:60]!r}")
    heading = {"text": "title", "query": "query_title", "positive": "positive_title"}.get(role, "")
    if title and (heading in source.columns or (source.form == "qrels" and heading in row)):
        return f"{_value(source, row, heading, where) or ''} {value}".strip()
    return value.strip()


def _number(source: Source, row: Row, role: str, where: str) -> float:
    value = _value(source, row, role, where)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {role}: expected a number, got {value!r}") from error


def _several(source: Source, row: Row, role: str, where: str) -> tuple[str, ...]:
    """Return the texts of a column that holds one string or a list, without blanks and repetitions."""
    if role == "negatives" and _column(source, role) not in row:
        return ()
    value = _value(source, row, role, where)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        texts = [text.strip() for text in value]
    elif isinstance(value, str):
        texts = [_text(source, row, role, where)]
    else:
        raise DataError(f"{where}: {role}: expected a string or a list of them, got {str(value)[:60]!r}")
    return tuple(dict.fromkeys(text for text in texts if text))


def _without(texts: tuple[str, ...], positives: tuple[str, ...]) -> tuple[str, ...]:
    """Drop what equals a positive: published negatives do contain some."""
    known = {text_key(text) for text in positives}
    return tuple(text for text in texts if text_key(text) not in known)


def _local_table(source: Source, root: Path) -> Table:
    path = root / source.path

    def table(config: str, split: str) -> Rows:
        if source.form != "qrels":
            return read_rows(path)
        if config in ("corpus", "queries"):
            found = [path / f"{config}{ending}" for ending in (".jsonl", ".jsonl.gz", ".parquet")]
            return read_rows(next((file for file in found if file.is_file()), found[0]))
        return _tsv(path / "qrels" / f"{split}.tsv")

    return table


def _tsv(path: Path) -> Rows:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: expected qrels with a header: {error.strerror or error}") from error
    header = lines[0].split("\t") if lines else []
    for number, line in enumerate(lines[1:], start=2):
        values = line.split("\t")
        if len(values) != len(header):
            raise DataError(
                f"{path}:{number}: expected {len(header)} columns ({', '.join(header)}), got {len(values)}"
            )
        yield f"{path}:{number}", dict(zip(header, values, strict=True))


def _hub_table(source: Source, mirror: Path | None) -> Table:
    place = source.hub if mirror is None else str(mirror / source.hub)
    revision = source.revision if mirror is None else None

    def table(config: str, split: str) -> Rows:
        try:
            from datasets import load_dataset
        except ImportError as error:
            raise MissingExtraError("data sets of the hub need: pip install 'nvembed[train]'") from error
        try:
            found = load_dataset(place, config or None, split=split, revision=revision)
        except (OSError, ValueError, RuntimeError) as error:
            what = f"{source.hub} (config {config or 'default'}, split {split}, revision {source.revision})"
            raise DownloadError(f"could not read {what}: {error}") from error
        for number, row in enumerate(found, start=1):
            yield f"{source.hub}:{number}", row

    return table


def local_root(start: str | os.PathLike[str]) -> Path | None:
    """Return the folder ``shared/data`` beside ``start`` or one of its parents, if there is one."""
    for parent in Path(start).resolve().parents:
        if (parent / "shared" / "data").is_dir():
            return parent / "shared" / "data"
    return None
