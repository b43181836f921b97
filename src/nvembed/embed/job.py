"""A job that embeds a corpus. A job that was killed and started again writes the same bytes.

First the whole corpus is read for the plan (``plan.py``); then an engine computes the missing shards; the
manifest is written last. A shard is written whole or not at all, and is computed once.

If the corpus of a finished folder has changed, an update is a second job in the folder ``.next``, which
reuses the vectors of unchanged passages. When it is finished, it replaces the first.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from nvembed.embed.folder import INDEX
from nvembed.embed.passages import Context, CutMode, Cutting, Passages, cut_documents
from nvembed.embed.plan import (
    Shard,
    Stamped,
    corpus_changes,
    make_plan,
    read_plan,
    read_shard,
    stamp,
)
from nvembed.embed.records import (
    CURE,
    FORMAT,
    CorpusReading,
    JobRecord,
    Manifest,
    ManifestCounts,
    PlanRecord,
    RunSettings,
    ShardEntry,
    Storage,
    plain,
    read_manifest,
)
from nvembed.embed.shard import (
    Encode,
    digest_path,
    is_shard,
    shard_entry,
    shard_path,
    write_shard,
)
from nvembed.embed.update import EarlierShards
from nvembed.errors import DataError, OutputError
from nvembed.files import atomic_path, claim, file_digest, locked, read_json, same_run, write_json
from nvembed.read.chunk import Offsets
from nvembed.read.corpus import CorpusFiles

Progress = Callable[[int, int], None]
Advance = Callable[[int, float], None]  # number of a shard, share of it that is done


@dataclass(frozen=True)
class EmbedSettings:
    """What decides the bytes of a shard, besides the corpus and the kind of device."""

    fingerprint: str
    prompt: str
    dtype: str
    dim: int
    max_length: int
    batch_tokens: int
    storage: Storage
    chunk_tokens: int | None  # None: documents are left whole
    overlap_tokens: int | None
    late_chunking: bool = False  # a passage's vector is pooled from a pass over its document
    cut: CutMode = "sentences"
    context: Context = "none"

    @property
    def cutting(self) -> Cutting:
        return Cutting(
            self.chunk_tokens, self.overlap_tokens, self.cut, self.context, keep_whole=self.late_chunking
        )


@dataclass(frozen=True)
class Work:
    """The data for computing a shard. It can be sent to another process."""

    out: Path
    stamped: list[Stamped]
    reading: CorpusReading
    settings: EmbedSettings
    key: str

    def read(self, shard: Shard, offsets: Offsets) -> Passages:
        """Read a shard's documents and cut them into passages."""
        documents = read_shard(shard, self.stamped, self.reading)
        return cut_documents(documents, offsets, self.settings.cutting)

    def write(
        self, number: int, passages: Passages, encode: Encode, advance: Advance = lambda *_: None
    ) -> ShardEntry:
        """Embed a shard and write it, unless it is finished; return its entry in the manifest."""
        target = shard_path(self.out, number)
        if not is_shard(target, self.key, number):
            prompt, late = self.settings.prompt, self.settings.late_chunking
            write_shard(
                target,
                passages,
                encode,
                passages.whole(prompt) if late else passages.inputs(prompt),
                {"job": self.key, "shard": number},
                dim=self.settings.dim,
                storage=self.settings.storage,
                advance=lambda share: advance(number, share),
            )
        entry = shard_entry(target)
        with atomic_path(digest_path(target)) as temporary:
            temporary.write_text(entry.sha256, encoding="ascii")
        return entry


# (work, missing shards, progress callback) -> the entries of finished shards, in any order. Closing the
# generator ends the work.
Engine = Callable[[Work, list[Shard], Advance], Generator[ShardEntry, None, None]]


