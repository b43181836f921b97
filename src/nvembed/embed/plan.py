"""What a corpus holds, found out before anything is embedded: its files' checksums, and which documents make
up which shard. All that is wrong with a corpus is said here, or recorded, and not days later.

``files.jsonl``  path, bytes and sha256 of each file, in reading order
``plan.jsonl``   a shard per line: ``{"characters": n, "spans": [[file, offset, line, row, documents], ...]}``
``plan.json``    written last: how the corpus was read, counts, what was skipped, what was ignored
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from nvembed.errors import DataError, OutputError
from nvembed.files import as_utf8, atomic_path
from nvembed.read.beir import id_twice
from nvembed.read.corpus import Document, Found, Source, SourceFile, read_documents
from nvembed.read.lines import read_rows
from nvembed.read.streams import Place

OnError = Literal["stop", "skip"]

MAX_SKIPPED = 10_000
# A document counts as one passage per so many characters, or part of them, when shards are filled.
PASSAGE_CHARACTERS = 1000


@dataclass(frozen=True)
class Reading:
    """How a corpus is read and parted into shards."""

    field: str | None = None
    on_error: OnError = "stop"
    shard_passages: int = 512


class Span(NamedTuple):
    """Documents that stand together in one file."""

    file: int
    place: Place
    documents: int


class Shard(NamedTuple):
    """The documents of one shard."""

    number: int
    characters: int
    spans: list[Span]


class Stamped(NamedTuple):
    """A file of the corpus as it was when its checksum was taken."""

    file: SourceFile
    bytes: int
    modified_ns: int
    sha256: str

    @property
    def line(self) -> str:
        entry = {"path": self.file.name, "bytes": self.bytes, "sha256": self.sha256}
        return json.dumps(entry, ensure_ascii=False) + "\n"


def stamp(source: Source, progress: Callable[[int, int], None]) -> list[Stamped]:
    """Read every file once for its checksum. ``progress`` is told (bytes done, bytes in all).

    Raises:
        DataError: a file cannot be read.
    """
    stamped = []
    try:
        total = sum(file.path.stat().st_size for file in source.files)
        done = 0
        for file in source.files:
            state = file.path.stat()
            digest = hashlib.sha256()
            with file.path.open("rb") as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
                    done += len(piece)
                    progress(done, total)
            stamped.append(Stamped(file, state.st_size, state.st_mtime_ns, digest.hexdigest()))
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error
    return stamped


def make_plan(
    out: Path, source: Source, stamped: list[Stamped], reading: Reading, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Read the corpus through and write the three files of the plan; return what ``plan.json`` holds.

    Memory holds the names of files and one document; ids are kept in a temporary database on disk.

    Args:
        progress: told (bytes done, bytes in all).

    Raises:
        DataError: anything wrong with the corpus, unless ``on_error`` is ``skip``; or no document in it.
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
            planner.read(index, item.file, target)
            done += item.bytes
            progress(done, total)
        planner.close_shard(target)
    if not planner.counts["documents"]:
        raise DataError(
            f"no document could be read: {len(planner.skipped):,} were skipped; the first: "
            f"{planner.skipped[0]['reason']}"
        )
    with atomic_path(out / "files.jsonl") as temporary:
        temporary.write_text("".join(item.line for item in stamped), encoding="utf-8")
    plan = {
        "reading": asdict(reading),
        "counts": {"files": len(stamped), **planner.counts},
        "ignored": source.ignored,
        "skipped": planner.skipped,
    }
    with atomic_path(out / "plan.json") as temporary:
        temporary.write_text(json.dumps(plan, ensure_ascii=False), encoding="utf-8")
    return plan


class _Planner:
    """Fills shards with documents, refuses ids that stand twice, keeps account of what is skipped."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.skipped: list[dict[str, Any]] = []
        self.counts = {"documents": 0, "characters": 0, "shards": 0}
        self._ids = sqlite3.connect("")  # on disk as it grows, and gone when it is closed
        self._ids.execute("CREATE TABLE ids (digest BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")
        self._spans: list[Span] = []
        self._passages = self._characters = 0
        self._joined = False  # whether the next document follows the last span

    def close(self) -> None:
        self._ids.close()

    def read(self, index: int, file: SourceFile, target: TextIO) -> None:
        self._joined = False
        before = self.counts["documents"] + len(self.skipped)
        try:
            for found in read_documents(file, field=self.reading.field):
                fault = self._fault(found)
                if fault is not None:
                    self._skip(file, fault)
                    self._joined = False
                else:
                    assert isinstance(found.document, Document)
                    self._add(index, found.place, len(found.document.text), target)
            if before == self.counts["documents"] + len(self.skipped):
                raise DataError(
                    f"{file.path}: no text in it; expected at least one: fill it, or take it away"
                )
        except DataError as error:
            self._skip(file, error)

    def _fault(self, found: Found) -> DataError | None:
        if isinstance(found.document, DataError):
            return found.document
        digest = hashlib.blake2b(found.document.id.encode(), digest_size=16).digest()
        try:
            self._ids.execute("INSERT INTO ids VALUES (?, ?)", (digest, as_utf8(found.where)))
        except sqlite3.IntegrityError:
            (first,) = self._ids.execute("SELECT place FROM ids WHERE digest = ?", (digest,)).fetchone()
            return id_twice(found.where, found.document.id, first)
        except sqlite3.OperationalError as error:
            raise OutputError(f"could not write to the folder for temporary files: {error}") from error
        return None

    def _skip(self, file: SourceFile, error: DataError) -> None:
        if self.reading.on_error == "stop":
            raise error
        self.skipped.append({"path": file.name, "reason": as_utf8(str(error))})
        if len(self.skipped) > MAX_SKIPPED:
            raise DataError(
                f"more than {MAX_SKIPPED:,} files or records cannot be read; the last: {error}"
            ) from error

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


