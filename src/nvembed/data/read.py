"""Rows of a source as examples, form by form."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from nvembed.data.crop import by_crop
from nvembed.data.example import Example
from nvembed.data.label import by_example, by_label, by_score
from nvembed.data.leaks import TextRecord
from nvembed.data.rows import text_key
from nvembed.data.sources import COLUMNS, HeldOutSet, TrainingSource
from nvembed.data.tables import Places, Rows, Table, open_table
from nvembed.errors import DataError
from nvembed.read.lines import Row


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
    if source.form == "example":
        examples = by_example(list(_labelled(source, places)), task=source.task, seed=seed)
    elif source.form == "text":
        texts = (text for text in _texts(source, places) if not leaks((text,)))
        examples = by_crop(texts, task=source.task, seed=seed)
    else:
        examples = _READERS[source.form](source, places)
    query, passage = source.instruction, source.passage_instruction
    if query is None and passage is None:
        return examples
    return (replace(example, instruction=query, passage_instruction=passage) for example in examples)


def read_passages(source: TrainingSource, examples: Iterable[Example], places: Places) -> Iterator[str]:
    """Yield the passages from which negatives are mined, repetitions included.

    Of sources with a corpus that is all of it, of scored pairs every text, of others the positives and
    negatives of ``examples``.
    """
    if source.form in ("qrels", "ids"):
        yield from (text for _, text in _corpus(source, places) if text)
    elif source.form == "scores":
        for where, row in _table(source, places)(source.config, source.split):
            yield _text(source, row, "text1", where)
            yield _text(source, row, "text2", where)
    else:
        for example in examples:
            yield from (*example.positives, *example.hard_negatives)


def read_records(source: TrainingSource, places: Places) -> Iterator[TextRecord]:
    """Yield the texts by which a training set can leak, a record at a time.

    Every scored pair once, every labelled or unlabelled text, of other forms the query and positives of each
    example.
    """
    if source.form == "scores":
        for where, row in _main_rows(source, places):
            yield _text(source, row, "text1", where), _text(source, row, "text2", where)
    elif source.form in ("label", "example"):
        yield from ((text,) for text, _ in _labelled(source, places))
    elif source.form == "text":
        yield from ((text,) for text in _texts(source, places))
    else:
        yield from ((example.query, *example.positives) for example in read_source(source, places, seed=0))


def read_held_out(held_out: HeldOutSet, places: Places) -> Iterator[TextRecord]:
    """Yield the records of a held-out set, each as its texts.

    Raises:
        DataError: a column that is not there.
    """
    count = 0
    for where, row in _held_out_rows(held_out, places):
        values = [_cell(row, column, where) for column in held_out.columns]
        if all(isinstance(value, list) for value in values):
            if len({len(value) for value in values}) > 1:
                lengths = ", ".join(str(len(value)) for value in values)
                names = ", ".join(held_out.columns)
                raise DataError(f"{where}: {names}: expected lists of one length, got {lengths}")
            records = list(zip(*values, strict=True))
        else:
            records = [tuple(values)]
        for record in records:
            if odd := [value for value in record if not isinstance(value, str)]:
                names = ", ".join(held_out.columns)
                raise DataError(f"{where}: {names}: expected text, got {_shown(odd[0])}")
            count += any(value.strip() for value in record)
            yield record
    if not count:
        name = held_out.hub or held_out.path
        raise DataError(
            f"{name}: no record of the held-out set has a text, so no leak can be found; check its settings"
        )


def _held_out_rows(held_out: HeldOutSet, places: Places) -> Rows:
    table = _table(held_out, places)
    rows = table(held_out.config, held_out.split)
    if held_out.form == "rows":
        return rows
    judged = {_id(_cell(row, COLUMNS["query_id"], where), where) for where, row in rows}
    queries = table("queries", "queries")
    return (
        (where, row) for where, row in queries if _id(_cell(row, _id_column(row), where), where) in judged
    )


def _pairs(source: TrainingSource, places: Places) -> Iterator[Example]:
    for where, row in _main_rows(source, places):
        if positives := _several(source, row, "positive", where):
            yield Example(
                query=_text(source, row, "query", where),
                positives=positives,
                hard_negatives=_without(_several(source, row, "negatives", where), positives),
                task=source.task,
            )


def _qrels(source: TrainingSource, places: Places) -> Iterator[Example]:
    """Join qrels with their texts."""
    passages_of: dict[str, list[str]] = defaultdict(list)
    for where, row in _main_rows(source, places):
        if _number(source, row, "grade", where) >= source.min_grade:
            passages_of[_name(source, row, "query_id", where)].append(_name(source, row, "passage_id", where))
    texts = _wanted_texts(source, places, passages_of.values())
    for where, row in _table(source, places)("queries", "queries"):
        names = passages_of.pop(_name(source, row, "id", where), [])
        yield from _joined(source, _text(source, row, "text", where, title=False), names, texts)
    if passages_of:
        name = source.hub or source.path
        raise DataError(f"{name}: the qrels name {len(passages_of):,} queries that are not there")


def _ids(source: TrainingSource, places: Places) -> Iterator[Example]:
    """Join queries with the passages they name: a list, a list of ``{"key": id}``, or JSON of one."""
    queries: list[tuple[str, list[str]]] = []
    for where, row in _main_rows(source, places):
        value = _value(source, row, "passage_ids", where)
        try:
            names = json.loads(value) if isinstance(value, str) else value
        except ValueError:
            names = None
        if not isinstance(names, list) or any(isinstance(n, dict) and "key" not in n for n in names):
            raise DataError(
                f'{where}: passage_ids: expected a list of ids or of {{"key": id}}, or JSON of one; '
                f"got {str(value)[:60]!r}"
            )
        names = [str(name["key"] if isinstance(name, dict) else name) for name in names]
        queries.append((_text(source, row, "query", where), names))
    texts = _wanted_texts(source, places, (names for _, names in queries))
    for query, names in queries:
        yield from _joined(source, query, names, texts)


def _wanted_texts(source: TrainingSource, places: Places, id_lists: Iterable[list[str]]) -> dict[str, str]:
    """Return the passages that some query names: only these are held, however large the corpus."""
    ids = {name for names in id_lists for name in names}
    return {name: text for name, text in _corpus(source, places) if name in ids and text}


def _joined(source: TrainingSource, query: str, names: list[str], texts: dict[str, str]) -> Iterator[Example]:
    """Yield the query's example, if any of its passages is there: most sets have some dead links."""
    if names := [name for name in dict.fromkeys(names) if name in texts]:
        yield Example(
            query=query,
            positives=tuple(texts[name] for name in names),
            positive_ids=tuple(f"{source.task}/{name}" for name in names),
            task=source.task,
        )


