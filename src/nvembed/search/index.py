"""An index of embedded corpora: built, kept up to date, opened, searched.

An index is a folder with ``nvembed-index.json``, which names the table of the passages and the model for
queries; a LanceDB table is beside it. A new index has a new table, which is read back before the record is
replaced: if the build is killed, the old index is unchanged, and the next build removes the new table.
"""

import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from heapq import nsmallest
from pathlib import Path
from threading import Lock
from typing import Any, Self
from urllib.parse import urlsplit
from zlib import crc32

import numpy as np
import pyarrow as pa

from nvembed.embed.embedded import EmbeddedCorpus, vectors_of
from nvembed.embed.folder import INDEX
from nvembed.embed.records import read_manifest
from nvembed.errors import DataError, InputError, NvembedError, OutputError
from nvembed.files import locked, write_json
from nvembed.search.fields import MAX_FIELDS, Kind, field_kinds
from nvembed.search.lance import KINDS, LanceStore, drop_tables
from nvembed.search.record import (
    RECORD,
    IndexRecord,
    StoreName,
    index_folder,
    read_record,
    read_record_if_whole,
)
from nvembed.search.retrieve import Mode, SearchResult, retrieve
from nvembed.search.store import Store
from nvembed.search.sums import take_sums, write_sums
from nvembed.search.where import Condition, parse_where
from nvembed.text.words import Words, detect_language

BEGUN, FORMER = "begun.json", "former.json"  # during a build: the records of the new and the old index
AUTO = "auto"
SAMPLED_TEXTS = 500  # passages whose words decide the language
SAMPLE_WORDS = 20  # of a passage that is looked up to check an index

Progress = Callable[[int, int], None]
Warn = Callable[[str], None]


@dataclass(frozen=True)
class IndexOptions:
    """How an index is built.

    ``kind``: one of ``lance.KINDS``; for a server ``auto`` or ``exact``. ``server``: ``""`` for LanceDB in
    the index's folder, or ``postgresql://...``. ``query_prompt``: the default prompt of queries.
    ``language``: of the stemming of words: one of ``words.LANGUAGES``, or ``auto``: that of each document.
    ``kinds``: types of fields, in place of those that the values suggest.
    """

    kind: str = AUTO
    server: str = ""
    query_prompt: str = ""
    language: str = AUTO
    kinds: Mapping[str, Kind] = field(default_factory=dict)


