"""An index of embedded corpora: built, kept up to date, opened.

An index is a folder with ``nvembed-index.json``: where the passages are kept, and which model embeds
queries for them; LanceDB's table lies beside it. A new index gets a table of its own, and the record is
replaced when that is finished: killed before, the old index is as it was, and what was begun is removed by
the next build.
"""

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from nvembed.embed.embedded import EmbeddedCorpus, vectors_of
from nvembed.embed.folder import INDEX
from nvembed.errors import DataError, InputError
from nvembed.files import locked
from nvembed.search.lance import KINDS, LanceStore
from nvembed.search.record import RECORD, Record, StoreName, read_record, write_record
from nvembed.search.store import Store
from nvembed.search.where import kinds_of

BEGUN, FORMER = "begun.json", "former.json"  # records of the index being built, and of the one it replaces

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Index:
    """An open index; in a ``with`` statement it is closed at the end."""

    folder: Path
    record: Record
    store: Store

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()


def open_index(path: str | Path, *, api_key: str | None = None) -> Index:
    """Open an index: its own folder, or the embedded corpus it lies in.

    Args:
        api_key: of a Qdrant server that asks for one; libpq finds PostgreSQL's password itself.

    Raises:
        DataError: no index there, or one that cannot be read.
        MissingExtraError: what its store needs is not installed.
    """
    path = Path(path)
    folder = path if (path / RECORD).is_file() else path / INDEX
    if not (folder / RECORD).is_file():
        raise DataError(f"{path} is no index ({RECORD} is missing): make one with  nvembed index {path}")
    record = read_record(folder / RECORD)
    return Index(folder, record, _store(folder, record, api_key))


def build(
    source: EmbeddedCorpus,
    folder: Path,
    *,
    kind: str = "auto",
    server: str = "",
    query_prompt: str = "",
    api_key: str | None = None,
    progress: Progress | None = None,
) -> Index:
    """Index an embedded corpus; an index that is there already is replaced when the new one is finished.

    Args:
        kind: one of ``lance.KINDS``; for a server ``auto`` or ``exact``.
        server: ``""`` for LanceDB in ``folder``; ``http(s)://...`` for Qdrant, ``postgresql://...``.
        progress: called with (passages done, of how many).

    Raises:
        InputError: a kind or a server that is not known.
        OutputError: the folder cannot be written.
    """
    settings = source.manifest["settings"]
    record = Record(
        store=_store_of(server, kind),
        server=server,
        name=f"nvembed_{secrets.token_hex(4)}",
        kind=kind,
        model=source.manifest["model"],
        fingerprint=settings["fingerprint"],
        passage_prompt=settings["prompt"],
        query_prompt=query_prompt,
        max_length=settings["max_length"],
        dim=source.dim,
        fields=kinds_of(_metadata(source)),
    )
    with locked(folder):
        _forget(folder, api_key)
        if (folder / RECORD).is_file():
            write_record(folder / FORMER, read_record(folder / RECORD))
        write_record(folder / BEGUN, record)
        store = _store(folder, record, api_key)
        try:
            store.fill(_shards(source, progress), record.fields)
            store.finish()
            write_record(folder / RECORD, record)
            _forget(folder, api_key)
        except BaseException:
            store.close()
            raise
    return Index(folder, record, store)


def add(index: Index, source: EmbeddedCorpus, *, progress: Progress | None = None) -> Index:
    """Add the documents of another embedded corpus; those that are there already are replaced, whole.

    Each shard is one change: killed and run again, the result is the same. A field of the metadata keeps its
    type; a new value of another type cannot be filtered on.

    Raises:
        InputError: another model, prompt or size of vector.
    """
    record, settings = index.record, source.manifest["settings"]
    for what, here, there in (
        ("model fingerprint", record.fingerprint, settings["fingerprint"]),
        ("prompt", record.passage_prompt, settings["prompt"]),
        ("vector size", record.dim, source.dim),
    ):
        if here != there:
            raise InputError(
                f"the {what} of the index is {here!r}, that of {source.folder} {there!r}: vectors can be "
                "compared only where both are the same; embed it with the index's model and prompt"
            )
    record = replace(record, fields=kinds_of(_metadata(source), record.fields))
    with locked(index.folder):
        write_record(index.folder / RECORD, record)
        for batch in _shards(source, progress):
            index.store.put(batch, record.fields)
        index.store.finish()
    return replace(index, record=record)


def delete(index: Index, documents: Sequence[str]) -> None:
    """Remove documents.

    Raises:
        InputError: one of them is not in the index; then nothing is removed.
    """
    missing = sorted(set(documents) - index.store.known(documents))
    if missing:
        raise InputError(
            f"no document {missing[0]!r} in the index ({len(missing)} of {len(documents)} unknown)"
        )
    with locked(index.folder):
        index.store.delete(documents)
        index.store.finish()


def _shards(source: EmbeddedCorpus, progress: Progress | None) -> Iterator[pa.RecordBatch]:
    """Yield one batch of each shard, which holds whole documents, with vectors in half precision."""
    batches = source.batches()
    done = 0
    for shard in source.manifest["shards"]:
        parts: list[pa.RecordBatch] = []
        while sum(part.num_rows for part in parts) < shard["rows"]:
            parts.append(next(batches))
        batch = pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
        flat = pa.array(vectors_of(batch).astype(np.float16, copy=False).reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, source.dim)
        yield batch.set_column(batch.schema.names.index("vector"), "vector", vectors)
        done += batch.num_rows
        if progress is not None:
            progress(done, source.rows)


def _metadata(source: EmbeddedCorpus) -> Iterator[str]:
    for batch in source.batches(["metadata"]):
        yield from batch["metadata"].to_pylist()


def _store_of(server: str, kind: str) -> StoreName:
    known = KINDS if not server else ("auto", "exact")
    if kind not in known:
        raise InputError(f"unknown kind of index {kind!r}; expected one of {', '.join(known)}")
    if not server:
        return "lance"
    address = urlsplit(server)
    if address.password:
        raise InputError(
            f"the server is {address.scheme}://{address.username}:...; a password in it would be written to "
            f"{RECORD}: put PostgreSQL's into ~/.pgpass or PGPASSWORD, and Qdrant's key into QDRANT_API_KEY"
        )
    scheme = address.scheme
    if scheme in ("http", "https"):
        return "qdrant"
    if scheme in ("postgresql", "postgres"):
        return "postgres"
    raise InputError(
        f"unknown server {server!r}; expected http://HOST:PORT (Qdrant) or postgresql://HOST/DATABASE"
    )


def _store(folder: Path, record: Record, api_key: str | None) -> Store:
    if record.store == "lance":
        return LanceStore(folder, record.name, record.kind)
    if record.store == "qdrant":
        from nvembed.search.qdrant import QdrantStore, connect

        return QdrantStore(connect(record.server, api_key), record.name, record.kind)
    from nvembed.search.postgres import PostgresStore

    return PostgresStore(record.server, record.name, record.kind)


def _forget(folder: Path, api_key: str | None) -> None:
    """Remove what is not the current index: the one it replaced, or what a build that was killed has left."""
    current = read_record(folder / RECORD).name if (folder / RECORD).is_file() else None
    for path in (folder / FORMER, folder / BEGUN):
        if path.is_file():
            record = read_record(path)
            if record.name != current:
                store = _store(folder, record, api_key)
                store.drop()
                store.close()
            path.unlink()