def local_engine(offsets: Offsets, encode: Encode) -> Engine:
    """Compute the shards one after another in this process; a thread reads the next one."""

    def engine(work: Work, shards: list[Shard], advance: Advance) -> Generator[ShardEntry, None, None]:
        ended = Event()

        def until_ended(texts: Sequence[str]) -> list[np.ndarray]:
            if ended.is_set():  # an error or a signal does not wait for the rest of a long document
                raise CancelledError
            return offsets(texts)

        with ThreadPoolExecutor(1, "read") as ahead, ExitStack() as at_end:
            at_end.callback(ended.set)
            pending: tuple[Shard, Future[Passages]] | None = None
            for shard in [*shards, None]:
                ready = pending
                pending = (shard, ahead.submit(work.read, shard, until_ended)) if shard else None
                if ready is not None:
                    yield work.write(ready[0].number, ready[1].result(), encode, advance)

    return engine


@dataclass(frozen=True)
class CorpusJob:
    """A job on a folder, whose lock it holds; ``open_job`` makes it.

    ``plan``: None if the job is finished. ``earlier``: the folder that an update will replace.
    """

    out: Path
    stamped: list[Stamped]
    reading: CorpusReading
    plan: PlanRecord | None
    earlier: Path | None = None

    @property
    def finished(self) -> bool:
        return self.plan is None

    def shards_done(self) -> int:
        """Return how many shards are finished."""
        return sum(1 for _ in (self.out / "shards").glob("*.parquet"))

    def earlier_shards(self, prompt: str, context: Context = "none") -> EarlierShards | None:
        """Return the passages whose vectors an update reuses, of documents with this prompt."""
        if self.earlier is None:
            return None
        return EarlierShards(sorted((self.earlier / "shards").glob("*.parquet")), prompt, context)

    def run(
        self, settings: EmbedSettings, engine: Engine, progress: Progress, *, names: dict[str, str]
    ) -> dict[str, Any]:
        """Compute the missing shards and write the manifest; return its content.

        Args:
            progress: called with (characters done, characters in total) at the start and as shards advance.
            names: ``corpus`` and ``model`` as the user named them, for the manifest.

        Raises:
            OutputError: the folder belongs to a run with other settings, or cannot be written.
            DataError: the corpus has changed meanwhile.
            NumericsError: a vector is not finite.
        """
        record = JobRecord(format=FORMAT, **asdict(settings), **plain(self.reading))
        for folder in filter(None, (self.earlier, self.out)):
            _check_settings(folder, record)
        if self.plan is None:
            manifest = read_manifest(self.out)
            assert manifest is not None
            return plain(manifest)
        state = plain(record)
        claim(self.out / "job.json", state)
        files = (self.out / "files.jsonl").read_bytes()
        key = job_key(record, files)
        entries = self._compute(Work(self.out, self.stamped, self.reading, settings, key), engine, progress)
        run_settings = {name: value for name, value in state.items() if name not in ("format", "dim")}
        manifest = Manifest(
            format=FORMAT,
            job=key,
            **names,
            settings=RunSettings(**run_settings),
            dim=settings.dim,
            counts=ManifestCounts(
                files=self.plan.counts.files,
                documents=self.plan.counts.documents,
                passages=sum(entry.rows for entry in entries),
                tokens=sum(entry.tokens for entry in entries),
                truncated=sum(entry.truncated for entry in entries),
                empty=sum(entry.empty for entry in entries),
                skipped=len(self.plan.skipped),
            ),
            files_sha256=hashlib.sha256(files).hexdigest(),
            ignored=self.plan.ignored,
            skipped=self.plan.skipped,
            notes=self.plan.notes,
            shards=entries,
        )
        write_json(self.out / "manifest.json", manifest)
        _remove_plan(self.out)
        if self.earlier is not None:
            _replace_earlier(self.earlier)
        return plain(manifest)

    def _compute(self, work: Work, engine: Engine, progress: Progress) -> list[ShardEntry]:
        """Compute the missing shards; return the entries of all shards in order."""
        assert self.plan is not None
        entries: dict[str, ShardEntry] = {}
        missing: dict[str, Shard] = {}
        order: list[Path] = []
        total, done = self.plan.counts.characters, 0
        if self.plan.sha256 not in (None, file_digest(self.out / "plan.jsonl")):
            raise DataError(f"{self.out / 'plan.jsonl'} is damaged: its digest differs. {CURE}")
        for shard in read_plan(self.out):
            path = shard_path(self.out, shard.number)
            order.append(path)
            if is_shard(path, work.key, shard.number):
                done += shard.characters
            else:
                missing[path.name] = shard
        progress(done, total)

        def advance(number: int, share: float) -> None:
            progress(done + int(share * missing[shard_path(self.out, number).name].characters), total)

        with closing(engine(work, list(missing.values()), advance)) as computed:
            for entry in computed:
                entries[entry.name] = entry
                done += missing[entry.name].characters
                progress(done, total)
        _remove_leftovers(self.out)  # of workers that were killed
        return [entries.get(path.name) or shard_entry(path) for path in order]


