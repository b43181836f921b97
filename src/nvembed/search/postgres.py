"""An index in a PostgreSQL server with pgvector (0.8 or later).  D numbers of a vector.

Vectors are kept in half precision. Above ``EXACT_ROWS`` passages HNSW finds candidates: of half-precision
vectors up to pgvector's limit of 4,000 dimensions, of their signs (one bit each) beyond it. Words are found
by PostgreSQL's own full-text search, whose ranking knows no inverse document frequency.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa

from nvembed.errors import DataError, InputError, MissingExtraError
from nvembed.search.store import EXACT_ROWS, Near, Row, errors_of
from nvembed.search.where import OWN_FIELDS, Condition, Kind

HALF_DIMENSIONS = 4_000  # that an HNSW index takes
# Candidates for each hit that is asked for. ef_search, at most 1,000, bounds how many an index returns.
OVERSAMPLE = {"exact": 2, "half": 4, "binary": 20}
EF_SEARCH = 1_000
_COLUMNS = "id, document, start_, end_, text, metadata"


class PostgresStore:
    """A table in a PostgreSQL database.

    Args:
        server: ``postgresql://USER@HOST:PORT/DATABASE``, as libpq reads it.
        name: of the table.
        kind: ``exact``, or ``auto``: an HNSW index from ``EXACT_ROWS`` passages on.

    Raises:
        MissingExtraError: the extra ``postgres`` is not installed.
        InputError: the server cannot be reached, or has no pgvector.
    """

    def __init__(self, server: str, name: str, kind: str) -> None:
        self._psycopg, self._pgvector = _libraries()
        self._kind = kind
        sql = self._psycopg.sql
        self._table, self._fts = sql.Identifier(name), sql.Identifier(f"{name}_text")
        self._index, self._name = sql.Identifier(f"{name}_vector"), name
        try:
            self._connection = self._psycopg.connect(server, autocommit=True)
            self._connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except self._psycopg.Error as error:
            raise InputError(
                f"{server}: {str(error).strip()}; expected a PostgreSQL server with the extension pgvector"
            ) from error
        self._pgvector.psycopg.register_vector(self._connection)

    def fill(self, batches: Iterator[pa.RecordBatch], _fields: dict[str, Kind]) -> None:
        with self._errors(writing=True), self._connection.transaction(), self._connection.cursor() as cursor:
            for i, batch in enumerate(batches):
                if i == 0:
                    self._create(cursor, batch.schema.field("vector").type.list_size)
                self._copy(cursor, batch)

    def put(self, batch: pa.RecordBatch, _fields: dict[str, Kind]) -> None:
        with self._errors(writing=True), self._connection.transaction(), self._connection.cursor() as cursor:
            self._delete(cursor, batch["document"].unique().to_pylist())
            self._copy(cursor, batch)

    def _copy(self, cursor: Any, batch: pa.RecordBatch) -> None:
        dim = batch.schema.field("vector").type.list_size
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        columns = [batch[name].to_pylist() for name in ("id", "document", "start", "end", "text", "metadata")]
        copy = f"COPY {{}} ({_COLUMNS}, vector) FROM STDIN WITH (FORMAT BINARY)"
        with cursor.copy(self._format(copy)) as rows:
            rows.set_types(["text", "text", "int8", "int8", "text", "jsonb", "halfvec"])
            jsonb = self._psycopg.types.json.Jsonb
            for *plain, metadata, vector in zip(*columns, vectors, strict=True):
                rows.write_row([*plain, jsonb(json.loads(metadata)), self._pgvector.HalfVector(vector)])

    def delete(self, documents: Sequence[str]) -> None:
        with self._errors(writing=True), self._connection.transaction(), self._connection.cursor() as cursor:
            self._delete(cursor, list(documents))

    def known(self, documents: Sequence[str]) -> set[str]:
        query = self._format("SELECT DISTINCT document FROM {} WHERE document = ANY(%s)")
        return {row[0] for row in self._rows(query, [list(documents)])}

    def finish(self) -> None:
        dim = self._dim()
        with self._errors(writing=True):
            self._connection.execute(
                self._format("CREATE INDEX IF NOT EXISTS {1} ON {0} USING gin (words)", self._fts)
            )
            if self._kind != "exact" and self.count()[1] >= EXACT_ROWS:
                over = (
                    "vector halfvec_cosine_ops"
                    if dim <= HALF_DIMENSIONS
                    else f"(binary_quantize(vector)::bit({dim})) bit_hamming_ops"
                )
                self._connection.execute(
                    self._format(
                        f"CREATE INDEX IF NOT EXISTS {{1}} ON {{0}} USING hnsw ({over})", self._index
                    )
                )
            self._connection.execute(self._format("ANALYZE {}"))

    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        dim = self._dim()
        kind = "exact" if not self._indexed() else "half" if dim <= HALF_DIMENSIONS else "binary"
        wanted = count * OVERSAMPLE[kind]
        given = self._pgvector.HalfVector(vector_D)
        order = "vector <=> %s"
        if kind == "binary":
            order = f"binary_quantize(vector)::bit({dim}) <~> binary_quantize(%s)::bit({dim})"
        condition, values = self._condition(where)
        query = self._psycopg.sql.SQL(
            "SELECT {columns}, vector FROM {table} WHERE {where} ORDER BY {order} LIMIT %s"
        )
        query = query.format(
            columns=self._psycopg.sql.SQL(_COLUMNS),
            table=self._table,
            where=condition,
            order=self._psycopg.sql.SQL(order),
        )
        found = self._rows(query, [*values, given, wanted], ef_search=min(EF_SEARCH, wanted))
        vectors = [row[-1].to_numpy() for row in found]
        return Near([Row(*row[:-1]) for row in found], np.array(vectors, np.float16).reshape(-1, dim))

    def matching(self, query: str, count: int, where: Sequence[Condition]) -> list[Row]:
        condition, values = self._condition(where)
        sql = self._psycopg.sql.SQL(
            # any word may match; plainto_tsquery quotes what it reads, so only its own operators are &
            "WITH q AS (SELECT replace(plainto_tsquery('english', %s)::text, ' & ', ' | ')::tsquery AS q) "
            "SELECT {columns} FROM {table}, q WHERE words @@ q AND {where} "
            "ORDER BY ts_rank_cd(words, q, 1) DESC, id LIMIT %s"
        ).format(columns=self._psycopg.sql.SQL(_COLUMNS), table=self._table, where=condition)
        return [Row(*row) for row in self._rows(sql, [query, *values, count])]

    def count(self) -> tuple[int, int]:
        rows = self._rows(self._format("SELECT count(DISTINCT document), count(*) FROM {}"), [])
        return int(rows[0][0]), int(rows[0][1])

    def drop(self) -> None:
        with self._errors(writing=True):
            self._connection.execute(self._format("DROP TABLE IF EXISTS {}"))

    def close(self) -> None:
        self._connection.close()

    def _create(self, cursor: Any, dim: int) -> None:
        cursor.execute(
            self._format(
                "CREATE TABLE IF NOT EXISTS {} (id text PRIMARY KEY, document text NOT NULL, "
                "start_ bigint NOT NULL, end_ bigint NOT NULL, text text NOT NULL, metadata jsonb NOT NULL, "
                f"vector halfvec({dim}) NOT NULL, "
                "words tsvector GENERATED ALWAYS AS (to_tsvector('english', text)) STORED)"
            )
        )
        documents = self._psycopg.sql.Identifier(f"{self._name}_document")
        cursor.execute(self._format("CREATE INDEX IF NOT EXISTS {1} ON {0} (document)", documents))

    def _delete(self, cursor: Any, documents: list[str]) -> None:
        cursor.execute(self._format("DELETE FROM {} WHERE document = ANY(%s)"), [documents])

    def _condition(self, where: Sequence[Condition]) -> tuple[Any, list[Any]]:
        """Return SQL with placeholders, and what goes into them."""
        sql = self._psycopg.sql
        parts, values = [sql.SQL("true")], []
        for condition in where:
            operator = sql.SQL("<>" if condition.op == "!=" else condition.op)
            if condition.field in OWN_FIELDS:
                parts.append(
                    sql.SQL('{} {} %s COLLATE "C"').format(sql.Identifier(condition.field), operator)
                )
                values.append(condition.value)
                continue
            kind, cast = _JSON[type(condition.value)]
            side = f"(CASE WHEN jsonb_typeof(metadata->%s) IN ({kind}) THEN (metadata->>%s)::{cast} END)"
            right = '%s COLLATE "C"' if cast == "text" else f"%s::{cast}"
            parts.append(sql.SQL(side + " {} " + right).format(operator))
            values += [condition.field, condition.field, condition.value]
        return sql.SQL(" AND ").join(parts), values

    def _indexed(self) -> bool:
        rows = self._rows("SELECT to_regclass(%s) IS NOT NULL", [self._index.as_string(self._connection)])
        return bool(rows[0][0])

    def _dim(self) -> int:
        query = "SELECT atttypmod FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = 'vector'"
        rows = self._rows(query, [self._table.as_string(self._connection)])
        if not rows:
            raise DataError(
                f"PostgreSQL has no table {self._name!r}; if the index was built again since, open it again"
            )
        return int(rows[0][0])

    def _errors(self, *, writing: bool = False) -> AbstractContextManager[None]:
        return errors_of("PostgreSQL", (self._psycopg.Error,), writing=writing)

    def _rows(self, query: Any, values: list[Any], *, ef_search: int | None = None) -> list[Any]:
        with self._errors(), self._connection.transaction(), self._connection.cursor() as cursor:
            if ef_search is not None:
                cursor.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(ef_search)])
                # a filter may leave too few of the candidates: then the index is read on
                cursor.execute("SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true)")
            return list(cursor.execute(query, values).fetchall())

    def _format(self, text: str, *names: Any) -> Any:
        return self._psycopg.sql.SQL(text).format(self._table, *names)


# Type of a condition's value -> JSON types it is compared with, and as what.
_JSON = {
    int: ("'number'", "numeric"),
    float: ("'number'", "numeric"),
    bool: ("'boolean'", "boolean"),
    str: ("'string', 'number', 'boolean'", "text"),
}


def _libraries() -> tuple[Any, Any]:
    try:
        import pgvector
        import pgvector.psycopg
        import psycopg
        import psycopg.sql
        import psycopg.types.json
    except ImportError as error:
        raise MissingExtraError(
            f"PostgreSQL needs the package {error.name}: install it with  pip install 'nvembed[postgres]'"
        ) from error
    return psycopg, pgvector
