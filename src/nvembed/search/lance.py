"""An index on disk: a LanceDB table.  N rows, D numbers of a vector.

The table has the columns of docs/reference/embedded-corpus.md, the column ``words``, and one for each
metadata field (``m_...``). LanceDB commits each change as a version, so a killed job leaves the version
before its last change.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import lancedb
import lancedb.expr
import lancedb.index
import lancedb.query
import numpy as np
import pyarrow as pa

from nvembed.errors import OutputError
from nvembed.search.fields import Kind, field_values
from nvembed.search.store import EXACT_ROWS, Near, Row, Scored, errors_of
from nvembed.search.where import OWN_FIELDS, Condition

KINDS = ("auto", "exact", "rq")
# Candidates fetched per requested hit; benchmarks/index.py measures the recall.
OVERSAMPLE = {"exact": 2, "rq": 10}
READ_ROWS = 4096  # at a time, when the whole table is read
PROBES = 20  # partitions of LanceDB's index that are read
_COLUMNS = ["id", "document", "start", "end", "text", "metadata"]
# A date is text that sorts by time; a list is text too, see _list_text.
_ARROW = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
# A running process may read an older version; no search takes this long.
_KEEP_VERSIONS, _KEEP_ALL = timedelta(minutes=10), timedelta(days=36_500)
_ERRORS = (RuntimeError, ValueError, OSError)  # ValueError: also of pyarrow, and of a missing table
_reading = errors_of("LanceDB", _ERRORS)
_writing = errors_of("LanceDB", _ERRORS, writing=True)
_queries: Any = lancedb.query  # pydantic's dataclasses, whose defaults a type checker does not see
_TABLE = re.compile(r"nvembed_[0-9a-f]{8}")


class LanceStore:
    """A table in a LanceDB folder.

    Args:
        folder: the database.
        name: of the table, which ``fill`` makes.
        kind: one of ``KINDS``; ``auto`` is ``exact`` below ``EXACT_ROWS`` passages and ``rq`` from there on.
    """

    def __init__(self, folder: Path, name: str, kind: str) -> None:
        # A table may be open for months: every change must be visible, and removed files must not be read.
        self._database: Any = lancedb.connect(str(folder), read_consistency_interval=timedelta(0))
        self._name = name
        self._kind = kind
        self._opened: Any = None

    @_writing
    def fill(self, batches: Iterator[pa.RecordBatch], fields: dict[str, Kind]) -> list[str]:
        first = _with_fields(next(batches), fields)
        rest = (_with_fields(batch, fields) for batch in batches)
        parts = (part for table in chain([first], rest) for part in table.to_batches())
        reader = pa.RecordBatchReader.from_batches(first.schema, parts)
        self._opened = self._database.create_table(self._name, data=reader)
        return []

    @_writing
    def put(self, batch: pa.RecordBatch, fields: dict[str, Kind]) -> list[str]:
        rows = _with_fields(batch, fields)
        table = self._table()
        columns = set(table.schema.names)
        new = [rows.schema.field(name) for name in rows.schema.names if name not in columns]
        if new:
            table.add_columns(new)
        replaced = f"document IN ({', '.join(map(_quoted, sorted(set(batch['document'].to_pylist()))))})"
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        # one commit, so that a document is always whole
        merge.when_not_matched_by_source_delete(replaced).execute(rows)
        return []

    @_writing
    def delete(self, documents: Sequence[str]) -> None:
        if not documents:
            return
        self._table().delete(f"document IN ({', '.join(map(_quoted, documents))})")

    @_reading
    def known(self, documents: Sequence[str]) -> set[str]:
        if not documents:
            return set()
        column = lancedb.expr.col("document")
        query = self._table().search().select(["document"]).where(column.isin(list(documents)))
        return set(query.limit(None).to_arrow()["document"].to_pylist())

    @_reading
    def documents(self) -> set[str]:
        column = self._table().search().select(["document"]).limit(None).to_arrow()["document"]
        return set(column.unique().to_pylist())

    @_reading
    def passages(self, documents: Sequence[str]) -> pa.Table:
        column = lancedb.expr.col("document")
        query = self._table().search().select([*_COLUMNS, "tokens", "truncated", "vector"])
        table: pa.Table = query.where(column.isin(list(documents))).limit(None).to_arrow()
        return table

    def texts(self) -> Iterator[tuple[str, str, str]]:
        names = ["id", "text", "metadata"]
        with errors_of("LanceDB", _ERRORS):
            for batch in self._table().search().select(names).limit(None).to_batches(READ_ROWS):
                yield from zip(*(batch[name].to_pylist() for name in names), strict=True)

    @_writing
    def finish(self) -> None:
        table = self._table()
        present = {tuple(index.columns) for index in table.list_indices()}
        exact = self._kind_for(table.count_rows()) == "exact"
        configs = _index_configs()
        for column, config in configs.items():
            # Indexing all words again takes a second per 100,000 passages. An index that is updated instead
            # goes on counting deleted passages in the frequencies of words, and ranks passages differently.
            if column == "words" or ((column,) not in present and not (column == "vector" and exact)):
                table.create_index(column, config=config, replace=True)
        table.optimize(cleanup_older_than=_KEEP_ALL)
        for column in _unindexed(table):  # its index is damaged, perhaps by a write that failed
            table.create_index(column, config=configs[column], replace=True)
        if columns := _unindexed(table):
            raise OutputError(
                f"LanceDB did not index every passage in {', '.join(columns)}: run the command again"
            )
        self._opened = None  # what is read from now on is read from disk

    @contextmanager
    def change(self) -> Iterator[None]:
        version = self._table().version
        try:
            yield
        except Exception:
            with suppress(*_ERRORS):  # the first error is the one to report
                self._opened = None
                self._table().restore(version)
            raise
        with errors_of("LanceDB", _ERRORS, writing=True):
            self._table().optimize(cleanup_older_than=_KEEP_VERSIONS)

    @_reading
    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        table = self._table()
        kind = self._kind_for(table.count_rows())
        query = table.search(vector_D).distance_type("cosine").nprobes(PROBES)
        if kind == "exact":
            query = query.bypass_vector_index()
        query = query.select([*_COLUMNS, "vector", "_distance"]).limit(count * OVERSAMPLE[kind])
        rows = self._read(query, where)
        return Near(_rows(rows), _matrix(rows["vector"]))

    @_reading
    def matching(self, words: Sequence[str], count: int, where: Sequence[Condition]) -> list[Scored]:
        match = _queries.MatchQuery(" ".join(words), "words")
        query = self._table().search(match, query_type="fts").select([*_COLUMNS, "_score"]).limit(count)
        rows = self._read(query, where)
        return list(zip(_rows(rows), rows["_score"].to_pylist(), strict=True))

    @_reading
    def count(self) -> tuple[int, int]:
        documents = self._table().search().select(["document"]).limit(None).to_arrow()["document"]
        return len(documents.unique()), len(documents)

    @_reading
    def read_through(self) -> int:
        batches = self._table().search().limit(None).to_batches(READ_ROWS)
        return sum(batch.num_rows for batch in batches)

    @_reading
    def ping(self) -> None:
        _ = self._table().version

    @_writing
    def drop(self) -> None:
        self._database.drop_table(self._name, ignore_missing=True)

    def close(self) -> None:
        """Do nothing: LanceDB keeps no file open."""

    def _table(self) -> Any:
        if self._opened is None:
            self._opened = self._database.open_table(self._name)
        return self._opened

    def _kind_for(self, rows: int) -> str:
        return "exact" if self._kind == "exact" or rows < EXACT_ROWS else "rq"

    def _read(self, query: Any, where: Sequence[Condition]) -> pa.Table:
        """Run a query with conditions as expressions: values are never part of a query's text."""
        if where:
            columns = set(self._table().schema.names)
            if any(_column(condition) not in columns for condition in where):  # no passage has the field
                query = query.limit(1).where(lancedb.expr.lit(value=False))
            else:
                query = query.where(reduce(lambda one, other: one & other, map(_expression, where)))
        return query.to_arrow()


