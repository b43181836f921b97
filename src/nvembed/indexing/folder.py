"""An index that follows a folder: what has changed is embedded, everything else stays.

``nvembed-folder.json`` in the index has the digest of each file as it is indexed. Files that are about to
be changed get the digest ``CHANGING`` before the first change, so that after a kill the next update does
them again. Changed files are embedded by a job of ``nvembed embed`` in the folder ``work``, which takes the
vectors of passages with the same text from the index; then each document is replaced in one transaction.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from nvembed.embed.embedded import EmbeddedCorpus, open_embedded
from nvembed.embed.job import EmbedSettings, local_engine, open_job
from nvembed.embed.plan import Stamped, stamp
from nvembed.embed.records import CorpusReading, FileEntry, RunSettings, plain, read_entries, read_manifest
from nvembed.embed.shard import Encode
from nvembed.embed.update import EarlierShards
from nvembed.errors import DataError, InputError
from nvembed.files import Schema, as_utf8, locked, read_json, write_json
from nvembed.indexing.documents import Records, write_records
from nvembed.indexing.models import Facts
from nvembed.read.corpus import RECORD_KINDS, CorpusFiles, list_files, read_documents
from nvembed.search.index import (
    AUTO,
    IndexOptions,
    PassageIndex,
    add,
    build,
    delete,
    finish,
    is_decided_anew,
)

FOLDER = "nvembed-folder.json"
WORK = "work"
CHANGING = "0" * 64  # in place of the digest of a file whose documents are being changed
READ_DOCUMENTS = 1000  # read from an index at a time

Progress = Callable[[str, int, int], None]  # what is done, units done, units in total
Warn = Callable[[str], None]


class FolderRecord(Schema):
    """The content of ``nvembed-folder.json``.

    ``table``: of the index that it describes; "" while its table is written again. ``corpus``: the folder or
    file, relative to the index if the index is inside it; "" if there is none. ``files``: name and SHA-256.
    ``added``: documents that are of no file.
    """

    format: Literal[1] = 1
    table: str
    corpus: str
    follow_links: bool
    settings: RunSettings
    files: dict[str, str]
    added: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Changes:
    """What an update did, in documents; ``embedded`` and ``reused`` count passages.

    ``moved``: documents with another name and the same text. ``skipped``: why files or records were not read.
    """

    changed: int = 0
    new: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    embedded: int = 0
    reused: int = 0
    skipped: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether a document has changed."""
        return bool(self.changed or self.new or self.moved or self.removed)

    def __str__(self) -> str:
        counts = {name: getattr(self, name) for name in ("changed", "new", "moved", "removed")}
        shown = [f"{count:,} {name}" for name, count in counts.items() if count or name != "moved"]
        return ", ".join([*shown, f"{self.unchanged:,} unchanged"])


@dataclass(frozen=True)
class PassageEmbedder:
    """A model for corpora: its facts without its weights, and the function that embeds.

    ``encode``: texts to vectors with the settings' prompt; it loads the model at its first call.
    """

    name: str
    facts: Facts
    encode: Callable[[EmbedSettings], Encode]


@dataclass(frozen=True)
class Listener:
    """Where progress and warnings go."""

    progress: Progress = lambda *_: None
    warn: Warn = lambda _: None


def build_folder(
    corpus: Path | Records,
    folder: Path,
    embedder: PassageEmbedder,
    record: FolderRecord,
    options: IndexOptions,
    report: Listener,
    *,
    rebuild: bool = False,
) -> tuple[PassageIndex, Changes]:
    """Embed a folder, a file or documents and index them; a killed call goes on where it was stopped.

    Args:
        folder: of the index.
        record: the settings; its ``table`` and ``files`` are not used.
        rebuild: replace an index that exists.
    """
    with locked(folder / WORK):
        work = _FolderWork(folder / WORK, embedder, record.settings, report)
        path = corpus if isinstance(corpus, Path) else work.folder / "documents.jsonl"
        if not isinstance(corpus, Path):
            write_records(corpus, path)
        files = list_files(str(path), follow_links=record.follow_links)
        source = work.embed(files, as_utf8(str(path)) if isinstance(corpus, Path) else "")
        index = build(
            source,
            folder,
            options,
            rebuild=rebuild,
            progress=partial(report.progress, "indexing"),
            warn=report.warn,
        )
        content: dict[str, Any] = {"files": _digests(source)}
        if not isinstance(corpus, Path):
            content = {"added": sorted(row["id"] for row in corpus)}
        _write(folder, record, {"table": index.record.name, **content})
        work.remove()
    return index, Changes(new=index.store.count()[0], **work.counts)