def _corpus(source: TrainingSource, places: Places) -> Iterator[tuple[str, str]]:
    corpus = source.corpus
    table = open_table(corpus.hub, "", corpus.revision, places) if corpus.hub else _table(source, places)
    for where, row in table(corpus.config, corpus.split):
        yield _name(source, row, "id", where), _text(source, row, "text", where)


def _nli(source: TrainingSource, places: Places) -> Iterator[Example]:
    premises: dict[str, tuple[list[str], list[str]]] = {}
    for where, row in _main_rows(source, places):
        label = str(_value(source, row, "label", where))
        if label in ("0", "2", "entailment", "contradiction"):
            yes, no = premises.setdefault(_text(source, row, "premise", where), ([], []))
            (yes if label in ("0", "entailment") else no).append(_text(source, row, "hypothesis", where))
    for premise, (entailed, contradicted) in premises.items():
        for positive in dict.fromkeys(entailed):
            negatives = _without(tuple(dict.fromkeys(contradicted)), (positive,))
            yield Example(query=premise, positives=(positive,), hard_negatives=negatives, task=source.task)


def _scores(source: TrainingSource, places: Places) -> Iterator[Example]:
    rows = (
        (
            _text(source, row, "text1", where),
            _text(source, row, "text2", where),
            _number(source, row, "score", where),
        )
        for where, row in _main_rows(source, places)
    )
    yield from by_score(rows, task=source.task, min_score=source.min_score)


def _label(source: TrainingSource, places: Places) -> Iterator[Example]:
    rows = list(_labelled(source, places))
    labels = sorted({label for _, label in rows})
    texts = source.label_texts or {label: label.replace("_", " ") for label in labels}
    yield from by_label(rows, texts, task=source.task)


_READERS: dict[str, Callable[[TrainingSource, Places], Iterator[Example]]] = {
    "pairs": _pairs,
    "qrels": _qrels,
    "ids": _ids,
    "nli": _nli,
    "scores": _scores,
    "label": _label,
}


def _table(place: TrainingSource | HeldOutSet, places: Places) -> Table:
    return open_table(place.hub, place.path, place.revision, places)


