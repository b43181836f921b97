"""A job that embeds a corpus: killed anywhere and begun again, it ends with the same bytes.

A shard appears whole or not at all, and a shard that is there is never computed again. The plan (``plan.py``)
is made first, by reading the corpus through; then engines compute the shards that are missing; the manifest
is written last.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvembed.embed.folder import INDEX
from nvembed.embed.plan import Reading, Shard, Stamped, check_files, make_plan, read_plan, read_shard, stamp
from nvembed.embed.shard import (
    FORMAT,
    Encode,
    Entry,
    Passages,
    Storage,
    cut_documents,
    is_shard,
    shard_entry,
    shard_path,
    write_shard,
)
from nvembed.errors import OutputError
from nvembed.files import atomic_path, claim, locked, same_run
from nvembed.read.chunk import Offsets
from nvembed.read.corpus import Source

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
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


@dataclass(frozen=True)
class Work:
    """What whoever computes a shard needs to know. It can be sent to another process."""

    out: Path
    stamped: list[Stamped]
    reading: Reading
    settings: Settings
    key: str

    def read(self, shard: Shard, offsets: Offsets) -> Passages:
        """Read a shard's documents and cut them into passages."""
        documents = read_shard(shard, self.stamped, self.reading.field)
        settings = self.settings
        return cut_documents(
            documents, offsets, max_tokens=settings.chunk_tokens, overlap=settings.overlap_tokens
        )

    def write(self, number: int, passages: Passages, encode: Encode) -> Entry:
        """Embed a shard and write it, unless it is there; return its entry in the manifest."""
        target = shard_path(self.out, number)
        if not is_shard(target, self.key):
            made_by = {"job": self.key, "shard": number}
            write_shard(
                target, passages, encode, made_by, dim=self.settings.dim, storage=self.settings.storage
            )
        return shard_entry(target)


# work, the shards that are missing -> the entries of finished shards, in any order
Engine = Callable[[Work, list[Shard]], Iterator[Entry]]


def local_engine(offsets: Offsets, encode: Encode) -> Engine:
    """Compute the shards in this process, one after another; the next one is read meanwhile."""

    def engine(work: Work, shards: list[Shard]) -> Iterator[Entry]:
        with ThreadPoolExecutor(1, "read") as ahead:
            pending: tuple[Shard, Future[Passages]] | None = None
            for shard in [*shards, None]:
                ready = pending
                pending = (shard, ahead.submit(work.read, shard, offsets)) if shard else None
                if ready is not None:
                    yield work.write(ready[0].number, ready[1].result(), encode)

    return engine


@dataclass(frozen=True)
class Job:
    """A job on one folder, whose lock it holds. Made by ``open_job``."""

    out: Path
    stamped: list[Stamped]
    reading: Reading
    plan: dict[str, Any]

    @property
    def finished(self) -> bool:
        return _manifest(self.out) is not None

    def shards_done(self) -> int:
        """Return how many shards are finished."""
        return sum(1 for _ in (self.out / "shards").glob("*.parquet"))

    def run(self, settings: Settings, engine: Engine, progress: Progress, *, names: dict[str, str]) -> Entry:
        """Compute the shards that are missing and write the manifest; return it.

        Args:
            progress: told (characters done, characters in all) at the start and after each shard.
            names: how corpus and model were named; told in the manifest, and decide nothing.

        Raises:
            OutputError: the folder is of a run with other settings, or cannot be written.
            DataError: the corpus changes meanwhile.
            NumericsError: a vector that is not finite.
        """
        state = {"format": FORMAT, **asdict(settings), **asdict(self.reading)}
        manifest = _manifest(self.out)
        if manifest is not None:
            done = {"format": manifest["format"], "dim": manifest["dim"], **manifest["settings"]}
            same_run(self.out / "manifest.json", done, state)
            return manifest
        claim(self.out / "job.json", state)
        files = (self.out / "files.jsonl").read_bytes()
        key = hashlib.sha256(json.dumps(state).encode() + files).hexdigest()[:32]
        entries = self._compute(Work(self.out, self.stamped, self.reading, settings, key), engine, progress)
        sums = {name: sum(entry[name] for entry in entries) for name in ("tokens", "truncated", "empty")}
        del state["format"], state["dim"]
        manifest = {
            "format": FORMAT,
            "job": key,
            **names,
            "settings": state,
            "dim": settings.dim,
            "counts": {
                "files": self.plan["counts"]["files"],
                "documents": self.plan["counts"]["documents"],
                "passages": sum(entry["rows"] for entry in entries),
                **sums,
                "skipped": len(self.plan["skipped"]),
            },
            "files_sha256": hashlib.sha256(files).hexdigest(),
            "ignored": self.plan["ignored"],
            "skipped": self.plan["skipped"],
            "shards": entries,
        }
        _write_json(self.out / "manifest.json", manifest)
        _remove_plan(self.out)
        return manifest

    def _compute(self, work: Work, engine: Engine, progress: Progress) -> list[Entry]:
        """Have the missing shards computed; return the entries of all, in order."""
        entries: dict[str, Entry] = {}
        missing: dict[str, Shard] = {}
        order: list[Path] = []
        total, done = self.plan["counts"]["characters"], 0
        for shard in read_plan(self.out):
            path = shard_path(self.out, shard.number)
            order.append(path)
            if is_shard(path, work.key):
                done += shard.characters
            else:
                missing[path.name] = shard
        progress(done, total)
        for entry in engine(work, list(missing.values())):
            entries[entry["name"]] = entry
            done += missing[entry["name"]].characters
            progress(done, total)
        _remove_leftovers(self.out)  # of workers that were killed
        return [entries.get(path.name) or shard_entry(path) for path in order]