@contextmanager
def open_job(
    out: Path, source: CorpusFiles, reading: CorpusReading, progress: Progress, *, update: bool = False
) -> Iterator[CorpusJob]:
    """Lock a folder, and plan a job in it or check that its job is of this corpus.

    Args:
        out: a new folder, or the folder of the same job, unfinished or finished.
        progress: called with (bytes of the corpus read, bytes in total). The corpus is read for checksums,
            then for the plan.
        update: if the corpus has changed since the job, embed what has changed.

    Raises:
        OutputError: another job is running on the folder, or has another corpus or other settings of reading;
            or the folder contains other files, or cannot be written.
        DataError: every fault of the corpus.
    """
    with locked(out):
        _check_content(out)
        _remove_leftovers(out)
        _replace_earlier(out)
        _reopen(out)
        first = not any((out / name).exists() for name in ("manifest.json", *_UNFINISHED))
        if (out / "manifest.json").exists():
            _remove_plan(out)
        earlier_reading = _reading_of(out)
        if earlier_reading is not None:
            same_run(out / "job.json", plain(earlier_reading), plain(reading))
        planned = (out / "plan.json").exists() or (out / "manifest.json").exists()
        passes = 1 if planned else 2
        stamped = stamp(source, lambda done, total: progress(done, passes * total), on_error=reading.on_error)

        def plan_in(folder: Path) -> PlanRecord:
            return make_plan(
                folder, source, stamped, reading, lambda done, total: progress(total + done, 2 * total)
            )

        _restore_files(out, stamped)
        changes = "" if first or not (out / "files.jsonl").exists() else corpus_changes(out, stamped)
        if changes and not update:
            raise OutputError(
                f"the corpus has changed since {out} was embedded: {changes}. Pass --update to embed what "
                "has changed, restore the corpus, or write to another folder"
            )
        if changes:
            following = out / NEXT
            same = (following / "plan.json").exists() and not corpus_changes(following, stamped)
            if not same:
                shutil.rmtree(following, ignore_errors=True)
                following.mkdir()
            _remove_leftovers(following)
            plan = read_plan_record(following) if same else plan_in(following)
            yield CorpusJob(following, stamped, reading, plan, earlier=out)
            return
        shutil.rmtree(out / NEXT, ignore_errors=True)
        if (out / "manifest.json").exists():
            yield CorpusJob(out, stamped, reading, None)
        else:
            yield CorpusJob(out, stamped, reading, read_plan_record(out) if planned else plan_in(out))


def _check_settings(folder: Path, record: JobRecord) -> None:
    """Raise OutputError if the job in a folder has other settings."""
    job = read_job(folder)
    if job is not None:
        marker = folder / ("manifest.json" if (folder / "manifest.json").exists() else "job.json")
        same_run(marker, {**plain(job), "format": FORMAT}, plain(record))


def job_key(record: JobRecord, files: bytes) -> str:
    """Return the digest of a job's settings and corpus, which each of its shards contains."""
    return hashlib.sha256(json.dumps(plain(record), sort_keys=True).encode() + files).hexdigest()[:32]