def update_folder(
    index: PassageIndex, embedder: PassageEmbedder, corpus: Path | None, report: Listener
) -> Changes:
    """Bring an index up to date with its folder.

    Args:
        corpus: the folder, in place of the recorded one.

    Raises:
        InputError: the model is another one, or the vectors depend on whole documents (late chunking).
        DataError: the folder is missing, or nothing in it can be read.
    """
    with locked(index.folder / WORK):
        record = read_folder(index)
        if corpus is None and not record.corpus:
            raise InputError(f"{index.folder} follows no folder: its documents are changed by add and delete")
        place = corpus or corpus_of(index.folder, record)
        files = list_files(str(place), follow_links=record.follow_links)
        stamped = stamp(files, partial(report.progress, "reading"), on_error=record.settings.on_error)
        now = {item.file.name: item for item in stamped}
        touched = [item for name, item in now.items() if record.files.get(name) != item.sha256]
        gone = [name for name in record.files if name not in now]
        if not touched and not gone:
            return Changes(unchanged=len(index.store.documents()) - len(record.added))
        names = {item.file.name for item in touched}
        pending = {**record.files, **dict.fromkeys([*names, *gone], CHANGING)}
        documents = index.store.documents() - set(record.added)
        claimed = {*record.files, *now}
        owners = {name: _owner(name, files, claimed) for name in documents}
        replaced = {*names, *gone}
        old = {name for name, owner in owners.items() if owner in replaced}
        digests = {item.sha256 for item in touched}
        copied = {name for name, digest in record.files.items() if digest in digests}
        reused = old | {name for name, owner in owners.items() if owner in copied}
        named = corpus_path(place, index.folder)
        _write(index.folder, record, {"corpus": named, "files": pending})
        work = _FolderWork(index.folder / WORK, embedder, record.settings, report)
        source = work.embed_changed(touched, as_utf8(str(place)), index, reused)
        changes = _apply(index, source, old, report)
        if is_decided_anew(index):
            _write(index.folder, record, {"table": "", "corpus": named, "files": pending})
            _write_again(index, index.folder / WORK / "whole", report)
        after = {name: item.sha256 for name, item in now.items()}
        after |= _digests(source) if source else {}
        _write(index.folder, record, {"table": index.record.name, "corpus": named, "files": after})
        work.remove()
    total = len(documents) + changes.new - changes.removed
    return replace(changes, unchanged=total - changes.changed - changes.new - changes.moved, **work.counts)


def add_documents(index: PassageIndex, embedder: PassageEmbedder, rows: Records, report: Listener) -> Changes:
    """Add documents that are of no file, as records with ``id``, ``text`` and metadata."""
    if not rows:
        return Changes()
    with locked(index.folder / WORK):
        record = read_folder(index)
        ids = [row["id"] for row in rows]
        known = index.store.known(ids)
        if foreign := sorted(known - set(record.added)):
            raise InputError(
                f"{foreign[0]!r} is a document of a file in {record.corpus}: choose another id"
                ", or change the file"
            )
        _write(index.folder, record, {"added": sorted({*record.added, *ids})})
        work = _FolderWork(index.folder / WORK, embedder, record.settings, report)
        path = work.folder / "added.jsonl"
        write_records(rows, path)
        source = work.embed(list_files(str(path)), str(path), _dumped(index, known, work.folder / "reuse"))
        changes = _apply(index, source, known, report)
        work.remove()
    return replace(changes, unchanged=len(known) - changes.changed, **work.counts)


def delete_documents(index: PassageIndex, documents: Sequence[str]) -> list[str]:
    """Remove documents; return the names that are not in the index."""
    with locked(index.folder / WORK):
        missing = delete(index, documents)
        if (index.folder / FOLDER).exists():
            record = read_folder(index)
            _write(index.folder, record, {"added": sorted(set(record.added) - set(documents))})
    return missing


def read_folder(index: PassageIndex) -> FolderRecord:
    """Return the record of an index's folder; of an index that ``nvembed embed`` began, from its manifest.

    Raises:
        InputError: the index is of several corpora or of none that is known.
    """
    path = index.folder / FOLDER
    cure = "Build the index again: nvembed index FOLDER --model MODEL --rebuild"
    if path.exists():
        record = read_json(path, FolderRecord, cure=cure)
        if record.table in ("", index.record.name):
            return record
    parent = index.folder.parent
    manifest = read_manifest(parent)
    if manifest is None or manifest.job != index.record.corpus:
        raise InputError(f"{index.folder} does not follow a folder, so it cannot be updated. {cure}")
    files = {entry.path: entry.sha256 for entry in read_entries(parent / "files.jsonl", FileEntry)}
    documents = EmbeddedCorpus(parent, plain(manifest)).batches(["document"])
    own = {name for batch in documents for name in batch["document"].to_pylist()}
    return FolderRecord(
        table=index.record.name,
        corpus=str(Path(manifest.corpus).resolve()),
        follow_links=False,
        settings=manifest.settings,
        files=files,
        added=sorted(index.store.documents() - own),
    )