def _index_configs() -> dict[str, Any]:
    """Return the configuration of each column's index."""
    return {
        # the column contains the words to index, separated by spaces
        "words": lancedb.index.FTS(
            base_tokenizer="whitespace",
            max_token_length=None,
            lower_case=False,
            stem=False,
            remove_stop_words=False,
            ascii_folding=False,
        ),
        "id": lancedb.index.BTree(),
        "document": lancedb.index.BTree(),
        "vector": lancedb.index.IvfRq(distance_type="cosine"),
    }


def _unindexed(table: Any) -> list[str]:
    """Return the columns whose index lacks passages; the library does not report errors of its indexing."""
    columns = []
    for index in table.list_indices():
        stats = table.index_stats(index.name)
        if stats is None or stats.num_unindexed_rows:
            columns += index.columns
    return columns


@_writing
def drop_tables(folder: Path, *, keep: str) -> None:
    """Remove all tables of indexes from a folder except ``keep``."""
    database: Any = lancedb.connect(str(folder), read_consistency_interval=timedelta(0))
    for path in folder.glob("nvembed_*.lance"):
        if path.stem != keep and _TABLE.fullmatch(path.stem):
            database.drop_table(path.stem, ignore_missing=True)


def column_of(field: str) -> str:
    """Return the column of a metadata field: ``m_`` and its name, with codes for special characters."""
    return "m_" + re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match.group()):x}_", field)


def _column(condition: Condition) -> str:
    return condition.field if condition.field in OWN_FIELDS else column_of(condition.field)


def _expression(condition: Condition) -> Any:
    lit, left = lancedb.expr.lit, lancedb.expr.col(_column(condition))
    op, value = condition.op, condition.value
    if condition.kind.endswith("[]"):
        contains = left.contains(lit(_list_text([value])))
        return contains if op == "=" else ~contains
    if isinstance(value, tuple):
        first, end = map(lit, value)
        return left.gte(first) & left.lt(end) if op == "=" else left.lt(first) | left.gte(end)
    compare = {"=": left.eq, "!=": left.ne, "<": left.lt, "<=": left.lte, ">": left.gt, ">=": left.gte}
    return compare[op](lit(value))


def _with_fields(batch: pa.RecordBatch, fields: dict[str, Kind]) -> pa.Table:
    """Add a column for each metadata field, for filters."""
    table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
    values = field_values(batch["metadata"].to_pylist(), fields)
    for name, kind in fields.items():
        column = values[name]
        if kind.endswith("[]"):
            column = [None if value is None else _list_text(value) for value in column]
        table = table.append_column(column_of(name), pa.array(column, _ARROW.get(kind, pa.string())))
    return table


def _list_text(values: Sequence[Any]) -> str:
    """Return a list as text that contains the text of each element, and of no other value.

    LanceDB's expressions have no functions for lists. JSON escapes the separator.
    """
    return "".join(f"\x1f{json.dumps(value, ensure_ascii=False)}\x1f" for value in values)


def _rows(table: pa.Table) -> list[Row]:
    rows = table.select(_COLUMNS).to_pylist()
    return [Row(**{**row, "metadata": json.loads(row["metadata"])}) for row in rows]


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks()
    return np.asarray(flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size))


def _quoted(value: str) -> str:
    """Return a string literal, for the two methods that do not accept expressions."""
    return "'" + value.replace("'", "''") + "'"