class PassageIndex:
    """An open index, also in a ``with`` statement. It follows changes by other processes.

    ``record``: as last read. ``store``: its passages. ``words`` splits texts into words. Several threads may
    call its methods.
    """

    def __init__(self, folder: Path, server: str = "") -> None:
        self.folder, self.server = folder, server
        self._lock = Lock()
        self._stamp = _stamp(folder / RECORD)
        self.record = read_record(folder / RECORD)
        self.store = _store(folder, self.record, server)
        self.words = Words(self.record.language, *self.record.languages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def search(
        self,
        query: str,
        vector_D: np.ndarray | None,
        *,
        mode: Mode = "hybrid",
        top: int = 5,
        where: Sequence[str] = (),
        passage: str | None = None,
    ) -> SearchResult:
        """Return the ``top`` best passages for a query, best first, in the index as it is now.

        Args:
            vector_D: the unit vector of the query with its prompt; None for mode ``text``.
            where: filters, see ``parse_where``.
            passage: search only the passage with this id.

        Raises:
            InputError: a filter cannot be used, ``top`` is below 1, or the vector is missing.
            DataError: the index cannot be read.
        """
        while True:
            self.refresh()
            stamp, record, store, words = self._stamp, self.record, self.store, self.words
            conditions = parse_where(where, record.fields)
            if passage is not None:
                conditions = (*conditions, Condition("id", "=", passage))
            try:
                return retrieve(store, words.query(query), vector_D, mode=mode, top=top, where=conditions)
            except DataError:
                if _stamp(self.folder / RECORD) == stamp:
                    raise  # otherwise the index was built again meanwhile: search the new one

    def refresh(self) -> None:
        """Read the record again if it has changed, and open its table.

        Raises:
            DataError: the index was removed, or is of another model.
        """
        stamp = _stamp(self.folder / RECORD)
        with self._lock:
            if stamp == self._stamp:
                return
            record = read_record(self.folder / RECORD)
            if (record.fingerprint, record.dim) != (self.record.fingerprint, self.record.dim):
                raise DataError(
                    f"{self.folder} was built again with another model ({record.model}): open it again"
                )
            # LanceDB caches up to 7 GB of the versions that a store has read: each version gets a new one.
            if record.store == "lance" or record.name != self.record.name:
                former, self.store = self.store, _store(self.folder, record, self.server)
                former.close()
            if (record.language, record.languages) != (self.record.language, self.record.languages):
                self.words = Words(record.language, *record.languages)
            self.record, self._stamp = record, stamp

    def is_outdated(self) -> bool:
        """Whether the embedded corpus that contains this index has changed since the index was built."""
        try:
            manifest = read_manifest(self.folder.parent) if self.folder.name == INDEX else None
        except DataError:  # an index can be searched without the corpus
            return False
        return manifest is not None and self.record.corpus not in ("", manifest.job)

    def ping(self) -> None:
        """Check that the index can be searched.

        Raises:
            DataError: it cannot; the message says why.
        """
        self.refresh()
        self.store.ping()

    def close(self) -> None:
        """Release files and connections."""
        self.store.close()


def open_index(path: str | Path, *, server: str = "") -> PassageIndex:
    """Open an index: its own folder, the embedded corpus that contains it, or the folder or file it is of.

    Args:
        server: the server with the passages. The server in the record is not used: the folder may come from
            somebody else, and a connection sends passwords.

    Raises:
        DataError: there is no index, or it cannot be read.
        InputError: the passages are in a server, which is not named or cannot be reached.
        MissingExtraError: a package for the store is not installed.
    """
    folder = index_folder(path)
    if folder is None:
        raise DataError(f"{path} is not an index ({RECORD} is missing). Make one: nvembed index {path}")
    return PassageIndex(folder, server)


def build(
    source: EmbeddedCorpus,
    folder: Path,
    options: IndexOptions | None = None,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> PassageIndex:
    """Index an embedded corpus; an existing index is replaced when the new one is finished and checked.

    Args:
        rebuild: replace an index even if documents were added or deleted; these changes are lost.
        progress: called with (passages done, passages in total).
        warn: called with messages about values and passages that cannot be indexed as they are.

    Raises:
        InputError: an option cannot be used, or the index was changed and ``rebuild`` is false.
        OutputError: the folder or the server cannot be written, or reading the index back fails.
    """
    options, warn = options or IndexOptions(), warn or _ignore
    store_name = _store_name(options)
    with locked(folder):
        former = _replaceable(folder, options, warn, rebuild=rebuild)
        _remove_leftovers(folder, former, options.server, warn)
        record = _new_record(source, options, store_name, warn)
        store = _store(folder, record, options.server)
        if former is not None:
            write_json(folder / FORMER, former)
        write_json(folder / BEGUN, record)
        try:
            samples: list[_Sample] = []
            for note in store.fill(_shards(source, record, samples, progress), record.fields):
                warn(note)
            store.finish()
        finally:
            store.close()
        with store_of(folder, record, options.server) as store:  # as another process opens it
            _check(store, samples, source.rows)
        write_json(folder / RECORD, record)
        write_sums(folder, record, source.rows, {})
        _remove_leftovers(folder, record, options.server, warn)
    return PassageIndex(folder, options.server)


def add(
    index: PassageIndex,
    source: EmbeddedCorpus,
    *,
    only: Collection[str] | None = None,
    progress: Progress | None = None,
    warn: Warn | None = None,
) -> None:
    """Add the documents of another embedded corpus; existing documents are replaced as a whole.

    A call that was killed can be repeated: each shard is one transaction. A metadata field keeps its type;
    values of another type match no filter and are reported.

    Args:
        only: the documents to add; None adds all.

    Raises:
        InputError: the corpus has another model, prompt or size of vectors.
        OutputError: the index cannot be written, or reading it back fails.
    """
    warn = warn or _ignore
    with locked(index.folder):
        index.refresh()
        record, settings = index.record, source.manifest["settings"]
        for what, here, there in (
            ("model fingerprint", record.fingerprint, settings["fingerprint"]),
            ("prompt", record.passage_prompt, settings["prompt"]),
            ("vector size", record.dim, source.dim),
        ):
            if here != there:
                raise InputError(
                    f"the {what} of the index is {here!r}, that of {source.folder} is {there!r}. Their "
                    "vectors cannot be compared: embed the corpus with the model and prompt of the index"
                )
        kinds, misfits = field_kinds(_metadata(source), record.fields)
        for misfit in misfits:
            warn(str(misfit))
        samples: list[_Sample] = []
        languages = record.languages and _languages(source, record.language, {*record.languages}, only)
        with _changing(index, {"fields": kinds, "languages": languages}):
            for batch in _shards(source, record, samples, progress, only):
                for note in index.store.put(batch, kinds):
                    warn(note)
            index.store.finish()
            _check(index.store, samples)


def delete(index: PassageIndex, documents: Sequence[str]) -> list[str]:
    """Remove documents, and return the names that are not in the index.

    Raises:
        OutputError: the index cannot be written.
    """
    with locked(index.folder):
        index.refresh()
        names = index.store.known(documents)
        if names:
            with _changing(index):
                index.store.delete(sorted(names))
                index.store.finish()
                _check(index.store, ())
    return sorted(set(documents) - names)


def finish(index: PassageIndex) -> None:
    """Complete a change that was killed after its last transaction."""
    with locked(index.folder):
        index.refresh()
        with _changing(index):
            index.store.finish()


@contextmanager
def _changing(index: PassageIndex, changes: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Change the table of an index, whose record has these changes from now on.

    An error restores the index; in a server, the documents that were added before the error stay.
    """
    former = index.record
    record = former.model_copy(update={**(changes or {}), "changes": former.changes + 1})
    sums = take_sums(index.folder, former)
    write_json(index.folder / RECORD, record)
    try:
        with index.store.change():
            yield
    except Exception:
        if former.store == "lance":
            with suppress(NvembedError):  # the first error is the one to report
                write_json(index.folder / RECORD, former)
                write_sums(index.folder, former, index.store.count()[1], sums)
        raise
    write_sums(index.folder, record, index.store.count()[1], sums)
    index.refresh()


@dataclass(frozen=True)
class _Sample:
    """A passage that a search in the finished index must return."""

    id: str
    words: list[str]
    vector: np.ndarray


def _check(store: Store, samples: Sequence[_Sample], passages: int | None = None) -> None:
    """Read a finished index back, because a library may ignore an I/O error while it builds.

    Raises:
        OutputError: passages are missing, or cannot be found by words or by vector.
    """
    fault = ""
    try:
        count = store.count()[1]
        if passages is not None and count != passages:
            fault = f"it has {count:,} passages; expected {passages:,}"
        for sample in samples:
            itself = (Condition("id", "=", sample.id),)
            if sample.words and not store.matching(sample.words, 1, itself):
                fault = f"its passage {sample.id!r} is not found by its words"
            if not store.nearest(sample.vector, 1, itself).rows:
                fault = f"its passage {sample.id!r} is not found by its vector"
    except DataError as error:
        fault = str(error)
    if fault:
        raise OutputError(
            f"the index was written, but reading it back failed: {fault}. Check the disk (space, errors) and "
            "run the command again"
        )


def _new_record(
    source: EmbeddedCorpus, options: IndexOptions, store_name: StoreName, warn: Warn
) -> IndexRecord:
    from nvembed.search.postgres import without_password

    settings = source.manifest["settings"]
    kinds, misfits = field_kinds(_metadata(source), options.kinds)
    for misfit in misfits:
        warn(str(misfit))
    if options.language == AUTO:
        language = _main_language(source)
        languages = _languages(source, language, {language})
    else:
        language, languages = options.language, []
        Words(language)
    return IndexRecord(
        store=store_name,
        server=without_password(options.server) if options.server else "",
        name=f"nvembed_{secrets.token_hex(4)}",
        kind=options.kind,  # type: ignore[arg-type]
        model=source.manifest["model"],
        corpus=source.manifest["job"],
        fingerprint=settings["fingerprint"],
        passage_prompt=settings["prompt"],
        query_prompt=options.query_prompt,
        max_length=settings["max_length"],
        dim=source.dim,
        language=language,
        languages=languages,
        fields=kinds,
        fixed=dict(options.kinds),
        changes=source.manifest.get("changes", 0),  # of the index whose passages these are
    )


def is_decided_anew(index: PassageIndex) -> bool:
    """Whether the passages as a whole suggest other types of fields or another main language by now.

    An addition decides neither: it keeps the types that there are.
    """
    record = index.record
    if not index.store.count()[1]:
        return False
    kinds, _ = field_kinds(((id_, metadata) for id_, _, metadata in index.store.texts()), record.fixed)
    if len(kinds) < MAX_FIELDS and kinds != record.fields:
        return True
    pairs = ((id_, text) for id_, text, _ in index.store.texts())
    return bool(record.languages) and _language_of(pairs) != record.language


def _main_language(source: EmbeddedCorpus) -> str:
    batches = source.batches(["id", "text"])
    return _language_of(
        pair
        for batch in batches
        for pair in zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)
    )


def _language_of(passages: Iterable[tuple[str, str]]) -> str:
    """Return the language of a sample of passages, (id, text), which does not depend on their order."""
    sample = nsmallest(SAMPLED_TEXTS, passages, key=lambda pair: (crc32(pair[0].encode()), pair))
    return detect_language([text for _, text in sample])


def _languages(
    source: EmbeddedCorpus, main: str, known: set[str], only: Collection[str] | None = None
) -> list[str]:
    """Return the known languages and those of a corpus's documents."""
    for batch in _per_shard(source, ["document", "text"]):
        known.update(
            language for name, language in _by_document(batch, main).items() if only is None or name in only
        )
    return sorted(known)


def _by_document(batch: pa.RecordBatch, main: str) -> dict[str, str]:
    """Return the language of each document of a batch: the main one, or another that is clear."""
    texts: dict[str, list[str]] = {}
    for name, text in zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True):
        texts.setdefault(name, []).append(text)
    return {name: detect_language(its, main) for name, its in texts.items()}


def _shards(
    source: EmbeddedCorpus,
    record: IndexRecord,
    samples: list[_Sample],
    progress: Progress | None,
    only: Collection[str] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Yield a batch for each shard (of whole documents), with words, and vectors in half precision.

    ``samples`` gets a passage of the first and one of the last shard.
    """
    words = cache(Words)
    done = 0
    for batch in _per_shard(source):
        done += batch.num_rows
        if only is not None:
            batch = batch.filter(pa.array([name in only for name in batch["document"].to_pylist()]))
            if not batch.num_rows:
                continue
        half = vectors_of(batch).astype(np.float16, copy=False)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(half.reshape(-1)), source.dim)
        batch = batch.set_column(batch.schema.names.index("vector"), "vector", vectors)
        languages = _by_document(batch, record.language) if record.languages else {}
        texts = [
            words(languages.get(document, record.language))(text)
            for document, text in zip(batch["document"].to_pylist(), batch["text"].to_pylist(), strict=True)
        ]
        batch = batch.append_column("words", pa.array([" ".join(its) for its in texts], pa.string()))
        row = 0 if not samples else batch.num_rows - 1
        sample = _Sample(batch["id"][row].as_py(), texts[row][:SAMPLE_WORDS], half[row].astype(np.float32))
        samples[1:] = [sample]
        yield batch
        if progress is not None:
            progress(done, source.rows)


def _per_shard(source: EmbeddedCorpus, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield a batch for each shard, which has whole documents."""
    batches = source.batches(columns)
    for shard in source.manifest["shards"]:
        parts: list[pa.RecordBatch] = []
        while sum(part.num_rows for part in parts) < shard["rows"]:
            parts.append(next(batches))
        yield pa.Table.from_batches(parts).combine_chunks().to_batches()[0]


def _metadata(source: EmbeddedCorpus) -> Iterator[tuple[str, str]]:
    for batch in source.batches(["id", "metadata"]):
        yield from zip(batch["id"].to_pylist(), batch["metadata"].to_pylist(), strict=True)


def _store_name(options: IndexOptions) -> StoreName:
    kinds = KINDS if not options.server else ("auto", "exact")
    if options.kind not in kinds:
        raise InputError(f"unknown kind of index {options.kind!r}; expected one of {', '.join(kinds)}")
    if not options.server:
        return "lance"
    scheme = urlsplit(options.server).scheme
    if scheme in ("postgresql", "postgres"):
        return "postgres"
    raise InputError(f"unknown server with the scheme {scheme!r}; expected postgresql://USER@HOST/DATABASE")


def _store(folder: Path, record: IndexRecord, server: str) -> Store:
    if record.store == "lance":
        return LanceStore(folder, record.name, record.kind)
    if not server:
        raise InputError(
            f"the passages of {folder} are stored in a server ({record.server}). The folder may come from "
            "somebody else, so this address is not used. Name the server: --server URL, or the environment "
            "variable NVEMBED_INDEX_SERVER"
        )
    from nvembed.search.postgres import PostgresStore

    return PostgresStore(server, record.name, record.kind, record.dim)


@contextmanager
def store_of(folder: Path, record: IndexRecord, server: str) -> Iterator[Store]:
    """Open the store of an index, and close it at the end.

    Raises:
        InputError: it is a server, which is not named or cannot be reached.
    """
    store = _store(folder, record, server)
    try:
        yield store
    finally:
        store.close()


def _replaceable(folder: Path, options: IndexOptions, warn: Warn, *, rebuild: bool) -> IndexRecord | None:
    """Return the record of the index to replace, or None if there is none or it cannot be read."""
    path = folder / RECORD
    if not path.exists():
        return None
    record = read_record_if_whole(path)
    if record is None:
        warn(f"{path} is damaged or of another version; documents added to that index are not kept")
    elif not rebuild and record.changes:
        raise InputError(
            f"documents were added to or deleted from {folder} {record.changes} times since it was built; "
            "building it again loses these changes. Pass --rebuild to do so, or use --add and --delete"
        )
    elif not rebuild and record.store == "postgres" and not options.server:
        raise InputError(
            f"the passages of {folder} are stored in {record.server}: pass --server URL to build the index "
            "there again, or --rebuild to build it on disk"
        )
    return record


def _remove_leftovers(folder: Path, current: IndexRecord | None, server: str, warn: Warn) -> None:
    """Remove the tables of replaced indexes and of killed builds."""
    name = "" if current is None else current.name
    if name:
        drop_tables(folder, keep=name)
    for path in (folder / FORMER, folder / BEGUN):
        record = read_record_if_whole(path)
        if record is not None and record.store == "postgres" and record.name != name:
            if server:
                with store_of(folder, record, server) as store:
                    store.drop()
            else:
                warn(f"the table {record.name} in {record.server} is not removed: pass --server to remove it")
        path.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Return values that change when a file is replaced."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return status.st_mtime_ns, status.st_ino, status.st_size


def _ignore(_message: str) -> None:
    return