def _labelled(source: TrainingSource, places: Places) -> Iterator[tuple[str, str]]:
    """Yield (text, label) of every text that is not blank.

    A row may hold lists of both, as clustering sets do; of one text's list of labels the first counts.
    """
    for where, row in _main_rows(source, places):
        texts, labels = _value(source, row, "text", where), _value(source, row, "label", where)
        if not isinstance(texts, list):
            blank = texts is None or not str(texts).strip()
            texts = [None if blank else _text(source, row, "text", where)]
            labels = labels[:1] if isinstance(labels, list) else [labels]
        if not isinstance(labels, list) or len(labels) != len(texts):
            got = len(labels) if isinstance(labels, list) else _shown(labels)
            raise DataError(f"{where}: label: expected {len(texts)}, one for each text; got {got}")
        for text, label in zip(texts, labels, strict=True):
            if not isinstance(text, str | None):
                raise DataError(f"{where}: text: expected a string, got {_shown(text)}")
            if text and text.strip():
                yield text, _label_name(label, where)


def _label_name(label: Any, where: str) -> str:
    """Return a label's name: a string, or a whole number."""
    if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
        raise DataError(f"{where}: label: expected a string or a whole number, got {_shown(label)}")
    return str(label)


def _texts(source: TrainingSource, places: Places) -> Iterator[str]:
    """Yield the unlabelled texts; a row may hold several."""
    for where, row in _main_rows(source, places):
        yield from _several(source, row, "text", where)


def _main_rows(source: TrainingSource, places: Places) -> Rows:
    count = 0
    for where, row in _table(source, places)(source.config, source.split):
        count += 1
        if all(str(row.get(column)) == value for column, value in source.keep.items()):
            yield where, row
    if source.rows is not None and count != source.rows:
        name = source.hub or source.path
        raise DataError(
            f"{name}: expected {source.rows:,} rows, got {count:,}: another version, or half a download?"
        )


def _value(source: TrainingSource, row: Row, role: str, where: str) -> Any:
    column = source.columns.get(role) or (_id_column(row) if role == "id" else COLUMNS.get(role, role))
    return _cell(row, column, where, f" (the {role})")


def _id_column(row: Row) -> str:
    """Return the column with a text's own id: ``_id``, or ``id``."""
    return "id" if "_id" not in row and "id" in row else "_id"


def _cell(row: Row, column: str, where: str, role: str = "") -> Any:
    if column not in row:
        raise DataError(f"{where}: no column {column!r}{role}; columns: {', '.join(sorted(row))}")
    return row[column]


def _shown(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def _column(source: TrainingSource, role: str) -> str:
    return source.columns.get(role) or COLUMNS.get(role, role)


def _name(source: TrainingSource, row: Row, role: str, where: str) -> str:
    return _id(_value(source, row, role, where), f"{where}: {role}")


def _id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"{where}: expected an id, a string or a whole number; got {_shown(value)}")
    return str(value)


def _text(source: TrainingSource, row: Row, role: str, where: str, *, title: bool = True) -> str:
    """Return the text in ``role``, with its title before it where the source names a column of titles."""
    value = _value(source, row, role, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: {role}: expected a string, got {_shown(value)}")
    heading = {"text": "title", "query": "query_title", "positive": "positive_title"}.get(role, "")
    if title and (heading in source.columns or (source.form in ("qrels", "ids") and heading in row)):
        return f"{_value(source, row, heading, where) or ''} {value}".strip()
    return value.strip()


def _number(source: TrainingSource, row: Row, role: str, where: str) -> float:
    value = _value(source, row, role, where)
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: {role}: expected a number, got {value!r}") from error


def _several(source: TrainingSource, row: Row, role: str, where: str) -> tuple[str, ...]:
    """Return the texts of a column that holds one string or a list, without blanks and repetitions."""
    if role == "negatives" and row.get(_column(source, role)) is None:
        return ()
    value = _value(source, row, role, where)
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        texts = [text.strip() for text in value]
    elif isinstance(value, str):
        texts = [_text(source, row, role, where)]
    else:
        raise DataError(f"{where}: {role}: expected a string or a list of strings, got {_shown(value)}")
    return tuple(dict.fromkeys(text for text in texts if text))


def _without(texts: tuple[str, ...], positives: tuple[str, ...]) -> tuple[str, ...]:
    """Drop what equals a positive: published negatives do contain some."""
    known = {text_key(text) for text in positives}
    return tuple(text for text in texts if text_key(text) not in known)
