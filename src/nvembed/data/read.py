"""Rows of a source as examples, form by form."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from nvembed.data.crop import by_crop
from nvembed.data.example import Example
from nvembed.data.label import by_example, by_label, by_score
from nvembed.data.leaks import TextRecord
from nvembed.data.rows import text_key
from nvembed.data.sources import COLUMNS, HeldOutSet, TrainingSource
from nvembed.data.tables import Places, Rows, open_table
from nvembed.errors import DataError
from nvembed.read.lines import Row

# The column of titles that belongs to a column of texts.
TITLES = {"text": "title", "query": "query_title", "positive": "positive_title"}


def read_source(
    source: TrainingSource,
    places: Places,
    *,
    seed: int,
    leaks: Callable[[TextRecord], bool] = lambda _: False,
) -> Iterator[Example]:
    """Yield every example that ``source`` gives, not yet mined, in the order of its rows.

    Args:
        seed: decides what is random in sets made by example or from unlabelled text.
        leaks: whether a whole unlabelled text must be left out: its parts would not show it.

    Raises:
        DataError: rows that do not fit the source's form, or another number of rows than the source states.
        DownloadError, MissingExtraError: as ``open_table``.
    """
    tables = _Tables(source, places)
    if source.form == "example":
        examples = by_example(list(_labelled(tables)), task=source.task, seed=seed)
    elif source.form == "text":
        texts = (text for text in _texts(tables) if not leaks((text,)))
        examples = by_crop(texts, task=source.task, seed=seed)
    else:
        examples = _READERS[source.form](tables)
    query, passage = source.instruction, source.passage_instruction
    if query is None and passage is None:
        return examples
    return (replace(example, instruction=query, passage_instruction=passage) for example in examples)


def read_passages(source: TrainingSource, examples: Iterable[Example], places: Places) -> Iterator[str]:
    """Yield the passages from which negatives are mined, repetitions included.

    These are the whole corpus of forms ``qrels`` and ``ids``, every text of scored pairs, and the positives
    and negatives of ``examples`` for other forms.
    """
    tables = _Tables(source, places)
    if source.form in ("qrels", "ids"):
        yield from (text for _, text in tables.corpus() if text)
    elif source.form == "scores":
        for record in tables.records(source.config, source.split):
            yield from (record.text("text1"), record.text("text2"))
    else:
        for example in examples:
            yield from (*example.positives, *example.hard_negatives)


def read_records(source: TrainingSource, places: Places) -> Iterator[TextRecord]:
    """Yield the texts by which a training set can leak, a record at a time.

    A record is a scored pair, a labelled or unlabelled text, or the query and the positives of an example.
    """
    tables = _Tables(source, places)
    if source.form == "scores":
        yield from ((record.text("text1"), record.text("text2")) for record in tables.main())
    elif source.form in ("label", "example"):
        yield from ((text,) for text, _ in _labelled(tables))
    elif source.form == "text":
        yield from ((text,) for text in _texts(tables))
    else:
        yield from ((example.query, *example.positives) for example in read_source(source, places, seed=0))


def read_held_out(held_out: HeldOutSet, places: Places) -> Iterator[TextRecord]:
    """Yield the records of a held-out set, each as its texts.

    Raises:
        DataError: a missing column, a value that is not text, or no text in the whole set.
    """
    count = 0
    names = ", ".join(held_out.columns)
    for where, row in _held_out_rows(held_out, places):
        values = [_cell(row, column, where) for column in held_out.columns]
        records = [tuple(values)]
        if all(isinstance(value, list) for value in values):
            if len({len(value) for value in values}) > 1:
                lengths = ", ".join(str(len(value)) for value in values)
                raise DataError(f"{where}: {names}: expected lists of one length, got {lengths}")
            records = list(zip(*values, strict=True))
        for record in records:
            if odd := [value for value in record if not isinstance(value, str)]:
                raise DataError(f"{where}: {names}: expected text, got {_shown(odd[0])}")
            count += any(value.strip() for value in record)
            yield record
    if not count:
        raise DataError(
            f"{held_out.hub or held_out.path}: no record of the held-out set has a text, so no leak can be "
            "found; check its settings"
        )


def _held_out_rows(held_out: HeldOutSet, places: Places) -> Rows:
    table = open_table(held_out.hub, held_out.path, held_out.revision, places)
    rows = table(held_out.config, held_out.split)
    if held_out.form == "rows":
        return rows
    judged = {_id(_cell(row, COLUMNS["query_id"], where), where) for where, row in rows}
    queries = table("queries", "queries")
    return (
        (where, row) for where, row in queries if _id(_cell(row, _id_column(row), where), where) in judged
    )


@dataclass(frozen=True)
class _Record:
    """A row of a source. A *role* is what a column means; ``source.columns`` may give it another name."""

    source: TrainingSource
    where: str
    row: Row

    def value(self, role: str) -> Any:
        default = _id_column(self.row) if role == "id" else COLUMNS.get(role, role)
        return _cell(self.row, self.source.columns.get(role) or default, self.where, f" (the {role})")

    def text(self, role: str, *, title: bool = True) -> str:
        """Return a string, with its title before it if the source names a column of titles."""
        value = self.value(role)
        if not isinstance(value, str):
            raise self.fault(role, "a string", value)
        heading = TITLES.get(role, "")
        has_corpus = self.source.form in ("qrels", "ids")
        if title and (heading in self.source.columns or (has_corpus and heading in self.row)):
            return f"{self.value(heading) or ''} {value}".strip()
        return value.strip()

    def texts(self, role: str) -> tuple[str, ...]:
        """Return the distinct texts of a string or a list of strings, without blank ones."""
        value = self.value(role)
        if isinstance(value, str):
            values = [self.text(role)]
        elif isinstance(value, list) and all(isinstance(text, str) for text in value):
            values = [text.strip() for text in value]
        else:
            raise self.fault(role, "a string or a list of strings", value)
        return tuple(dict.fromkeys(text for text in values if text))

    def negatives(self, positives: tuple[str, ...]) -> tuple[str, ...]:
        """Return the source's negatives, if it has any."""
        if self.row.get(self.source.columns.get("negatives") or "negatives") is None:
            return ()
        return _without(self.texts("negatives"), positives)

    def number(self, role: str) -> float:
        value = self.value(role)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.where}: {role}: expected a number, got {value!r}") from error

    def name(self, role: str) -> str:
        return _id(self.value(role), f"{self.where}: {role}")

    def fault(self, role: str, expected: str, value: Any) -> DataError:
        return DataError(f"{self.where}: {role}: expected {expected}, got {_shown(value)}")


