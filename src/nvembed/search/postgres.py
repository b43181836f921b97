"""An index in a PostgreSQL server with pgvector (0.8 or later).  D numbers of a vector.

Vectors have half precision. From ``EXACT_ROWS`` passages on, an HNSW index finds candidates: of the vectors
up to pgvector's limit of 4,000 dimensions, above it of their signs (one bit each). PostgreSQL ranks words
without inverse document frequency.
"""

import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np
import pyarrow as pa

from nvembed.errors import DataError, InputError, needs_extra
from nvembed.search.fields import Kind, field_values
from nvembed.search.store import EXACT_ROWS, Near, Row, Scored, errors_of
from nvembed.search.where import OWN_FIELDS, Condition

HALF_DIMENSIONS = 4_000  # that an HNSW index takes
# Candidates per requested hit. ef_search, at most 1,000, bounds how many an index returns.
OVERSAMPLE = {"exact": 2, "half": 4, "binary": 20}
EF_SEARCH = 1_000
CONNECTIONS = 8  # at once; more searches wait for one
WAIT_S = 10  # for a connection, before a search fails
# tsvector's limits: bytes of all words with their positions (and some room), of one word, and positions.
TSVECTOR_BYTES, LEXEME_BYTES, POSITIONS, MAX_POSITION = 1_000_000, 2_000, 255, 16_383
TSVECTOR_OID = 3614
_COLUMNS = "id, document, start_, end_, text, metadata"
_TYPES = ["text", "text", "int8", "int8", "text", "text"]


