"""An index in a Qdrant server (1.10 or later).  D numbers of a vector.

Vectors are kept in half precision. Above ``EXACT_ROWS`` passages Qdrant searches its graph over their signs,
one bit per dimension, and scores what it finds by the vectors. Words are a sparse vector of stems, weighted
as BM25 does with a fixed mean length; Qdrant knows how rare each stem is (its modifier ``idf``).
"""

import json
import uuid
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from nvembed.errors import InputError, MissingExtraError
from nvembed.search.lance import column_of
from nvembed.search.store import EXACT_ROWS, Near, Row, errors_of
from nvembed.search.where import OWN_FIELDS, Condition, Kind, field_values
from nvembed.text.mark import Stems

OVERSAMPLE = {"exact": 2, "binary": 10}
UPSERTED = 256  # points per request: below Qdrant's 32 MB of JSON at 4,096 dimensions
K1, B, MEAN_WORDS = 1.2, 0.75, 200.0  # BM25; a server knows no mean length, and it matters little
_IDS = uuid.UUID("6f6e1f6c-9d0a-4c44-8f0d-0d6a5a1c1f0e")  # namespace of point ids
_PAYLOAD = ["id", "document", "start", "end", "text", "metadata"]
# Its client raises ValueError, RuntimeError and two of its own, below Exception alone.
_reading = errors_of("Qdrant", (Exception,))
_writing = errors_of("Qdrant", (Exception,), writing=True)


