"""TEMPORARY stand-in until the branch ``embed`` has its reader."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nvembed.errors import DataError


@dataclass(frozen=True)
class Embedded:
    folder: Path
    manifest: dict

    model = property(lambda self: self.manifest["model"])
    fingerprint = property(lambda self: self.manifest["settings"]["fingerprint"])
    prompt = property(lambda self: self.manifest["settings"]["prompt"])
    max_length = property(lambda self: self.manifest["settings"]["max_length"])
    dim = property(lambda self: self.manifest["dim"])
    passages = property(lambda self: self.manifest["counts"]["passages"])

    def _paths(self):
        return [self.folder / "shards" / s["name"] for s in self.manifest["shards"]]

    def metadata(self) -> Iterator[str]:
        for path in self._paths():
            yield from pq.read_table(path, columns=["metadata"])["metadata"].to_pylist()

    def shards(self) -> Iterator[pa.RecordBatch]:
        for path in self._paths():
            yield pq.read_table(path).combine_chunks().to_batches()[0]


def open_embedded(folder: str | Path) -> Embedded:
    try:
        return Embedded(Path(folder), json.loads((Path(folder) / "manifest.json").read_text()))
    except OSError as e:
        raise DataError(f"{folder} no embedded corpus") from e
