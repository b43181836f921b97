"""A corpus with its vectors, as learners read it: block by block, again and again.  C passages, D numbers."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.corpus.cache import BLOCK, Settings
from nvembed.corpus.read import Passage
from nvembed.errors import DataError, MissingExtraError
from nvembed.vectors.metric import unit

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Block:
    """Passages that follow one another, their vectors, and the JSON object kept beside each (or ``{}``)."""

    passages: Sequence[Passage]
    vectors: np.ndarray  # float32 (n, D), unit rows
    metadata: Sequence[str]


@dataclass(frozen=True)
class Source:
    """A corpus of ``rows`` passages with vectors of ``dim`` numbers.

    ``blocks()`` starts reading from the beginning, each time in the same order; ``settings`` are what made
    the vectors.
    """

    rows: int
    dim: int
    settings: Settings
    blocks: Callable[[], Iterator[Block]]


@dataclass(frozen=True)
class Sample:
    """Rows of a source drawn without replacement; ``positions`` rise."""

    positions: np.ndarray  # int64 (n,)
    vectors: np.ndarray  # float32 (n, D), unit rows
    passages: list[Passage]


def from_vectors(read: Callable[[], Iterable[Passage]], vectors_CD: np.ndarray, settings: Settings) -> Source:
    """Return the source of a corpus whose vectors are there already, in memory or mapped from disk."""

    def blocks() -> Iterator[Block]:
        passages = iter(read())
        first = 0
        while block := list(islice(passages, BLOCK)):
            yield Block(block, _unit(vectors_CD[first : first + len(block)], first), ["{}"] * len(block))
            first += len(block)

    return Source(len(vectors_CD), vectors_CD.shape[1], settings, blocks)


def is_embedded(folder: str | Path) -> bool:
    """Return whether a folder is what ``nvembed embed`` writes (finished or not)."""
    folder = Path(folder)
    return (folder / MANIFEST).is_file() or (folder / "shards").is_dir()


def from_embedded(folder: str | Path) -> Source:
    """Return the source of a folder that ``nvembed embed`` wrote (docs/corpus-format.md).

    Raises:
        DataError: the folder is unfinished, of another format, or its shards are not as the manifest says.
        MissingExtraError: pyarrow is not installed.
    """
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{folder}: no {MANIFEST}, so embedding it is not finished: run its nvembed embed again"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / MANIFEST}: cannot be read ({error})") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1:
        got = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise DataError(
            f"{folder / MANIFEST}: expected format 1, got {got!r}: update nvembed, or embed again"
        )
    given, dim = manifest["settings"], int(manifest["dim"])
    settings = Settings(given["fingerprint"], given["prompt"], given["max_length"], given["dtype"])
    shards = [(folder / "shards" / shard["name"], int(shard["rows"])) for shard in manifest["shards"]]

    def blocks() -> Iterator[Block]:
        first = 0
        for path, rows in shards:
            found = 0
            for block in _shard(path, dim, first):
                found += len(block.passages)
                first += len(block.passages)
                yield block
            if found != rows:
                raise DataError(f"{path}: {found:,} rows; expected {rows:,}, as {MANIFEST} says: embed again")

    return Source(sum(rows for _, rows in shards), dim, settings, blocks)


def sample(source: Source, limit: int, *, seed: int) -> Sample:
    """Draw ``limit`` rows at random, or take all where there are no more; one pass over the corpus.

    Raises:
        DataError: the corpus has another number of passages than vectors.
    """
    count = min(limit, source.rows)
    positions = np.sort(np.random.default_rng(seed).choice(source.rows, count, replace=False))
    vectors = np.empty((count, source.dim), dtype=np.float32)
    passages: list[Passage] = []
    first = done = 0
    for block in source.blocks():
        end = first + len(block.passages)
        here = positions[done : np.searchsorted(positions, end)] - first
        vectors[done : done + len(here)] = block.vectors[here]
        passages += [block.passages[row] for row in here]
        done, first = done + len(here), end
    if first != source.rows:
        raise DataError(
            f"the corpus has {first:,} passages now; expected {source.rows:,}: it changed, run again"
        )
    return Sample(positions.astype(np.int64), vectors, passages)


def _shard(path: Path, dim: int, first: int) -> Iterator[Block]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            "an embedded corpus needs the package pyarrow: pip install 'nvembed[corpus]'"
        ) from error
    columns = ["id", "text", "metadata", "vector"]
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BLOCK, columns=columns):
                ids, texts, metadata = (batch.column(name).to_pylist() for name in columns[:3])
                flat: Any = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
                vectors = _unit(flat.reshape(len(ids), dim), first)
                yield Block([Passage(*pair) for pair in zip(ids, texts, strict=True)], vectors, metadata)
                first += len(ids)
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a whole shard ({error}): embed again") from error


def _unit(vectors_ND: np.ndarray, first: int) -> np.ndarray:
    """Return float32 unit rows; vectors stored in half precision are a little off length 1."""
    vectors = np.asarray(vectors_ND, dtype=np.float32)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise DataError(
            f"the vector of row {first + bad[0]:,} is not finite ({bad.size} of {len(vectors)} in a block): "
            "embed again with --dtype float32 or bfloat16, and check the model with nvembed check"
        )
    return unit(vectors)
