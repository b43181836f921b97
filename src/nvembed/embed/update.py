"""Vectors of an earlier run, reused for passages whose text and context have not changed."""

import hashlib
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from nvembed.embed.embedded import vectors_of
from nvembed.embed.passages import Context, model_input
from nvembed.embed.shard import ROW_GROUP, Embedded, Encode
from nvembed.read.beir import title_of
from nvembed.text.model_prompts import takes_titles

OPEN_SHARDS = 4  # held in memory at a time
FAULTS = (OSError, pa.ArrowException)


@dataclass(frozen=True)
class ReusedVectors:
    """Vectors of texts, some of them of an earlier run; see ``shard.Embedded``."""

    vectors: np.ndarray
    num_tokens: np.ndarray
    truncated: np.ndarray


class EarlierShards:
    """The passages of finished shards by their text; a temporary database on disk has their places."""

    def __init__(self, shards: Sequence[Path], prompt: str = "", context: Context = "none") -> None:
        self._shards = shards
        self._open: OrderedDict[int, pa.RecordBatch] = OrderedDict()
        self._places = sqlite3.connect("")
        self._places.execute("CREATE TABLE places (text BLOB PRIMARY KEY, shard INT, row INT) WITHOUT ROWID")
        for number, path in enumerate(shards):
            try:
                with pq.ParquetFile(path, page_checksum_verification=True) as file:
                    row = 0
                    for batch in file.iter_batches(ROW_GROUP, columns=["text", "metadata"]):
                        places = [
                            (_digest(text), number, row + i)
                            for i, texts in enumerate(_texts(batch, prompt, context))
                            for text in texts
                        ]
                        self._places.executemany("INSERT OR IGNORE INTO places VALUES (?, ?, ?)", places)
                        row += batch.num_rows
            except FAULTS:
                continue  # a damaged shard is not used

    def reusing(self, encode: Encode, count: Callable[[int], None] = lambda _: None) -> Encode:
        """Return ``encode`` that computes only new texts. ``count`` is called with the number of others."""

        def encode_new(texts: Sequence[str]) -> Iterator[Embedded]:
            rows = [self._row(text) for text in texts]
            new = [i for i, row in enumerate(rows) if row is None]
            if len(new) == len(texts):
                yield from encode(texts)
                return
            parts = list(encode([texts[i] for i in new])) if new else []
            old = [i for i, row in enumerate(rows) if row is not None]
            order = np.argsort(np.array(old + new), kind="stable")
            batches = [row for row in rows if row is not None]
            vectors = [vectors_of(batch).astype(np.float32) for batch in batches]
            tokens = [batch.column("tokens").to_numpy() for batch in batches]
            truncated = [batch.column("truncated").to_numpy(zero_copy_only=False) for batch in batches]
            count(len(old))
            yield ReusedVectors(
                np.concatenate([*vectors, *(part.vectors for part in parts)])[order],
                np.concatenate([*tokens, *(part.num_tokens for part in parts)])[order],
                np.concatenate([*truncated, *(part.truncated for part in parts)])[order],
            )

        return encode_new

    def _row(self, text: str) -> pa.RecordBatch | None:
        """Return the row of a text as a batch of one row, or None."""
        place = self._places.execute(
            "SELECT shard, row FROM places WHERE text = ?", (_digest(text),)
        ).fetchone()
        if place is None:
            return None
        number, row = place
        if number not in self._open:
            try:
                table = pq.read_table(
                    self._shards[number],
                    columns=["vector", "tokens", "truncated"],
                    page_checksum_verification=True,
                ).combine_chunks()
            except FAULTS:
                self._places.execute("DELETE FROM places WHERE shard = ?", (number,))
                return None
            self._open[number] = table.to_batches()[0]
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        return self._open[number].slice(row, 1)


def _texts(batch: pa.RecordBatch, prompt: str, context: Context) -> Iterator[list[str]]:
    """Yield what each row's text may have been passed to the model as (``Passages.inputs``).

    With a place for titles: the title in its place, and behind it the whole text, or the text without the
    title that it begins with. Both are looked up: which it was depends on the corpus, which is the same.
    """
    if not takes_titles(prompt) and context == "none":
        yield from ([text.as_py()] for text in batch.column("text"))
        return
    for text, record in zip(batch["text"].to_pylist(), batch["metadata"].to_pylist(), strict=True):
        metadata = json.loads(record)
        title = title_of(metadata)
        bodies = [text, text.removeprefix(f"{title} ")] if title and takes_titles(prompt) else [text]
        yield [model_input(text, body, title, metadata, prompt, context) for body in bodies]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
