"""The check of an embedded corpus: every file is compared with its digest or checksum."""

from collections.abc import Iterator
from pathlib import Path

from nvembed.embed.job import NEXT, job_key, read_job, read_plan_record
from nvembed.embed.records import FileEntry, Manifest, read_entries, read_manifest
from nvembed.embed.shard import digest_path, is_shard
from nvembed.errors import NvembedError
from nvembed.files import Damage, FolderReport, file_digest


def check_embedded(folder: Path) -> FolderReport:
    """Check a folder of ``nvembed embed``, finished or not; every byte of its shards is read."""
    kind, again = "embedded corpus", f"remove {folder} and run nvembed embed CORPUS {folder} --model MODEL"
    try:
        manifest = read_manifest(folder)
        if manifest is None and not any((folder / name).exists() for name in ("plan.json", "job.json")):
            damages = [Damage(folder / "manifest.json", "missing", again)]
            return FolderReport(folder, kind, "damaged", damages)
        if manifest is None:
            content, damages = _unfinished(folder, again)
        else:
            content, damages = _content(manifest), list(_finished(folder, manifest))
    except NvembedError as error:
        content, damages = "damaged", [Damage(folder / "manifest.json", str(error), again)]
    if (folder / NEXT).is_dir():
        damages += _unfinished(folder / NEXT, f"remove {folder / NEXT} and run the same command again")[1]
    return FolderReport(folder, kind, content, damages)


def _content(manifest: Manifest) -> str:
    counts = manifest.counts
    return f"{len(manifest.shards):,} shards, {counts.documents:,} documents, {counts.passages:,} passages"


def _finished(folder: Path, manifest: Manifest) -> Iterator[Damage]:
    again = f"nvembed embed {manifest.corpus} {folder} --model {manifest.model}"
    for shard in manifest.shards:
        path = folder / "shards" / shard.name
        if not path.is_file():
            yield Damage(path, "missing", again)
        elif (size := path.stat().st_size) != shard.bytes:
            yield Damage(path, f"{size:,} bytes; expected {shard.bytes:,}", again)
        elif file_digest(path) != shard.sha256:
            yield Damage(path, "damaged: its SHA-256 is not that of manifest.json", again)
    files = folder / "files.jsonl"
    if not files.is_file() or file_digest(files) != manifest.files_sha256:
        yield Damage(
            files, "missing, or its SHA-256 is not that of manifest.json", f"rm -r {folder}; {again}"
        )
    names = {shard.name for shard in manifest.shards}
    for path in sorted((folder / "shards").glob("*.parquet")):
        if path.name not in names:
            yield Damage(path, "not a shard of this corpus: manifest.json does not name it", f"rm {path}")


def _unfinished(folder: Path, again: str) -> tuple[str, list[Damage]]:
    """Describe the progress of an unfinished job, and return its damages."""
    damages: list[Damage] = []
    shards = total = 0
    for name in ("plan.json", "files.jsonl", "plan.jsonl"):
        path = folder / name
        try:
            if name == "plan.json":
                plan = read_plan_record(folder)
                total = plan.counts.shards
            elif name == "files.jsonl":
                list(read_entries(path, FileEntry))
            elif not path.is_file() or plan.sha256 not in (None, file_digest(path)):
                damages.append(Damage(path, "missing, or its SHA-256 is not that of plan.json", again))
        except NvembedError as error:
            damages.append(Damage(path, str(error), again))
            break
    try:
        job = read_job(folder)
    except NvembedError as error:
        return "unfinished", [*damages, Damage(folder / "job.json", str(error), again)]
    if job is not None and (folder / "files.jsonl").is_file():
        key = job_key(job, (folder / "files.jsonl").read_bytes())
        paths = sorted((folder / "shards").glob("*.parquet"))
        shards = len(paths)
        wrong = [path for path in paths if not path.stem.isdigit() or not is_shard(path, key, int(path.stem))]
        for path in wrong:
            fault = f"damaged, or the shard of another job or number, or {digest_path(path).name} is damaged"
            damages.append(Damage(path, fault, "run the same nvembed embed command again"))
        if wrong and len(wrong) == len(paths):
            damages.append(Damage(folder / "files.jsonl", "not the list of files of these shards", again))
    return f"unfinished: {shards:,} of {total:,} shards; run the same command again to resume", damages
