"""Lines of a JSONL file by their number, and rows to write."""

import hashlib
import json
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from nvembed.errors import DataError
from nvembed.files import atomic_path
from nvembed.read.lines import Row, json_object
from nvembed.vectors.store import text_key as exact_key

T_co = TypeVar("T_co", covariant=True)


class Numbered(Protocol[T_co]):
    """Items by number: a list, or a file of any size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> T_co: ...

    def __iter__(self) -> Iterator[T_co]: ...


def text_key(text: str) -> bytes:
    """Return 16 bytes that are equal for texts that differ only in case and white space."""
    return exact_key(" ".join(text.lower().split()))


class JsonlFile(Generic[T_co]):
    """The lines of a plain JSONL file by number, with only 8 bytes per line in memory.

    Args:
        parse: makes an item of a row; its second argument names file and line, for messages.

    Attributes:
        digest: of the file's bytes.
    """

    def __init__(self, path: str | os.PathLike[str], parse: Callable[[Row, str], T_co]) -> None:
        self.path, self._parse = Path(path), parse
        digest = hashlib.blake2b(digest_size=8)

        def length_of(line: bytes) -> int:
            digest.update(line)
            return len(line)

        try:
            with self.path.open("rb") as handle:
                lengths = np.fromiter(map(length_of, handle), dtype=np.int64)
        except OSError as error:
            raise DataError(f"{self.path}: expected a JSONL file: {error.strerror or error}") from error
        self.digest = digest.hexdigest()
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._file = os.open(self.path, os.O_RDONLY)
        self.close = weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> T_co:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.path} has {len(self):,} lines, no line {index + 1:,}")
        # pread keeps no position, so that worker processes may share the handle.
        size = int(self._starts[index + 1] - self._starts[index])
        line = os.pread(self._file, size, int(self._starts[index]))
        where = f"{self.path}:{index + 1}"
        return self._parse(json_object(where, line), where)

    def __iter__(self) -> Iterator[T_co]:
        return (self[index] for index in range(len(self)))


@contextmanager
def sealed_path(path: Path) -> Iterator[Path]:
    """Yield a path as ``atomic_path`` does, and write the file's digest before the file gets its name."""
    with atomic_path(path) as temporary:
        yield temporary
        with atomic_path(_seal(path)) as seal:
            seal.write_text(_digest(temporary) + "\n", encoding="utf-8")


def is_intact(path: Path) -> bool:
    """Return whether a file is there, as ``sealed_path`` wrote it."""
    return path.exists() and _seal(path).exists() and not is_changed(path)


def is_changed(path: Path) -> bool:
    """Return whether a file was damaged or edited after ``sealed_path`` wrote it."""
    return _seal(path).exists() and _seal(path).read_bytes().strip() != _digest(path).encode()


def _seal(path: Path) -> Path:
    return path.with_suffix(".digest")


def _digest(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "blake2b").hexdigest()


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write JSONL to ``path`` and return how many rows; the caller wraps it in ``atomic_path``."""
    count = 0
    with path.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count