@contextmanager
def open_job(out: Path, source: Source, reading: Reading, progress: Progress) -> Iterator[Job]:
    """Lock a folder, and make the plan of a job in it or check that it fits the corpus.

    Args:
        out: a new folder, or one that the same job left unfinished or finished.
        progress: told (bytes of the corpus read, bytes in all): it is read for checksums, then for the plan.

    Raises:
        OutputError: another job runs on the folder, or ran on another corpus or read it otherwise; or the
            folder holds something else, or cannot be written.
        DataError: what is wrong with the corpus.
    """
    with locked(out):
        _check_content(out)
        _remove_leftovers(out)
        _reopen(out)
        plan, begun = _read_json(out / "plan.json"), _read_json(out / "job.json")
        known = plan["reading"] if plan is not None else begun
        if known is not None:
            same_run(out / "plan.json", {name: known[name] for name in asdict(reading)}, asdict(reading))
        if _manifest(out) is not None:
            plan = {}
            _remove_plan(out)
        passes = 2 if plan is None else 1
        stamped = stamp(source, lambda done, total: progress(done, passes * total))
        if plan is not None or begun is not None:
            check_files(out, stamped)
        if plan is None:
            plan = make_plan(
                out, source, stamped, reading, lambda done, total: progress(total + done, passes * total)
            )
        yield Job(out, stamped, reading, plan)


def _reopen(out: Path) -> None:
    """Make a finished job that has lost shards an unfinished one, with the settings it had."""
    manifest = _manifest(out)
    if manifest is None or all(_is_there(out / "shards" / s["name"], s["bytes"]) for s in manifest["shards"]):
        return
    state = {"format": manifest["format"], "dim": manifest["dim"], **manifest["settings"]}
    _write_json(out / "job.json", state)
    (out / "manifest.json").unlink()


def _is_there(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _manifest(out: Path) -> dict[str, Any] | None:
    return _read_json(out / "manifest.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot read {path} ({error}): remove its folder and begin anew") from error
    return found


def _remove_plan(out: Path) -> None:
    for name in _UNFINISHED:
        (out / name).unlink(missing_ok=True)


_UNFINISHED = ("job.json", "plan.json", "plan.jsonl")
_CONTENT = {*_UNFINISHED, "manifest.json", "files.jsonl", "shards", ".lock", INDEX}
# What ``atomic_path`` names a folder beside one of our files until that file is whole.
_LEFTOVER = re.compile(r"\.((job|plan|manifest)\.json|(plan|files)\.jsonl|\d{5,}\.parquet)\.\w{8}")


def _check_content(out: Path) -> None:
    """Refuse a folder that holds something else than a job leaves."""
    for path in out.iterdir():
        if path.name not in _CONTENT and not _LEFTOVER.fullmatch(path.name):
            raise OutputError(
                f"{out} holds {path.name}, which is of no such job: expected a new folder, or one that "
                "the same command left"
            )


def _remove_leftovers(out: Path) -> None:
    """Remove what a killed process was writing."""
    for path in [*out.glob(".*"), *(out / "shards").glob(".*")]:
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