class QdrantStore:
    """A collection of a Qdrant server.

    Args:
        client: a ``qdrant_client.QdrantClient``; see ``connect``.
        name: of the collection.
        kind: ``exact``, or ``auto``: the graph and binary codes from ``EXACT_ROWS`` passages on.
    """

    def __init__(self, client: Any, name: str, kind: str) -> None:
        from qdrant_client import models

        self._client, self._models, self._name, self._kind = client, models, name, kind
        self._stems = Stems()
        self._indexed: set[str] = set()

    @_writing
    def fill(self, batches: Iterator[pa.RecordBatch], fields: dict[str, Kind]) -> None:
        for i, batch in enumerate(batches):
            if i == 0:
                self._create(batch.schema.field("vector").type.list_size)
            self._upsert(batch, fields)

    @_writing
    def put(self, batch: pa.RecordBatch, fields: dict[str, Kind]) -> None:
        points = self._upsert(batch, fields)
        # what the replaced documents had beside; nothing is lost if we are killed before
        has = self._models.HasIdCondition(has_id=points)
        documents = batch["document"].unique().to_pylist()
        stale = self._models.Filter(must=[self._any("document", documents)], must_not=[has])
        self._client.delete(self._name, self._models.FilterSelector(filter=stale), wait=True)

    def _upsert(self, batch: pa.RecordBatch, fields: dict[str, Kind]) -> list[Any]:
        """Write points and return their ids."""
        dim = batch.schema.field("vector").type.list_size
        self._index({"document": "string", **{column_of(name): kind for name, kind in fields.items()}})
        vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        rows = batch.select(_PAYLOAD).to_pylist()
        columns = field_values([row["metadata"] for row in rows], fields)
        points = []
        for i, (row, vector) in enumerate(zip(rows, vectors.astype(np.float32), strict=True)):
            filters = {
                column_of(name): values[i] for name, values in columns.items() if values[i] is not None
            }
            points.append(
                self._models.PointStruct(
                    id=str(uuid.uuid5(_IDS, row["id"])),
                    vector={"dense": vector.tolist(), "words": self._words(row["text"])},
                    payload={**row, **filters},
                )
            )
        for i in range(0, len(points), UPSERTED):
            self._client.upsert(self._name, points[i : i + UPSERTED], wait=True)
        return [point.id for point in points]

    @_writing
    def delete(self, documents: Sequence[str]) -> None:
        gone = self._models.Filter(must=[self._any("document", documents)])
        self._client.delete(self._name, self._models.FilterSelector(filter=gone), wait=True)

    @_reading
    def known(self, documents: Sequence[str]) -> set[str]:
        match = [(name, self._models.Filter(must=[self._any("document", [name])])) for name in documents]
        return {name for name, only in match if self._client.count(self._name, only, exact=True).count}

    def finish(self) -> None:
        """Nothing: Qdrant indexes in the background."""

    @_reading
    def nearest(self, vector_D: np.ndarray, count: int, where: Sequence[Condition]) -> Near:
        exact = self._exact()
        quantization = self._models.QuantizationSearchParams(ignore=exact, rescore=False)
        wanted = count * OVERSAMPLE["exact" if exact else "binary"]
        found = self._query(
            vector_D.tolist(),
            "dense",
            wanted,
            where,
            search_params=self._models.SearchParams(exact=exact, hnsw_ef=wanted, quantization=quantization),
            with_vectors=["dense"],
        )
        vectors = np.array([point.vector["dense"] for point in found], np.float32)
        return Near([_row(point) for point in found], vectors.reshape(-1, len(vector_D)))

    @_reading
    def matching(self, query: str, count: int, where: Sequence[Condition]) -> list[Row]:
        stems = sorted({_number(stem) for stem in self._stems(query)})
        if not stems:
            return []
        words = self._models.SparseVector(indices=stems, values=[1.0] * len(stems))
        found = self._query(words, "words", count, where)
        return [_row(point) for point in sorted(found, key=lambda point: (-point.score, point.payload["id"]))]

    @_reading
    def count(self) -> tuple[int, int]:
        documents: set[str] = set()
        offset = None
        while True:
            points, offset = self._client.scroll(
                self._name, limit=10_000, offset=offset, with_payload=["document"]
            )
            documents.update(point.payload["document"] for point in points)
            if offset is None:
                return len(documents), self._client.count(self._name, exact=True).count

    @_writing
    def drop(self) -> None:
        self._client.delete_collection(self._name)

    def close(self) -> None:
        self._client.close()

    def _create(self, dim: int) -> None:
        models = self._models
        self._client.create_collection(
            self._name,
            vectors_config={
                "dense": models.VectorParams(
                    size=dim,
                    distance=models.Distance.COSINE,
                    datatype=models.Datatype.FLOAT16,
                    on_disk=True,
                )
            },
            sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
            quantization_config=models.BinaryQuantization(
                binary=models.BinaryQuantizationConfig(always_ram=True)
            ),
        )

    def _index(self, columns: dict[str, Kind]) -> None:
        """Let the server index what is filtered on; it answers at once for what it has."""
        kinds = {"int": "integer", "float": "float", "bool": "bool", "string": "keyword"}
        for name in columns.keys() - self._indexed:
            self._client.create_payload_index(self._name, name, field_schema=kinds[columns[name]])
        self._indexed |= columns.keys()

    def _query(
        self,
        query: Any,
        using: str,
        count: int,
        where: Sequence[Condition],
        *,
        search_params: Any = None,
        with_vectors: bool | list[str] = False,
    ) -> Any:
        return self._client.query_points(
            self._name,
            query=query,
            using=using,
            query_filter=self._filter(where),
            limit=count,
            with_payload=_PAYLOAD,
            search_params=search_params,
            with_vectors=with_vectors,
        ).points

    def _filter(self, where: Sequence[Condition]) -> Any:
        models = self._models
        must: list[Any] = []
        must_not: list[Any] = []
        for condition in where:
            key = condition.field if condition.field in OWN_FIELDS else column_of(condition.field)
            value, op = condition.value, condition.op
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if op in ("=", "!="):
                same = models.Range(gte=value, lte=value) if number else None
                match = None if number else models.MatchValue(value=value)
                part = models.FieldCondition(key=key, match=match, range=same)
                (must if op == "=" else must_not).append(part)
                if op == "!=":
                    must_not.append(models.IsEmptyCondition(is_empty=models.PayloadField(key=key)))
            elif number:
                bound = models.Range(**{{"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}[op]: value})
                must.append(models.FieldCondition(key=key, range=bound))
            else:
                raise InputError(
                    f"{condition.field} {op} {value!r}: Qdrant orders numbers only; expected = or != for text"
                )
        return models.Filter(must=must, must_not=must_not) if where else None

    def _any(self, key: str, values: Sequence[str]) -> Any:
        return self._models.FieldCondition(key=key, match=self._models.MatchAny(any=list(values)))

    def _exact(self) -> bool:
        return self._kind == "exact" or self._client.count(self._name, exact=False).count < EXACT_ROWS

    def _words(self, text: str) -> Any:
        counts = Counter(_number(stem) for stem in self._stems(text))
        norm = K1 * (1 - B + B * sum(counts.values()) / MEAN_WORDS)
        weights = {stem: count * (K1 + 1) / (count + norm) for stem, count in sorted(counts.items())}
        return self._models.SparseVector(indices=list(weights), values=list(weights.values()))


def connect(server: str, api_key: str | None) -> Any:
    """Return a client of a Qdrant server.

    Raises:
        MissingExtraError: the extra ``qdrant`` is not installed.
        InputError: the server does not answer.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise MissingExtraError(
            f"Qdrant needs the package {error.name}: install the extra with  pip install 'nvembed[qdrant]'"
        ) from error
    client = QdrantClient(url=server, api_key=api_key, timeout=60, check_compatibility=False)
    try:
        client.get_collections()
    except Exception as error:  # of several libraries' kinds
        raise InputError(
            f"{server}: no answer from Qdrant ({error}); expected its address and API key"
        ) from error
    return client


def _row(point: Any) -> Row:
    given = point.payload
    metadata = json.loads(given["metadata"])
    return Row(given["id"], given["document"], given["start"], given["end"], given["text"], metadata)


def _number(stem: str) -> int:
    return zlib.crc32(stem.encode())
