"""The plan of a job: the checksums of the corpus's files, and which documents make up which shard.

The whole corpus is read for it before anything is embedded, so that every fault of the corpus is reported at
the start.

``files.jsonl``  path, bytes and sha256 of each file, in reading order
``plan.jsonl``   a shard per line: ``{"characters": n, "spans": [[file, offset, line, row, documents], ...]}``
``plan.json``    written last: how the corpus was read, counts, skipped and ignored files, notes
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

from nvembed.embed.records import (
    CorpusReading,
    FileEntry,
    OnError,
    PlanCounts,
    PlanLine,
    PlanRecord,
    SkippedEntry,
    plain,
    read_entries,
)
from nvembed.errors import DataError, OutputError
from nvembed.files import as_utf8, atomic_path, file_digest, write_json
from nvembed.read.beir import id_twice
from nvembed.read.corpus import CorpusFiles, Document, ReadDocument, SourceFile, read_documents
from nvembed.read.lines import csv_delimiter
from nvembed.read.streams import Place

MAX_SKIPPED = 10_000
LISTED_FAULTS = 100  # of the records of one file; the others are counted
# A document counts as one passage per so many characters, or part of them, when shards are filled.
PASSAGE_CHARACTERS = 1000
SHOWN_FAULTS = 20


class Span(NamedTuple):
    """Documents that follow one another in one file."""

    file: int
    place: Place
    documents: int


class Shard(NamedTuple):
    """The documents of one shard."""

    number: int
    characters: int
    spans: list[Span]


class Stamped(NamedTuple):
    """A file of the corpus, with its state when its checksum was computed."""

    file: SourceFile
    bytes: int
    modified_ns: int
    sha256: str

    @property
    def line(self) -> str:
        return json.dumps(plain(self.entry), ensure_ascii=False) + "\n"

    @property
    def entry(self) -> FileEntry:
        return FileEntry(path=self.file.name, bytes=self.bytes, sha256=self.sha256)


def stamp(
    source: CorpusFiles, progress: Callable[[int, int], None], *, on_error: OnError = "stop"
) -> list[Stamped]:
    """Return the files with their checksums. ``progress`` is called with (bytes read, bytes in total).

    Args:
        on_error: with ``skip`` a file that cannot be read has the digest of the reason; reading it later
            reports the reason.

    Raises:
        DataError: a file cannot be read.
    """
    stamped: list[Stamped] = []
    sizes = [_size(file) for file in source.files]
    total, done = sum(sizes), 0
    for file, size in zip(source.files, sizes, strict=True):
        try:
            state = file.path.stat()
            digest = hashlib.sha256()
            with file.path.open("rb") as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
                    progress(min(done := done + len(piece), total), total)
            stamped.append(Stamped(file, state.st_size, state.st_mtime_ns, digest.hexdigest()))
        except OSError as error:
            if on_error == "stop":
                raise DataError(f"cannot read {file.path}: {error.strerror or error}") from error
            reason = f"\0cannot be read: {error.strerror}".encode()
            stamped.append(Stamped(file, size, 0, hashlib.sha256(reason).hexdigest()))
    return stamped


def _size(file: SourceFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError:
        return 0


def make_plan(
    out: Path,
    source: CorpusFiles,
    stamped: list[Stamped],
    reading: CorpusReading,
    progress: Callable[[int, int], None],
) -> PlanRecord:
    """Read the whole corpus and write the three files of the plan; return the content of ``plan.json``.

    Memory holds the names of files and one document; ids are in a temporary database on disk.

    Args:
        progress: called with (bytes read, bytes in total).

    Raises:
        DataError: every fault of the corpus, unless ``on_error`` is ``skip``; or it has no document.
        OutputError: the plan cannot be written.
    """
    planner = _Planner(reading)
    total = sum(item.bytes for item in stamped)
    done = 0
    with (
        atomic_path(out / "plan.jsonl") as temporary,
        temporary.open("w", encoding="utf-8") as target,
        closing(planner),
    ):
        for index, item in enumerate(stamped):
            planner.read(index, item, target, lambda read: progress(done + read, total))  # noqa: B023
            done += item.bytes
            progress(done, total)
        planner.close_shard(target)
        planner.check()
    with atomic_path(out / "files.jsonl") as temporary:
        temporary.write_text("".join(item.line for item in stamped), encoding="utf-8")
    plan = PlanRecord(
        reading=reading,
        counts=PlanCounts(files=len(stamped), **planner.counts),
        ignored=source.ignored,
        skipped=planner.skipped,
        notes=planner.notes,
        sha256=file_digest(out / "plan.jsonl"),
    )
    write_json(out / "plan.json", plan)
    return plan


class _Planner:
    """Assigns documents to shards, refuses repeated ids, and counts what is skipped."""

    def __init__(self, reading: CorpusReading) -> None:
        self.reading = reading
        self.skipped: list[SkippedEntry] = []
        self.notes: list[str] = []
        self.counts = {"documents": 0, "characters": 0, "shards": 0}
        self._ids = sqlite3.connect("")  # a temporary database, removed when it is closed
        self._ids.execute("CREATE TABLE ids (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._spans: list[Span] = []
        self._passages = self._characters = 0
        self._joined = False  # whether the next document follows the last span

    def close(self) -> None:
        self._ids.close()

    def read(self, index: int, item: Stamped, target: TextIO, progress: Callable[[int], None]) -> None:
        file = item.file
        self._joined, unlisted = False, 0
        before, listed = self.counts["documents"] + len(self.skipped), len(self.skipped)
        try:
            self._note_delimiter(file)
            for read in read_documents(file, field=self.reading.field, layout=self.reading.layout):
                fault = self._fault(read)
                if fault is not None:
                    self._joined = False
                    if len(self.skipped) - listed < LISTED_FAULTS:
                        self._skip(file, fault)
                    else:
                        unlisted += 1
                else:
                    assert isinstance(read.document, Document)
                    self.notes += (f"{file.name}: {warning}" for warning in read.document.warnings)
                    self._add(index, read.place, len(read.document.text), target)
                if read.place.row % 1000 == 999:
                    progress(min(read.place.offset, item.bytes))
            if before == self.counts["documents"] + len(self.skipped):
                raise DataError(f"{file.path}: no text in it; expected at least one: fill it, or remove it")
        except DataError as error:
            self._skip(file, error)
        if unlisted:
            self._skip(file, DataError(f"{file.path}: {unlisted:,} more records cannot be read"))

    def _note_delimiter(self, file: SourceFile) -> None:
        """Report a .csv file whose header has another delimiter than a comma."""
        if file.kind == "csv" and self.reading.delimiter is None:
            delimiter = csv_delimiter(file.path, file.kind, self.reading.layout)
            if delimiter != ",":
                name = "a tab" if delimiter == "\t" else repr(delimiter)
                self.notes.append(f"{file.name}: columns are separated by {name}, as in its header")

    def _fault(self, read: ReadDocument) -> DataError | None:
        if isinstance(read.document, DataError):
            return read.document
        digest = hashlib.blake2b(read.document.id.encode(), digest_size=16).digest()
        try:
            self._ids.execute("INSERT INTO ids VALUES (?, ?)", (digest, as_utf8(read.where)))
        except sqlite3.IntegrityError:
            (first,) = self._ids.execute("SELECT place FROM ids WHERE digest = ?", (digest,)).fetchone()
            return id_twice(read.where, read.document.id, first)
        except sqlite3.OperationalError as error:
            raise OutputError(f"could not write to the folder for temporary files: {error}") from error
        return None

    def _skip(self, file: SourceFile, error: DataError) -> None:
        self.skipped.append(SkippedEntry(path=file.name, reason=as_utf8(str(error))))
        if len(self.skipped) > MAX_SKIPPED:
            raise DataError(
                f"more than {MAX_SKIPPED:,} files or records cannot be read; the last: {error}"
            ) from error

    def check(self) -> None:
        """Raise the faults of the whole corpus, unless they are to be skipped."""
        faults = [entry.reason for entry in self.skipped]
        if faults and self.reading.on_error == "stop":
            more = f"\nand {len(faults) - SHOWN_FAULTS:,} more" if len(faults) > SHOWN_FAULTS else ""
            raise DataError(
                "\n".join(faults[:SHOWN_FAULTS])
                + more
                + f"\n{len(faults):,} files or records cannot be read; nothing was embedded. Correct them, "
                "or skip them: nvembed embed --on-error skip"
            )
        if not self.counts["documents"]:
            raise DataError(f"no document can be read: {len(faults):,} were skipped; the first: {faults[0]}")

    def _add(self, index: int, place: Place, characters: int, target: TextIO) -> None:
        passages = max(1, -(-characters // PASSAGE_CHARACTERS))
        if self._passages and self._passages + passages > self.reading.shard_passages:
            self.close_shard(target)
        if self._joined:
            self._spans[-1] = self._spans[-1]._replace(documents=self._spans[-1].documents + 1)
        else:
            self._spans.append(Span(index, place, 1))
        self._joined = True
        self._passages += passages
        self._characters += characters
        self.counts["documents"] += 1
        self.counts["characters"] += characters

    def close_shard(self, target: TextIO) -> None:
        if self._spans:
            spans = [[span.file, *span.place, span.documents] for span in self._spans]
            target.write(json.dumps({"characters": self._characters, "spans": spans}) + "\n")
            self.counts["shards"] += 1
        self._spans, self._passages, self._characters, self._joined = [], 0, 0, False


def corpus_changes(out: Path, stamped: list[Stamped]) -> str:
    """Describe the differences between a corpus and the one in ``files.jsonl``; "" if there are none."""
    there = {entry.path: entry for entry in read_entries(out / "files.jsonl", FileEntry)}
    here = {item.file.name: item.entry for item in stamped}
    changes = [f"{name} has changed" for name in here if name in there and here[name] != there[name]]
    changes += [f"{name} is new" for name in here if name not in there]
    changes += [f"{name} is missing" for name in there if name not in here]
    if not changes and list(there) != list(here):
        return "the order of its files has changed"
    return ", ".join(changes[:3]) + (f" and {len(changes) - 3:,} more" if len(changes) > 3 else "")


def read_plan(out: Path) -> Iterator[Shard]:
    """Yield the shards of a plan in order."""
    for number, line in enumerate(read_entries(out / "plan.jsonl", PlanLine)):
        spans = [Span(file, Place(*place), documents) for file, *place, documents in line.spans]
        yield Shard(number, line.characters, spans)


def read_shard(shard: Shard, stamped: list[Stamped], reading: CorpusReading) -> Iterator[Document]:
    """Yield the documents of a shard.

    Raises:
        DataError: a file has changed since the plan was made.
    """
    for span in shard.spans:
        item = stamped[span.file]
        count = 0
        documents = read_documents(item.file, field=reading.field, start=span.place, layout=reading.layout)
        try:
            for _, _, document in islice(documents, span.documents):
                if isinstance(document, Document):
                    count += 1
                    yield document
            state = item.file.path.stat()
        except OSError as error:
            raise DataError(f"cannot read {item.file.path}: {error.strerror or error}") from error
        if count != span.documents or (state.st_size, state.st_mtime_ns) != (item.bytes, item.modified_ns):
            raise DataError(
                f"{item.file.path} was changed while the corpus was embedded: restore it, or start again"
            )
