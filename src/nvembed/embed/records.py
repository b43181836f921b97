"""The JSON files of an embedded corpus as schemas: docs/reference/embedded-corpus.md describes them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from nvembed.embed.passages import Context, CutMode
from nvembed.errors import DataError
from nvembed.files import Schema, parse_json, read_json
from nvembed.read.lines import TextLayout
from nvembed.read.streams import open_binary, text_lines

FORMAT: Literal[2] = 2
CURE = "Remove the folder and embed the corpus again"

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Storage = Literal["float16", "float32"]
OnError = Literal["stop", "skip"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ShardName = Annotated[str, Field(pattern=r"^\d{5,12}\.parquet$")]


class CorpusReading(Schema):
    """How a corpus is read and divided into shards; format 1 had no delimiter and no encoding."""

    field: str | None = None
    on_error: OnError = "stop"
    shard_passages: Size = 512
    delimiter: str | None = None
    encoding: str | None = None

    @property
    def layout(self) -> TextLayout:
        return TextLayout(self.delimiter, self.encoding)


class RunSettings(CorpusReading):
    """What decides the bytes of a shard, besides the corpus and the kind of device."""

    fingerprint: str
    prompt: str
    dtype: str
    max_length: Size
    batch_tokens: Size
    storage: Storage
    chunk_tokens: Size | None
    overlap_tokens: Count | None
    # not written where they have their defaults, so that the bytes of other corpora stay the same
    late_chunking: bool = Field(default=False, exclude_if=lambda value: not value)
    cut: CutMode = Field(default="sentences", exclude_if=lambda value: value == "sentences")
    context: Context = Field(default="none", exclude_if=lambda value: value == "none")


class JobRecord(RunSettings):
    """``job.json``."""

    format: Literal[1, 2]
    dim: Size


class SkippedEntry(Schema):
    """A file or record that was skipped."""

    path: str
    reason: str


class PlanCounts(Schema):
    """What a corpus holds."""

    files: Count
    documents: Count
    characters: Count
    shards: Count


class PlanRecord(Schema):
    """``plan.json``."""

    reading: CorpusReading
    counts: PlanCounts
    ignored: dict[str, Count]
    skipped: list[SkippedEntry]
    notes: list[str] = Field(default_factory=list)
    sha256: Digest | None = None  # of plan.jsonl


class ShardEntry(Schema):
    """A shard in the manifest."""

    name: ShardName
    documents: Count
    rows: Count
    tokens: Count
    truncated: Count = 0
    empty: Count = 0
    bytes: Count
    sha256: Digest


class ManifestCounts(Schema):
    """What an embedded corpus holds."""

    files: Count
    documents: Count
    passages: Count
    tokens: Count
    truncated: Count
    empty: Count
    skipped: Count


class Manifest(Schema):
    """``manifest.json``."""

    format: Literal[1, 2]
    job: str
    corpus: str
    model: str
    settings: RunSettings
    dim: Size
    counts: ManifestCounts
    files_sha256: Digest
    ignored: dict[str, Count]
    skipped: list[SkippedEntry]
    notes: list[str] = Field(default_factory=list)
    shards: Annotated[list[ShardEntry], Field(min_length=1)]


class FileEntry(Schema):
    """A line of ``files.jsonl``."""

    path: str
    bytes: Count
    sha256: Digest


class PlanLine(Schema):
    """A line of ``plan.jsonl``: a shard."""

    characters: Count
    spans: list[tuple[Count, Count, Count, Count, Count]]


class ShardFooter(Schema):
    """The key ``nvembed`` in the metadata of a shard."""

    format: Literal[1, 2]
    job: str
    shard: Count
    documents: Count
    tokens: Count
    truncated: Count
    empty: Count


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a finished folder, or None of an unfinished one.

    Raises:
        DataError: it is damaged, or of another version.
    """
    path = folder / "manifest.json"
    return read_json(path, Manifest, cure=CURE) if path.exists() else None


def plain(record: Schema) -> dict[str, Any]:
    """Return a record as plain values, as its JSON has them."""
    return record.model_dump(mode="json")


def read_entries(path: Path, schema: type[Any]) -> Iterator[Any]:
    """Yield the checked lines of a JSON-lines file that ``nvembed embed`` wrote."""
    if not path.is_file():
        raise DataError(f"{path}: expected a regular file, found none. {CURE}")
    with open_binary(path) as stream:
        for number, line in text_lines(stream, str(path)):
            yield parse_json(line, f"{path}:{number}", schema, cure=CURE)