def check_files(out: Path, stamped: list[Stamped]) -> None:
    """Compare the corpus with the one that ``files.jsonl`` was written of.

    Raises:
        OutputError: it names what has changed, is new or is missing.
    """
    there = {row["path"]: row for _, row in read_rows(out / "files.jsonl")}
    here = {item.file.name: json.loads(item.line) for item in stamped}
    changed = [f"{name} has changed" for name in here if name in there and here[name] != there[name]]
    changed += [f"{name} is new" for name in here if name not in there]
    changed += [f"{name} is missing" for name in there if name not in here]
    if changed or list(there) != list(here):
        shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3:,} more" if len(changed) > 3 else "")
        raise OutputError(
            f"{out} was begun with another corpus: {shown or 'the order of its files has changed'}: "
            "restore the corpus, or write to another folder"
        )


def read_plan(out: Path) -> Iterator[Shard]:
    """Yield the shards of a plan in order."""
    for number, (_, row) in enumerate(read_rows(out / "plan.jsonl")):
        spans = [Span(file, Place(*place), documents) for file, *place, documents in row["spans"]]
        yield Shard(number, row["characters"], spans)


def read_shard(shard: Shard, stamped: list[Stamped], field: str | None) -> Iterator[Document]:
    """Yield the documents of a shard.

    Raises:
        DataError: a file is not what it was when the plan was made.
    """
    for span in shard.spans:
        item = stamped[span.file]
        count = 0
        found = read_documents(item.file, field=field, start=span.place)
        try:
            for _, _, document in islice(found, span.documents):
                if isinstance(document, Document):
                    count += 1
                    yield document
            state = item.file.path.stat()
        except OSError as error:
            raise DataError(f"cannot read {item.file.path}: {error.strerror or error}") from error
        if count != span.documents or (state.st_size, state.st_mtime_ns) != (item.bytes, item.modified_ns):
            raise DataError(
                f"{item.file.path} has changed while the corpus was embedded: restore it, or begin anew"
            )
