"""An index on this machine's disk: a LanceDB table.  N rows, D numbers of a vector, W words of its bits.

The table has the columns of docs/reference/embedded-corpus.md, one for each metadata field that can be
filtered on (``m_...``), and with the kinds ``int8`` and ``binary`` one of codes. LanceDB writes a version
per change and commits it at the end, so that a killed job leaves the version before it.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import timedelta
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nvembed.errors import MissingExtraError
from nvembed.search.store import EXACT_ROWS, Near, Row, errors_of
from nvembed.search.where import OWN_FIELDS, Condition, Kind, field_values
from nvembed.vectors.codec import Int8, binary_scores, candidates, int8_scores, to_binary, to_int8

KINDS = ("auto", "exact", "rq", "int8", "binary")
# Candidates fetched for each hit that is asked for; benchmarks/index.py measures the recall.
OVERSAMPLE = {"exact": 2, "rq": 10, "int8": 2, "binary": 10}
PROBES = 20  # partitions of LanceDB's index that are read
_COLUMNS = ["id", "document", "start", "end", "text", "metadata"]
_ARROW = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
# An older version may be read by a process that is running; nobody's search takes this long.
_KEEP_VERSIONS = timedelta(minutes=10)
_ERRORS = (RuntimeError, ValueError, OSError)  # ValueError is also pyarrow's and a missing table's
_reading = errors_of("LanceDB", _ERRORS)
_writing = errors_of("LanceDB", _ERRORS, writing=True)


class LanceStore:
    """A table in a LanceDB folder.

    Args:
        folder: the database.
        name: of the table; made when something is first put into it.
        kind: one of ``KINDS``; ``auto`` is ``exact`` below ``EXACT_ROWS`` passages and ``rq`` from there on.

    Raises:
        MissingExtraError: the extra ``index`` is not installed.
    """

    def __init__(self, folder: Path, name: str, kind: str) -> None:
        self._lance = _lancedb()
        # A server has a table open for months: it sees what others change, and never reads what is gone.
        self._database = self._lance.connect(str(folder), read_consistency_interval=timedelta(0))
        self._name = name
        self._kind = kind
        self._opened: Any = None
        self._codes: tuple[int, np.ndarray, Any] | None = None  # version, row ids, codes

    @_writing
    def fill(self, batches: Iterator[pa.RecordBatch], fields: dict[str, Kind]) -> None:
        first = self._columns(next(batches), fields)
        rest = (self._columns(batch, fields) for batch in batches)
        parts = (part for table in chain([first], rest) for part in table.to_batches())
        reader = pa.RecordBatchReader.from_batches(first.schema, parts)
        self._opened = self._database.create_table(self._name, data=reader)

    @_writing
    def put(self, batch: pa.RecordBatch, fields: dict[str, Kind]) -> None:
        rows = self._columns(batch, fields)
        table = self._table()
        have = set(table.schema.names)
        new = [rows.schema.field(name) for name in rows.schema.names if name not in have]
        if new:
            table.add_columns(new)
        gone = f"document IN ({', '.join(map(_quoted, sorted(set(batch['document'].to_pylist()))))})"
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete(gone).execute(rows)  # one commit: never half a document

    @_writing
    def delete(self, documents: Sequence[str]) -> None:
        if documents:
            self._table().delete(f"document IN ({', '.join(map(_quoted, documents))})")

    @_reading
    def known(self, documents: Sequence[str]) -> set[str]:
        column = self._lance.expr.col("document")
        query = self._table().search().select(["document"]).where(column.isin(list(documents)))
        return set(query.limit(None).to_arrow()["document"].to_pylist())

    @_writing
    def finish(self) -> None:
        table, index = self._table(), self._lance.index
        present = {tuple(found.columns): found for found in table.list_indices()}
        if ("text",) not in present:
            table.create_index("text", config=index.FTS())
        for name in ("id", "document"):
            if (name,) not in present:
                table.create_index(name, config=index.BTree())
        if self._kind_for(table.count_rows()) == "rq" and ("vector",) not in present:
            table.create_index("vector", config=index.IvfRq(distance_type="cosine"))
        table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    @_reading
    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        table = self._table()
        kind = self._kind_for(table.count_rows())
        wanted = count * OVERSAMPLE[kind]
        columns = [*_COLUMNS, "vector"]
        if kind in ("int8", "binary"):
            ids = self._scan(vector_D, wanted, where)
            found = table.take_row_ids(ids).select(columns).to_arrow() if ids else table.schema.empty_table()
            return _near(found)
        query = table.search(vector_D).distance_type("cosine").nprobes(PROBES)
        if kind == "exact":
            query = query.bypass_vector_index()
        query = query.select([*columns, "_distance"]).limit(wanted)
        return _near(_filtered(self._lance, query, where).to_arrow())

    @_reading
    def matching(self, query: str, count: int, where: Sequence[Condition]) -> list[Row]:
        words = self._lance.query.MatchQuery(query, "text")
        search = self._table().search(words, query_type="fts").select([*_COLUMNS, "_score"]).limit(count)
        found = _filtered(self._lance, search, where).to_arrow()
        rows = list(zip(found["_score"].to_pylist(), _rows(found), strict=True))
        return [row for _, row in sorted(rows, key=lambda pair: (-pair[0], pair[1].id))]

    @_reading
    def count(self) -> tuple[int, int]:
        documents = self._table().search().select(["document"]).limit(None).to_arrow()["document"]
        return len(documents.unique()), len(documents)

    @_writing
    def drop(self) -> None:
        self._database.drop_table(self._name, ignore_missing=True)

    def close(self) -> None:
        """Nothing: LanceDB holds no file open."""

    def _table(self) -> Any:
        if self._opened is None:
            self._opened = self._database.open_table(self._name)
        return self._opened

    def _kind_for(self, rows: int) -> str:
        if self._kind == "auto":
            return "exact" if rows < EXACT_ROWS else "rq"
        return "exact" if self._kind == "rq" and rows < EXACT_ROWS else self._kind

    def _columns(self, batch: pa.RecordBatch, fields: dict[str, Kind]) -> pa.Table:
        """Add the columns that filters and codes need."""
        table = pa.Table.from_batches([batch]).replace_schema_metadata(None)
        values = field_values(batch["metadata"].to_pylist(), fields)
        for name, kind in fields.items():
            table = table.append_column(column_of(name), pa.array(values[name], _ARROW[kind]))
        if self._kind in ("int8", "binary"):
            code = _encoded(_matrix(table["vector"]), self._kind)
            width = code.shape[1] * code.itemsize
            buffers = [None, pa.py_buffer(np.ascontiguousarray(code))]
            column = pa.Array.from_buffers(pa.binary(width), len(code), buffers)
            table = table.append_column("code", column)
        return table

    def _scan(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> list[int]:
        """Return the row ids of the best codes, which are kept in memory from the first query on."""
        row_ids, codes = self._loaded()
        allowed = np.arange(len(row_ids))
        if where:
            query = self._table().search().select(["id"]).with_row_id(True).limit(None)
            matching = _filtered(self._lance, query, where).to_arrow()["_rowid"].to_numpy()
            allowed = np.flatnonzero(np.isin(row_ids, matching))
            if not len(allowed):
                return []
        if self._kind == "int8":
            part = codes if not where else Int8(codes.codes[allowed], codes.scales[allowed])
            scores = int8_scores(vector_D[None], part)[0]
        else:
            scores = binary_scores(vector_D[None], codes if not where else codes[allowed])[0]
        return [int(i) for i in row_ids[allowed[candidates(scores, count)]]]

    def _loaded(self) -> tuple[np.ndarray, Any]:
        table = self._table()
        if self._codes is None or self._codes[0] != table.version:
            version, total, place = table.version, table.count_rows(), 0
            width = table.schema.field("code").type.byte_width
            row_ids, raw = np.empty(total, np.uint64), np.empty((total, width), np.uint8)
            reader = table.search().select(["code"]).with_row_id(True).limit(None)
            for batch in reader.to_batches():
                rows = slice(place, place + batch.num_rows)
                row_ids[rows] = batch["_rowid"].to_numpy()
                data = np.frombuffer(batch["code"].buffers()[1], np.uint8).reshape(-1, width)
                raw[rows] = data[batch["code"].offset :][: batch.num_rows]
                place += batch.num_rows
            self._codes = (version, row_ids, _decoded(raw, self._kind))
        return self._codes[1], self._codes[2]


def column_of(field: str) -> str:
    """Return the column of a metadata field: ``m_`` and its name, all but letters and digits spelt out."""
    return "m_" + re.sub(r"[^A-Za-z0-9]", lambda match: f"_{ord(match.group()):x}_", field)


def _encoded(vectors_ND: np.ndarray, kind: str) -> np.ndarray:
    if kind == "binary":
        return to_binary(vectors_ND)
    code = to_int8(vectors_ND)
    return np.hstack([code.codes.view(np.uint8), code.scales[:, None].view(np.uint8)])


def _decoded(raw: np.ndarray, kind: str) -> Any:
    if kind == "binary":
        return raw.view(np.uint64)
    return Int8(raw[:, :-4].view(np.int8), np.ascontiguousarray(raw[:, -4:]).view(np.float32)[:, 0])


def _filtered(lance: Any, query: Any, where: Sequence[Condition]) -> Any:
    """Add conditions as expressions: no value is ever part of a query's text."""
    if not where:
        return query
    col, lit = lance.expr.col, lance.expr.lit
    parts = []
    for condition in where:
        name = condition.field if condition.field in OWN_FIELDS else column_of(condition.field)
        left, right = col(name), lit(condition.value)
        parts.append(
            {
                "=": left.eq,
                "!=": left.ne,
                "<": left.lt,
                "<=": left.lte,
                ">": left.gt,
                ">=": left.gte,
            }[condition.op](right)
        )
    return query.where(reduce(lambda one, other: one & other, parts))


def _near(found: pa.Table) -> Near:
    return Near(_rows(found), _matrix(found["vector"]))


def _rows(found: pa.Table) -> list[Row]:
    return [
        Row(one["id"], one["document"], one["start"], one["end"], one["text"], json.loads(one["metadata"]))
        for one in found.select(_COLUMNS).to_pylist()
    ]


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks()
    flat = flat.chunk(0) if isinstance(flat, pa.ChunkedArray) else flat
    return np.asarray(flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size))


def _quoted(value: str) -> str:
    """Return a string literal; the two methods that change a table take no expressions."""
    return "'" + value.replace("'", "''") + "'"


def _lancedb() -> Any:
    try:
        import lancedb
        import lancedb.expr
        import lancedb.index
        import lancedb.query
    except ImportError as error:
        raise MissingExtraError(
            "an index needs the package lancedb: install the extra with  pip install 'nvembed[index]'"
        ) from error
    return lancedb