class PostgresStore:
    """A table in a PostgreSQL database, with a pool of connections that replaces lost ones.

    Args:
        server: ``postgresql://USER@HOST:PORT/DATABASE``, as libpq reads it.
        name: of the table.
        kind: ``exact``, or ``auto``: an HNSW index from ``EXACT_ROWS`` passages on.
        dim: D.

    Raises:
        MissingExtraError: the extra ``postgres`` is not installed.
        InputError: the server cannot be reached, or has no pgvector.
    """

    def __init__(self, server: str, name: str, kind: str, dim: int) -> None:
        self._psycopg, self._pgvector, pool = _libraries()
        self._kind, self._dim, self._name = kind, dim, name
        sql = self._psycopg.sql
        self._table, self._index = sql.Identifier(name), sql.Identifier(f"{name}_vector")
        self._server = without_password(server)
        try:  # directly, because the pool would only report a timeout
            with self._psycopg.connect(server, autocommit=True, connect_timeout=WAIT_S) as connection:
                connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        except self._psycopg.Error as error:
            cure = "Expected a PostgreSQL server with the extension pgvector"
            raise InputError(f"{self._server}: {str(error).strip()}. {cure}") from error
        self._pool = pool.ConnectionPool(
            server,
            kwargs={"autocommit": True, "connect_timeout": WAIT_S},
            configure=self._configure,
            check=pool.ConnectionPool.check_connection,
            min_size=0,
            max_size=CONNECTIONS,
            timeout=WAIT_S,
            reconnect_timeout=WAIT_S,
            open=True,
        )

    def fill(self, batches: Iterator[pa.RecordBatch], fields: dict[str, Kind]) -> list[str]:
        with self._transaction(writing=True) as cursor:
            self._create(cursor)
            return [note for batch in batches for note in self._copy(cursor, batch, fields)]

    def put(self, batch: pa.RecordBatch, fields: dict[str, Kind]) -> list[str]:
        with self._transaction(writing=True) as cursor:
            self._delete(cursor, batch["document"].unique().to_pylist())
            return self._copy(cursor, batch, fields)

    def delete(self, documents: Sequence[str]) -> None:
        with self._transaction(writing=True) as cursor:
            self._delete(cursor, list(documents))

    def known(self, documents: Sequence[str]) -> set[str]:
        query = self._format("SELECT DISTINCT document FROM {} WHERE document = ANY(%s)")
        return {row[0] for row in self._rows(query, [list(documents)])}

    def documents(self) -> set[str]:
        return {row[0] for row in self._rows(self._format("SELECT DISTINCT document FROM {}"), [])}

    def passages(self, documents: Sequence[str]) -> pa.Table:
        query = self._format(
            "SELECT {1}, vector FROM {0} WHERE document = ANY(%s)", self._psycopg.sql.SQL(_COLUMNS)
        )
        rows = self._rows(query, [list(documents)])
        names = ("id", "document", "start", "end", "text", "metadata")
        arrays = {name: pa.array([row[at] for row in rows]) for at, name in enumerate(names)}
        arrays["tokens"] = pa.array(np.zeros(len(rows), np.int32))  # the table does not keep these two
        arrays["truncated"] = pa.array(np.zeros(len(rows), bool))
        vectors = np.array([row[-1].to_numpy() for row in rows], np.float16).reshape(-1)
        arrays["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), self._dim)
        return pa.table(arrays)

    def texts(self) -> Iterator[tuple[str, str, str]]:
        yield from self._rows(self._format("SELECT id, text, metadata FROM {}"), [])

    def finish(self) -> None:
        large = self._kind != "exact" and self.count()[1] >= EXACT_ROWS
        with self._errors(writing=True), self._pool.connection() as connection:
            words = self._psycopg.sql.Identifier(f"{self._name}_words")
            connection.execute(self._format("CREATE INDEX IF NOT EXISTS {1} ON {0} USING gin (words)", words))
            if large:
                over = (
                    "vector halfvec_cosine_ops"
                    if self._dim <= HALF_DIMENSIONS
                    else f"(binary_quantize(vector)::bit({self._dim})) bit_hamming_ops"
                )
                hnsw = f"CREATE INDEX IF NOT EXISTS {{1}} ON {{0}} USING hnsw ({over})"
                connection.execute(self._format(hnsw, self._index))
            connection.execute(self._format("ANALYZE {}"))

    def change(self) -> AbstractContextManager[None]:
        return nullcontext()  # put and delete are transactions

    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        kind = "exact" if not self._indexed() else "half" if self._dim <= HALF_DIMENSIONS else "binary"
        candidates = count * OVERSAMPLE[kind]
        order = "vector <=> %s"
        if kind == "binary":
            order = f"binary_quantize(vector)::bit({self._dim}) <~> binary_quantize(%s)::bit({self._dim})"
        condition, values = self._condition(where)
        sql = self._psycopg.sql.SQL
        query = sql("SELECT {columns}, vector FROM {table} WHERE {where} ORDER BY {order} LIMIT %s").format(
            columns=sql(_COLUMNS), table=self._table, where=condition, order=sql(order)
        )
        vector = self._pgvector.HalfVector(vector_D)
        rows = self._rows(query, [*values, vector, candidates], ef_search=min(EF_SEARCH, candidates))
        vectors = [row[-1].to_numpy() for row in rows]
        return Near([_row(row[:-1]) for row in rows], np.array(vectors, np.float16).reshape(-1, self._dim))

    def matching(self, words: Sequence[str], count: int, where: Sequence[Condition]) -> list[Scored]:
        condition, values = self._condition(where)
        sql = self._psycopg.sql.SQL
        query = sql(
            "WITH q AS (SELECT %s::tsquery AS q) SELECT {columns}, ts_rank_cd(words, q, 1) AS score "
            "FROM {table}, q WHERE words @@ q AND {where} ORDER BY score DESC LIMIT %s"
        ).format(columns=sql(_COLUMNS), table=self._table, where=condition)
        any_word = " | ".join(_lexeme(word) for word in words)
        rows = self._rows(query, [any_word, *values, count])
        return [(_row(row[:-1]), float(row[-1])) for row in rows]

    def count(self) -> tuple[int, int]:
        rows = self._rows(self._format("SELECT count(DISTINCT document), count(*) FROM {}"), [])
        return int(rows[0][0]), int(rows[0][1])

    def read_through(self) -> int:
        return self.count()[1]  # the server checks what it reads

    def ping(self) -> None:
        self._rows(self._format("SELECT 1 FROM {} LIMIT 1"), [])

    def drop(self) -> None:
        with self._errors(writing=True), self._pool.connection() as connection:
            connection.execute(self._format("DROP TABLE IF EXISTS {}"))

    def close(self) -> None:
        self._pool.close()

    def _configure(self, connection: Any) -> None:
        self._pgvector.psycopg.register_vector(connection)
        psycopg = self._psycopg

        class TsVector(psycopg.adapt.Dumper):  # type: ignore[name-defined,misc]
            format, oid = psycopg.pq.Format.BINARY, TSVECTOR_OID

            def dump(self, obj: bytes) -> bytes:
                return obj

        connection.adapters.register_dumper(None, TsVector)

    def _create(self, cursor: Any) -> None:
        # metadata is text, which unlike jsonb keeps NUL and the order of keys
        cursor.execute(
            self._format(
                "CREATE TABLE {} (id text PRIMARY KEY, document text NOT NULL, start_ bigint NOT NULL, "
                "end_ bigint NOT NULL, text text NOT NULL, metadata text NOT NULL, fields jsonb NOT NULL, "
                f"words tsvector NOT NULL, vector halfvec({self._dim}) NOT NULL)"
            )
        )
        documents = self._psycopg.sql.Identifier(f"{self._name}_document")
        cursor.execute(self._format("CREATE INDEX {1} ON {0} (document)", documents))

    def _copy(self, cursor: Any, batch: pa.RecordBatch, kinds: dict[str, Kind]) -> list[str]:
        """Write rows; return a message about each passage with words that do not fit."""
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, self._dim)
        names = ("id", "document", "start", "end", "text", "metadata")
        columns = [batch[name].to_pylist() for name in names]
        words = batch["words"].to_pylist()
        values = field_values(columns[-1], kinds)
        jsonb = self._psycopg.types.json.Jsonb
        notes = []
        copy = f"COPY {{}} ({_COLUMNS}, fields, words, vector) FROM STDIN WITH (FORMAT BINARY)"
        with cursor.copy(self._format(copy)) as rows:
            rows.set_types([*_TYPES, "jsonb", "tsvector", "halfvec"])
            for i, (*plain, vector) in enumerate(zip(*columns, vectors, strict=True)):
                passage, document, text = plain[0], plain[1], plain[4]
                if "\0" in passage + document + text:
                    raise DataError(
                        f"passage {passage!r} has a NUL character, which PostgreSQL cannot store: remove it "
                        "from the document, or index without --server"
                    )
                fields = {name: column[i] for name, column in values.items() if column[i] is not None}
                indexed, left_out = _tsvector(words[i].split(" "))
                if left_out:
                    notes.append(
                        f"passage {passage!r}: {left_out:,} words cannot be searched, as they do not fit "
                        "into a tsvector of PostgreSQL (1 MB)"
                    )
                rows.write_row([*plain, jsonb(fields), indexed, self._pgvector.HalfVector(vector)])
        return notes

    def _delete(self, cursor: Any, documents: list[str]) -> None:
        cursor.execute(self._format("DELETE FROM {} WHERE document = ANY(%s)"), [documents])

    def _condition(self, where: Sequence[Condition]) -> tuple[Any, list[Any]]:
        """Return SQL with placeholders, and their values."""
        sql = self._psycopg.sql
        parts: list[Any] = [sql.SQL("true")]
        values: list[Any] = []
        for condition in where:
            op, value, field = condition.op, condition.value, condition.field
            if condition.kind.endswith("[]"):
                side = "(fields->%s) @> %s::jsonb"
                parts.append(sql.SQL(side if op == "=" else f"NOT ({side})"))
                values += [field, json.dumps([value])]
                continue
            cast = {"int": "numeric", "float": "numeric", "bool": "boolean"}.get(condition.kind, "text")
            left, its_values = sql.SQL(f"(fields->>%s)::{cast}"), [field]
            if field in OWN_FIELDS:
                left, its_values = sql.Identifier(field), []
            right = '%s COLLATE "C"' if cast == "text" else f"%s::{cast}"
            if isinstance(value, tuple):
                both = "({0} >= " + right + " AND {0} < " + right + ")"
                parts.append(sql.SQL(both if op == "=" else f"NOT {both}").format(left))
                values += [*its_values, value[0], *its_values, value[1]]
            else:
                operator = sql.SQL("<>" if op == "!=" else op)
                parts.append(sql.SQL("{} {} " + right).format(left, operator))
                values += [*its_values, value]
        return sql.SQL(" AND ").join(parts), values

    def _indexed(self) -> bool:
        rows = self._rows("SELECT to_regclass(%s) IS NOT NULL", [self._index.as_string(None)])
        return bool(rows[0][0])

    def _rows(self, query: Any, values: list[Any], *, ef_search: int | None = None) -> list[Any]:
        with self._transaction() as cursor:
            if ef_search is not None:
                cursor.execute("SELECT set_config('hnsw.ef_search', %s, true)", [str(ef_search)])
                # if a filter leaves too few candidates, the index is read further
                cursor.execute("SELECT set_config('hnsw.iterative_scan', 'relaxed_order', true)")
            return list(cursor.execute(query, values).fetchall())

    @contextmanager
    def _transaction(self, *, writing: bool = False) -> Iterator[Any]:
        with (
            self._errors(writing=writing),
            self._pool.connection() as connection,
            connection.transaction(),
            connection.cursor() as cursor,
        ):
            yield cursor

    def _errors(self, *, writing: bool = False) -> AbstractContextManager[None]:
        return errors_of(f"PostgreSQL at {self._server}", (self._psycopg.Error,), writing=writing)

    def _format(self, text: str, *names: Any) -> Any:
        return self._psycopg.sql.SQL(text).format(self._table, *names)