class _Tables:
    """The tables of a source, as records."""

    def __init__(self, source: TrainingSource, places: Places) -> None:
        self.source, self._places = source, places
        documents = source.form == "text"
        self._table = open_table(source.hub, source.path, source.revision, places, documents=documents)

    @property
    def name(self) -> str:
        return self.source.hub or self.source.path

    def records(self, config: str, split: str) -> Iterator[_Record]:
        return (_Record(self.source, where, row) for where, row in self._table(config, split))

    def main(self) -> Iterator[_Record]:
        """Yield the records of the source's own split that ``keep`` allows.

        Raises:
            DataError: the split has another number of rows than the source states.
        """
        source, count = self.source, 0
        for record in self.records(source.config, source.split):
            count += 1
            if all(str(record.row.get(column)) == value for column, value in source.keep.items()):
                yield record
        if source.rows is not None and count != source.rows:
            raise DataError(
                f"{self.name}: expected {source.rows:,} rows, got {count:,}: another version, or half a "
                "download?"
            )

    def corpus(self) -> Iterator[tuple[str, str]]:
        """Yield the id and the text of every passage."""
        place, table = self.source.corpus, self._table
        if place.hub:
            table = open_table(place.hub, "", place.revision, self._places)
        for where, row in table(place.config, place.split):
            record = _Record(self.source, where, row)
            yield record.name("id"), record.text("text")


def _pairs(tables: _Tables) -> Iterator[Example]:
    for record in tables.main():
        if positives := record.texts("positive"):
            yield Example(
                query=record.text("query"),
                positives=positives,
                hard_negatives=record.negatives(positives),
                task=tables.source.task,
            )


def _qrels(tables: _Tables) -> Iterator[Example]:
    """Join qrels with their texts."""
    passages_of: dict[str, list[str]] = defaultdict(list)
    for record in tables.main():
        if record.number("grade") >= tables.source.min_grade:
            passages_of[record.name("query_id")].append(record.name("passage_id"))
    texts = _passage_texts(tables, passages_of.values())
    for record in tables.records("queries", "queries"):
        names = passages_of.pop(record.name("id"), [])
        yield from _joined(tables.source, record.text("text", title=False), names, texts)
    if passages_of:
        raise DataError(f"{tables.name}: the qrels name {len(passages_of):,} queries that are not there")


def _ids(tables: _Tables) -> Iterator[Example]:
    """Join queries with the passages they name: a list, a list of ``{"key": id}``, or JSON of one."""
    queries = [(record.text("query"), _passage_ids(record)) for record in tables.main()]
    texts = _passage_texts(tables, (names for _, names in queries))
    for query, names in queries:
        yield from _joined(tables.source, query, names, texts)


