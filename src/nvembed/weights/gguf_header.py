"""Checks the counts and lengths in the header of a GGUF file before the library reads it.

The library trusts them: a file of 49 bytes with a count of 2^60 values would hang it.
"""

import mmap
import os
import struct
from pathlib import Path

from nvembed.errors import WeightsError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # of values, by type
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4


class _Header:
    """A position in a mapped file; reading past its end is an error."""

    def __init__(self, content: mmap.mmap, order: str) -> None:
        self.content, self.order, self.at = content, order, 8

    def number(self, form: str) -> int:
        start = self.skip(struct.calcsize(form))
        return int(struct.unpack_from(self.order + form, self.content, start)[0])

    def skip(self, size: int) -> int:
        """Return the position and move it forward by ``size`` bytes."""
        start = self.at
        if size > len(self.content) - start:
            raise ValueError(f"{size:,} bytes at position {start:,} of {len(self.content):,}")
        self.at += size
        return start

    def count(self, form: str, least: int) -> int:
        """Read a count of entries that have at least ``least`` bytes each."""
        count = self.number(form)
        if count * least > len(self.content) - self.at:
            raise ValueError(f"{count:,} entries in {len(self.content) - self.at:,} bytes")
        return count

    def value(self, kind: int, nesting: int = 0) -> None:
        if kind in _SIZES:
            self.skip(_SIZES[kind])
        elif kind == _STRING:
            self.skip(self.number("Q"))
        elif kind == _ARRAY and nesting < _MAX_NESTING:
            inner = self.number("I")
            count = self.count("Q", _SIZES.get(inner, 8))
            if inner in _SIZES:
                self.skip(count * _SIZES[inner])
                return
            for _ in range(count):
                self.value(inner, nesting + 1)
        else:
            raise ValueError(f"a value of type {kind}")


def check_header(path: Path) -> None:
    """Check every count, length and offset in the header of a GGUF file against the size of the file.

    Raises:
        WeightsError: one of them does not fit, or it is not a GGUF file.
        OSError: the file cannot be read.
    """
    try:
        with path.open("rb") as handle:
            if os.fstat(handle.fileno()).st_size < 24 or handle.read(4) != b"GGUF":
                raise ValueError("it has no GGUF header")
            # the byte order is the one in which the version is below 65,536
            order = "<" if int.from_bytes(handle.read(4), "little") < 1 << 16 else ">"
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
                _walk(_Header(content, order))
    except ValueError as error:
        raise WeightsError(f"{path} is not a complete GGUF file ({error}): download it again") from error


def _walk(header: _Header) -> None:
    tensors = header.count("Q", 24)
    for _ in range(header.count("Q", 13)):
        header.value(_STRING)
        header.value(header.number("I"))
    for _ in range(tensors):
        header.value(_STRING)
        dimensions = header.count("I", 8)
        elements = 1
        for _ in range(dimensions):
            elements *= max(1, header.number("Q"))
        header.number("I")  # the type; the smallest one takes at least an eighth of a byte per element
        offset = header.number("Q")
        if offset + elements // 8 > len(header.content):
            raise ValueError(f"a tensor of {elements:,} numbers at offset {offset:,}")