def without_password(server: str) -> str:
    """Return a server's URL without the passwords in it."""
    parts = urlsplit(server)
    user, at, host = parts.netloc.rpartition("@")
    options = [pair for pair in parse_qsl(parts.query) if pair[0] not in ("password", "sslpassword")]
    query = urlencode(options, safe="/:")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{host}{parts.path}{'?' if query else ''}{query}"


def _row(values: Sequence[Any]) -> Row:
    id_, document, start, end, text, metadata = values
    return Row(id_, document, start, end, text, json.loads(metadata))


def _tsvector(words: Sequence[str]) -> tuple[bytes, int]:
    """Return a tsvector in PostgreSQL's binary format, and the number of distinct words that do not fit."""
    positions: dict[str, list[int]] = {}
    size = left_out = 0
    for i, word in enumerate(words, start=1):
        its = positions.setdefault(word, [])
        if not its:
            length = len(word.encode()) + 8
            if not word or length > LEXEME_BYTES or size + length > TSVECTOR_BYTES:
                left_out += bool(word)
                del positions[word]
                continue
            size += length
            its.append(min(i, MAX_POSITION))
        elif len(its) < POSITIONS and i <= MAX_POSITION and size + 2 <= TSVECTOR_BYTES:
            size += 2
            its.append(i)
    parts = [struct.pack(">i", len(positions))]
    for word, its in positions.items():
        parts += [word.encode(), b"\0", struct.pack(f">H{len(its)}H", len(its), *its)]
    return b"".join(parts), left_out


def _lexeme(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"


def _libraries() -> tuple[Any, Any, Any]:
    with needs_extra("postgres", "an index in PostgreSQL"):
        import pgvector
        import pgvector.psycopg
        import psycopg
        import psycopg.adapt
        import psycopg.sql
        import psycopg.types.json
        import psycopg_pool
    return psycopg, pgvector, psycopg_pool