def read_job(folder: Path) -> JobRecord | None:
    """Return the settings of the job in a folder, or None if it has none yet."""
    manifest = read_manifest(folder)
    if manifest is not None:
        return JobRecord(format=manifest.format, dim=manifest.dim, **plain(manifest.settings))
    path = folder / "job.json"
    return read_json(path, JobRecord, cure=CURE, error=OutputError) if path.exists() else None


def recorded_cut(folder: Path) -> CutMode | None:
    """Return how the documents of the job in a folder are cut; None if there is no job."""
    job = read_job(folder)
    return None if job is None else job.cut


def _reading_of(folder: Path) -> CorpusReading | None:
    job = read_job(folder)
    if job is not None:
        return CorpusReading(**{name: getattr(job, name) for name in CorpusReading.model_fields})
    return read_plan_record(folder).reading if (folder / "plan.json").exists() else None


def read_plan_record(folder: Path) -> PlanRecord:
    return read_json(folder / "plan.json", PlanRecord, cure=CURE, error=OutputError)


def _restore_files(out: Path, stamped: Sequence[Stamped]) -> None:
    """Write a missing ``files.jsonl`` of a finished job again, if the corpus has not changed."""
    manifest, path = read_manifest(out), out / "files.jsonl"
    if manifest is None or path.exists():
        return
    lines = "".join(item.line for item in stamped)
    if hashlib.sha256(lines.encode()).hexdigest() != manifest.files_sha256:
        raise DataError(f"{path} is missing, and the corpus has changed. {CURE}")
    with atomic_path(path) as temporary:
        temporary.write_text(lines, encoding="utf-8")


def _reopen(out: Path) -> None:
    """Turn a finished job with missing or damaged shards into an unfinished one with the same settings."""
    manifest = read_manifest(out)
    if manifest is None:
        return
    damaged = [
        path
        for shard in manifest.shards
        if not (path := out / "shards" / shard.name).is_file() or file_digest(path) != shard.sha256
    ]
    if damaged:
        for path in damaged:
            path.unlink(missing_ok=True)
        state = {"dim": manifest.dim, **plain(manifest.settings), "format": FORMAT}
        write_json(out / "job.json", JobRecord(**state))
        (out / "manifest.json").unlink()


def _replace_earlier(out: Path) -> None:
    """Replace a job by its finished update; after a kill, the next call completes this."""
    following = out / NEXT
    if not (following / "manifest.json").exists():
        return
    (out / "manifest.json").unlink(missing_ok=True)
    _remove_plan(out)
    if (following / "shards").exists():
        shutil.rmtree(out / "shards", ignore_errors=True)
        (following / "shards").rename(out / "shards")
    if (following / "files.jsonl").exists():
        (following / "files.jsonl").replace(out / "files.jsonl")
    (following / "manifest.json").replace(out / "manifest.json")
    shutil.rmtree(following, ignore_errors=True)


def _remove_plan(out: Path) -> None:
    for path in [*(out / name for name in _UNFINISHED), *(out / "shards").glob("*.sha256")]:
        path.unlink(missing_ok=True)


NEXT = ".next"  # the folder of an update
_UNFINISHED = ("job.json", "plan.json", "plan.jsonl")
_CONTENT = {*_UNFINISHED, "manifest.json", "files.jsonl", "shards", ".lock", INDEX, NEXT}
# The folder that ``atomic_path`` makes beside one of our files until that file is whole.
_LEFTOVER = re.compile(r"\.((job|plan|manifest)\.json|(plan|files)\.jsonl|\d{5,}\.(parquet|sha256))\.\w{8}")


def _check_content(out: Path) -> None:
    """Refuse a folder that contains files of something else."""
    for path in out.iterdir():
        if path.name not in _CONTENT and not _LEFTOVER.fullmatch(path.name):
            raise OutputError(
                f"{out} contains {path.name}, which nvembed embed does not write; expected a new folder, or "
                "one of the same command"
            )


def _remove_leftovers(out: Path) -> None:
    """Remove the temporary files of killed processes."""
    for path in [*out.glob(".*"), *(out / "shards").glob(".*")]:
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