def corpus_of(folder: Path, record: FolderRecord) -> Path:
    """Return the folder that an index follows."""
    return Path(os.path.normpath(folder.resolve() / record.corpus))


def corpus_path(corpus: Path, folder: Path) -> str:
    """Return how a record names its corpus: relative where both are moved together."""
    corpus, folder = corpus.resolve(), folder.resolve()
    home = corpus if corpus.is_dir() else corpus.parent
    return os.path.relpath(corpus, folder) if folder.is_relative_to(home) else str(corpus)


def _write(folder: Path, record: FolderRecord, changes: Mapping[str, Any]) -> None:
    write_json(folder / FOLDER, record.model_copy(update=changes))


def _digests(source: EmbeddedCorpus) -> dict[str, str]:
    return {entry.path: entry.sha256 for entry in read_entries(source.folder / "files.jsonl", FileEntry)}


def _owner(document: str, files: CorpusFiles, claimed: Collection[str]) -> str:
    """Return the file that a document is of: by its name, or by the prefix of a file's records."""
    if document in claimed:
        return document
    (first, *others) = files.files
    if not others and not first.prefix and first.kind in RECORD_KINDS:
        return first.name  # one file of records: the ids have no prefix
    at = document.find(":")
    while at >= 0:
        if document[:at] in claimed:
            return document[:at]
        at = document.find(":", at + 1)
    return ""


class _FolderWork:
    """The folder in which changed files are embedded."""

    def __init__(
        self, folder: Path, embedder: PassageEmbedder, settings: RunSettings, report: Listener
    ) -> None:
        if embedder.facts.fingerprint != settings.fingerprint:
            raise InputError(
                f"{embedder.name} has the fingerprint {embedder.facts.fingerprint}; the index has vectors of "
                f"{settings.fingerprint}. Use that model, or build the index again with --rebuild"
            )
        if settings.late_chunking:
            raise InputError(
                "with late chunking a vector depends on the whole document: update the corpus with "
                "nvembed embed --update and build the index again"
            )
        values = {name: value for name, value in settings if name in EmbedSettings.__dataclass_fields__}
        self.folder, self._embedder, self._report = folder, embedder, report
        self._settings = EmbedSettings(**values, dim=embedder.facts.dim)
        self._reading = CorpusReading(
            **{name: getattr(settings, name) for name in CorpusReading.model_fields}
        )
        state = json.dumps([asdict(self._settings), plain(self._reading)])
        self._job = folder / hashlib.sha256(state.encode()).hexdigest()[:16]
        self.counts: dict[str, Any] = {"embedded": 0, "reused": 0, "skipped": ()}

    def remove(self) -> None:
        """Remove everything but the lock."""
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != ".lock":
                path.unlink()

    def embed(self, files: CorpusFiles, corpus: str, dumped: Sequence[Path] = ()) -> EmbeddedCorpus:
        """Embed files as ``nvembed embed`` does; vectors of the texts in ``dumped`` are used again."""
        settings = self._settings
        with open_job(self._job, files, self._reading, lambda *_: None, update=True) as job:
            shards = [] if job.earlier is None else sorted((job.earlier / "shards").glob("*.parquet"))
            earlier = EarlierShards([*shards, *dumped], settings.prompt, settings.context)
            encode = earlier.reusing(self._counted(settings), self._count_reused)
            engine = local_engine(self._embedder.facts.build_offsets(), encode)
            names = {"corpus": corpus, "model": as_utf8(self._embedder.name)}
            manifest = job.run(settings, engine, partial(self._report.progress, "embedding"), names=names)
        self.counts["skipped"] += tuple(entry["reason"] for entry in manifest["skipped"])
        for note in manifest["notes"]:
            self._report.warn(note)
        return open_embedded(self._job)

    def embed_changed(
        self, touched: Sequence[Stamped], corpus: str, index: PassageIndex, reused: Collection[str]
    ) -> EmbeddedCorpus | None:
        """Embed changed files, with the vectors of these documents of the index; None if there is no text."""
        readable = [item.file for item in touched]
        if readable and self._reading.on_error == "skip" and len(readable) <= len(self.faults(touched)):
            self.counts["skipped"] += tuple(self.faults(touched).values())
            return None
        if not readable:
            return None
        return self.embed(CorpusFiles(readable), corpus, _dumped(index, reused, self.folder / "reuse"))

    def faults(self, touched: Sequence[Stamped]) -> dict[str, str]:
        """Return why files have no document that can be read; a job needs at least one that has."""
        faults: dict[str, str] = {}
        for item in touched:
            reason = f"{item.file.path}: no text in it"
            try:
                for read in read_documents(item.file, field=self._reading.field, layout=self._reading.layout):
                    if not isinstance(read.document, DataError):
                        return faults
                    reason = str(read.document)
                    break
            except DataError as error:
                reason = str(error)
            faults[item.file.name] = reason
        return faults

    def _counted(self, settings: EmbedSettings) -> Encode:
        encode = self._embedder.encode(settings)

        def encode_counted(texts: Sequence[Any]) -> Iterator[Any]:
            for part in encode(texts):
                self.counts["embedded"] += len(part.vectors)
                yield part

        return encode_counted

    def _count_reused(self, count: int) -> None:
        self.counts["reused"] += count