def _passage_ids(record: _Record) -> list[str]:
    value = record.value("passage_ids")
    try:
        names = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        names = None
    if not isinstance(names, list) or any(isinstance(n, dict) and "key" not in n for n in names):
        raise DataError(
            f'{record.where}: passage_ids: expected a list of ids or of {{"key": id}}, or JSON of one; '
            f"got {str(value)[:60]!r}"
        )
    return [str(name["key"] if isinstance(name, dict) else name) for name in names]


def _passage_texts(tables: _Tables, id_lists: Iterable[list[str]]) -> dict[str, str]:
    """Return the passages that some query names: only these are held, however large the corpus is."""
    ids = {name for names in id_lists for name in names}
    return {name: text for name, text in tables.corpus() if name in ids and text}


def _joined(source: TrainingSource, query: str, names: list[str], texts: dict[str, str]) -> Iterator[Example]:
    """Yield the query's example, if the corpus has one of its passages: most sets have some dead links."""
    if names := [name for name in dict.fromkeys(names) if name in texts]:
        yield Example(
            query=query,
            positives=tuple(texts[name] for name in names),
            positive_ids=tuple(f"{source.task}/{name}" for name in names),
            task=source.task,
        )


def _nli(tables: _Tables) -> Iterator[Example]:
    premises: dict[str, tuple[list[str], list[str]]] = {}
    for record in tables.main():
        label = str(record.value("label"))
        if label in ("0", "2", "entailment", "contradiction"):
            yes, no = premises.setdefault(record.text("premise"), ([], []))
            (yes if label in ("0", "entailment") else no).append(record.text("hypothesis"))
    for premise, (entailed, contradicted) in premises.items():
        for positive in dict.fromkeys(entailed):
            negatives = _without(tuple(dict.fromkeys(contradicted)), (positive,))
            yield Example(
                query=premise, positives=(positive,), hard_negatives=negatives, task=tables.source.task
            )


def _scores(tables: _Tables) -> Iterator[Example]:
    rows = ((record.text("text1"), record.text("text2"), record.number("score")) for record in tables.main())
    return by_score(rows, task=tables.source.task, min_score=tables.source.min_score)


def _label(tables: _Tables) -> Iterator[Example]:
    rows = list(_labelled(tables))
    labels = sorted({label for _, label in rows})
    texts = tables.source.label_texts or {label: label.replace("_", " ") for label in labels}
    return by_label(rows, texts, task=tables.source.task)


_READERS: dict[str, Callable[[_Tables], Iterator[Example]]] = {
    "pairs": _pairs,
    "qrels": _qrels,
    "ids": _ids,
    "nli": _nli,
    "scores": _scores,
    "label": _label,
}


def _labelled(tables: _Tables) -> Iterator[tuple[str, str]]:
    """Yield (text, label) of every text that is not blank.

    A row may hold lists of both, as clustering sets do. Of one text's list of labels the first counts.
    """
    for record in tables.main():
        where, texts, labels = record.where, record.value("text"), record.value("label")
        if not isinstance(texts, list):
            blank = texts is None or not str(texts).strip()
            texts = [None if blank else record.text("text")]
            labels = labels[:1] if isinstance(labels, list) else [labels]
        if not isinstance(labels, list) or len(labels) != len(texts):
            got = len(labels) if isinstance(labels, list) else _shown(labels)
            raise DataError(f"{where}: label: expected {len(texts)}, one for each text; got {got}")
        for text, label in zip(texts, labels, strict=True):
            if not isinstance(text, str | None):
                raise record.fault("text", "a string", text)
            if text and text.strip():
                if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
                    raise record.fault("label", "a string or a whole number", label)
                yield text, str(label)


def _texts(tables: _Tables) -> Iterator[str]:
    """Yield the unlabelled texts; a row may hold several."""
    for record in tables.main():
        yield from record.texts("text")


def _id_column(row: Row) -> str:
    """Return the column with a text's own id: ``_id``, or ``id``."""
    return "id" if "_id" not in row and "id" in row else "_id"


def _cell(row: Row, column: str, where: str, role: str = "") -> Any:
    if column not in row:
        raise DataError(f"{where}: no column {column!r}{role}; columns: {', '.join(sorted(row))}")
    return row[column]


def _id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: expected an id, a string or a whole number; got {_shown(value)}")
    return str(value)


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def _without(texts: tuple[str, ...], positives: tuple[str, ...]) -> tuple[str, ...]:
    """Drop what equals a positive: published negatives do contain some."""
    known = {text_key(text) for text in positives}
    return tuple(text for text in texts if text_key(text) not in known)
