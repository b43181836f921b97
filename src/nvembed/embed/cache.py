"""Vectors of a corpus, kept beside it and used again only for what has not changed.  C passages, D numbers.

``{folder}/{settings}-{content}/`` holds ``vectors.npy`` (float32 (C, D)), ``texts.bin`` (a digest of 16
bytes per text) and ``meta.json`` (the settings, and checksums of the other two). ``settings`` is a digest of
whatever decides a vector besides its text: model fingerprint, prompt, max_length, dtype. ``content`` is a
digest of the texts in order. So a folder is exactly right or not found; and when a corpus has changed, the
vectors of the texts that are still there are taken from its former folder, which is then removed.
"""

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.embed.write import write_vectors
from nvembed.errors import DataError, OutputError
from nvembed.files import atomic_path
from nvembed.read.beir import Passage

BLOCK = 1024  # texts embedded, written and compared at a time
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Settings:
    """What decides a vector besides its text."""

    fingerprint: str
    prompt: str
    max_length: int
    dtype: str

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Cached:
    """Vectors of a corpus in its order.

    ``vectors``: float32 (C, D), mapped from disk. ``embedded``: how many of them had to be computed.
    """

    vectors: np.ndarray
    embedded: int


def cached_vectors(
    folder: str | Path,
    read: Callable[[], Iterable[Passage]],
    encode: Callable[[list[str]], np.ndarray],
    settings: Settings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Cached:
    """Return the vectors of a corpus: from the cache, or computed where the cache has none.

    The corpus is read twice when something must be embedded, once otherwise; it is never whole in memory.

    Args:
        folder: where the caches of this corpus live; made if need be.
        read: starts reading the corpus from its beginning, each time in the same order.
        encode: texts -> float32 (n, D); called with at most ``BLOCK`` texts.
        settings: what else decides the vectors.
        progress: called with (texts done, texts to embed).

    Raises:
        OutputError: the folder cannot be written; nothing is left behind.
        DataError: the corpus changed while it was read.
    """
    folder = Path(folder)
    digests = _digests(read())
    target = folder / f"{settings.key}-{hashlib.sha256(b''.join(digests)).hexdigest()[:16]}"
    if target.exists():
        found = _open(target)
        if found is not None:
            return Cached(found.vectors, 0)
        shutil.rmtree(target)
    former = [path for path in folder.glob(f"{settings.key}-*") if path != target]
    rows = _Rows(former)
    todo = sum(digest not in rows.place for digest in digests)
    try:
        with atomic_path(target) as work:
            work.mkdir()
            write_vectors(
                work / "vectors.npy", _blocks(read(), digests, rows, encode, _counter(todo, progress))
            )
            (work / "texts.bin").write_bytes(b"".join(digests))
            meta = {"settings": asdict(settings), "crc32": {name: _crc32(work / name) for name in _CHECKED}}
            (work / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    except OutputError:
        if not target.exists():  # else somebody else computed the same vectors meanwhile
            raise
    written = _open(target)
    if written is None:
        raise OutputError(f"{target} does not read back as it was written: check the disk")
    for path in former:
        shutil.rmtree(path, ignore_errors=True)
    return Cached(written.vectors, todo)


def cache_folder(corpus: str | Path, root: Path | None = None) -> Path:
    """Return where the caches of a corpus live: ``.nvembed`` in its folder or beside its file.

    Args:
        root: in place of ``.nvembed``. Several corpora may share it: each has the folder of its name in it.
    """
    corpus = Path(corpus)
    if root is None and corpus.is_dir():
        return corpus / ".nvembed"
    return (root or corpus.parent / ".nvembed") / corpus.resolve().name


_CHECKED = ("vectors.npy", "texts.bin")


@dataclass(frozen=True)
class _Stored:
    vectors: np.ndarray
    digests: list[bytes]


class _Rows:
    """The vectors of former caches, by the digest of their text."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._stored = [stored for stored in map(_open, folders) if stored is not None]
        self.place = {
            digest: (index, row)
            for index, stored in enumerate(self._stored)
            for row, digest in enumerate(stored.digests)
        }

    def __getitem__(self, digest: bytes) -> np.ndarray:
        index, row = self.place[digest]
        vector: np.ndarray = self._stored[index].vectors[row]
        return vector


def _blocks(
    passages: Iterable[Passage],
    digests: list[bytes],
    rows: _Rows,
    encode: Callable[[list[str]], np.ndarray],
    count: Callable[[int], None],
) -> Iterator[tuple[list[Passage], np.ndarray]]:
    passages = iter(passages)
    first = 0
    while block := list(islice(passages, BLOCK)):
        expected = digests[first : first + len(block)]
        if [_digest(passage.text) for passage in block] != expected:
            raise DataError("the corpus changed while it was read: run again")
        new = [i for i, digest in enumerate(expected) if digest not in rows.place]
        vectors: list[Any] = [rows[digest] if digest in rows.place else None for digest in expected]
        if new:
            for i, vector in zip(new, encode([block[i].text for i in new]), strict=True):
                vectors[i] = vector
        yield block, np.stack(vectors).astype(np.float32, copy=False)
        count(len(new))
        first += len(block)
    if first != len(digests):
        raise DataError("the corpus changed while it was read: run again")


def _counter(todo: int, progress: Callable[[int, int], None] | None) -> Callable[[int], None]:
    done = 0

    def count(new: int) -> None:
        nonlocal done
        done += new
        if progress is not None:
            progress(done, todo)

    return count


def _digests(passages: Iterable[Passage]) -> list[bytes]:
    return [_digest(passage.text) for passage in passages]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=DIGEST_BYTES).digest()


def _open(target: Path) -> _Stored | None:
    """Return what a cache folder holds, or None where anything about it is not as it was written."""
    try:
        meta = json.loads((target / "meta.json").read_text(encoding="utf-8"))
        if any(meta["crc32"][name] != _crc32(target / name) for name in _CHECKED):
            return None
        vectors = np.load(target / "vectors.npy", mmap_mode="r", allow_pickle=False)
        texts = (target / "texts.bin").read_bytes()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    digests = [texts[i : i + DIGEST_BYTES] for i in range(0, len(texts), DIGEST_BYTES)]
    whole = vectors.ndim == 2 and vectors.dtype == np.float32 and len(vectors) == len(digests)
    return _Stored(vectors, digests) if whole else None


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            value = zlib.crc32(piece, value)
    return value