def _dumped(index: PassageIndex, documents: Collection[str], folder: Path) -> list[Path]:
    """Write the passages of some documents of an index as shards for ``EarlierShards``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    paths: list[Path] = []
    for table in _passages(index, documents):
        path = folder / f"{len(paths):05d}.parquet"
        pq.write_table(table, path, write_page_checksum=True)
        paths.append(path)
    return paths


def _passages(index: PassageIndex, documents: Collection[str]) -> Iterator[pa.Table]:
    names = sorted(documents)
    for start in range(0, len(names), READ_DOCUMENTS):
        yield index.store.passages(names[start : start + READ_DOCUMENTS])


def _apply(
    index: PassageIndex, source: EmbeddedCorpus | None, old: Collection[str], report: Listener
) -> Changes:
    """Replace the ``old`` documents of an index by those of a corpus; equal ones are not touched."""
    before: dict[str, bytes] = {}
    for table in _passages(index, old):
        before |= _contents(table.to_batches())
    columns = ["document", "start", "end", "text", "metadata"]
    after = {} if source is None else _contents(source.batches(columns))
    different = {name for name, content in after.items() if before.get(name) != content}
    gone = [name for name in before if name not in after]
    if source is not None and different:
        add(
            index,
            source,
            only=different,
            progress=partial(report.progress, "indexing"),
            warn=report.warn,
        )
    if gone:
        delete(index, gone)
    if not gone and not different:
        finish(index)  # after a kill: rows may not be in the indexes
    new = Counter(after[name] for name in different if name not in before)
    moved = (new & Counter(before[name] for name in gone)).total()
    return Changes(
        changed=len(different) - new.total(), new=new.total() - moved, moved=moved, removed=len(gone) - moved
    )


def _write_again(index: PassageIndex, folder: Path, report: Listener) -> None:
    """Replace the table of an index by one of the same passages, with types and language decided anew."""
    record = index.record
    paths = _dumped(index, index.store.documents(), folder / "shards")
    shards = [{"name": path.name, "rows": pq.read_metadata(path).num_rows} for path in paths]
    settings = {
        "fingerprint": record.fingerprint,
        "prompt": record.passage_prompt,
        "max_length": record.max_length,
    }
    manifest = {
        "model": record.model,
        "job": record.corpus,
        "settings": settings,
        "dim": record.dim,
        "counts": {"passages": sum(int(str(shard["rows"])) for shard in shards)},
        "shards": shards,
        "changes": record.changes,
    }
    options = IndexOptions(
        record.kind,
        index.server,
        record.query_prompt,
        AUTO if record.languages else record.language,
        record.fixed,
    )
    progress = partial(report.progress, "indexing")
    corpus = EmbeddedCorpus(folder, manifest)
    build(corpus, index.folder, options, rebuild=True, progress=progress, warn=report.warn).close()
    index.refresh()


def _contents(batches: Iterable[pa.RecordBatch]) -> dict[str, bytes]:
    """Return a digest of the passages of each document, without its name."""
    passages: dict[str, list[bytes]] = {}
    for batch in batches:
        columns = (batch[name].to_pylist() for name in ("document", "start", "end", "text", "metadata"))
        for document, *content in zip(*columns, strict=True):
            digest = hashlib.sha256(json.dumps(content).encode()).digest()
            passages.setdefault(document, []).append(digest)
    return {name: hashlib.sha256(b"".join(sorted(digests))).digest() for name, digests in passages.items()}
