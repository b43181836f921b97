"""Files as streams of bytes and lines: decompressed, in UTF-8, within limits; and the places of records."""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from nvembed.errors import DataError, InputError, NvembedError

COMPRESSIONS = ("gz", "bz2", "xz", "zst")
LINE_BYTES = 64 << 20  # limit of a line
# A file that expands to more than FREE_BYTES and by more than this factor is refused as a bomb.
MAX_EXPANSION = 1000
FREE_BYTES = 1 << 30


class Place(NamedTuple):
    """The place where a record begins."""

    offset: int = 0  # bytes of the file before it, decompressed and in UTF-8; of a table always 0
    line: int = 1  # of a table always 1
    row: int = 0  # records before it


START = Place()


class FileRecord(NamedTuple):
    """The fields of a record, or its error."""

    place: Place
    where: str  # its name in messages: ``corpus.jsonl:17``
    fields: Mapping[str, Any] | DataError


class Line(NamedTuple):
    """A line of a text file, or its error."""

    number: int  # from 1
    offset: int  # bytes of the stream before it
    text: str | DataError  # with its line end


@contextmanager
def open_binary(path: Path, *, encoding: str | None = None) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed (by its name's ending) and in UTF-8.

    Args:
        encoding: of its text; None: UTF-8.

    Raises:
        DataError: the file cannot be read, is incomplete, or expands out of proportion.
        InputError: the encoding is unknown.
    """
    _check_encoding(encoding)
    try:
        with _decompressed(path) as stream:
            yield in_utf8(stream, str(path), encoding)
    except NvembedError:
        raise
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole compressed file ({error}): fetch it again") from error
    except OSError as error:
        if error.errno is None and path.suffix.lower().lstrip(".") in COMPRESSIONS:
            raise DataError(f"{path}: not a whole compressed file ({error}): fetch it again") from error
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def in_utf8(stream: BinaryIO, name: str, encoding: str | None) -> BinaryIO:
    """Return the UTF-8 stream of a stream in ``encoding``; None: UTF-8.

    Raises:
        InputError: the encoding is unknown.
    """
    if encoding is None or _check_encoding(encoding) == "utf-8":
        return stream
    return cast(BinaryIO, io.BufferedReader(_Utf8(stream, name, encoding), 1 << 20))


def _check_encoding(encoding: str | None) -> str:
    """Return Python's name of an encoding of text."""
    try:
        if encoding is None:
            return "utf-8"
        "".encode(encoding)  # refuses codecs that are not encodings of text, such as hex
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise InputError(f"--encoding {encoding}: unknown; expected one such as cp1252") from error


@contextmanager
def _decompressed(path: Path) -> Iterator[BinaryIO]:
    suffix = path.suffix.lower().lstrip(".")
    with path.open("rb") as raw:
        if suffix not in COMPRESSIONS:
            yield raw
            return
        limit = max(FREE_BYTES, MAX_EXPANSION * path.stat().st_size)
        if suffix == "gz":
            opened: Any = gzip.GzipFile(fileobj=raw)
        elif suffix == "bz2":
            opened = bz2.BZ2File(raw)
        elif suffix == "xz":
            opened = lzma.LZMAFile(raw)  # noqa: SIM115
        else:
            opened = _Zstd(raw)
        yield cast(BinaryIO, io.BufferedReader(_Bounded(opened, path, limit), 1 << 20))


class _Rewound(io.RawIOBase):
    """A stream that is read forward; ``seek`` backward reads it from the beginning again."""

    def __init__(self) -> None:
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        if offset < self._position:
            self._rewind()
            self._position = 0
        while self._position < offset and (piece := self._more(min(1 << 20, offset - self._position))):
            self._position += len(piece)
        return self._position

    def readinto(self, buffer: Any) -> int:
        piece = self._more(len(buffer))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _rewind(self) -> None:
        raise NotImplementedError

    def _more(self, size: int) -> bytes:
        raise NotImplementedError


class _Bounded(_Rewound):
    """A decompressed stream with a limit of its size."""

    def __init__(self, stream: Any, path: Path, limit: int) -> None:
        super().__init__()
        self._stream, self._path, self._limit = stream, path, limit

    def _rewind(self) -> None:
        self._stream.seek(0)

    def _more(self, size: int) -> bytes:
        piece: bytes = self._stream.read(size)
        if self._position + len(piece) > self._limit:
            raise too_large(self._path, self._limit)
        return piece


class _Zstd(_Rewound):
    """Zstandard through Arrow, which reads forward only."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw = raw
        self._rewind()

    def _rewind(self) -> None:
        import pyarrow as pa

        self._raw.seek(0)
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), "zstd")

    def _more(self, size: int) -> bytes:
        return bytes(self._stream.read(size))


class _Utf8(_Rewound):
    """A stream in another encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, name: str, encoding: str) -> None:
        super().__init__()
        self._stream, self._name, self._encoding = stream, name, encoding
        self._begin()

    def seekable(self) -> bool:
        return self._stream.seekable()

    def _rewind(self) -> None:
        self._stream.seek(0)
        self._begin()

    def _begin(self) -> None:
        self._decoder = codecs.getincrementaldecoder(self._encoding)()
        self._held, self._ended = b"", False

    def _more(self, size: int) -> bytes:
        while not self._held and not self._ended:
            raw = self._stream.read(1 << 16)
            self._ended = not raw
            try:
                self._held = self._decoder.decode(raw, final=self._ended).encode("utf-8", "surrogatepass")
            except UnicodeError as error:
                raise DataError(f"{self._name}: not text in {self._encoding} ({error})") from error
        piece, self._held = self._held[:size], self._held[size:]
        return piece


def too_large(path: Path, limit: int) -> DataError:
    """Return the error about a file that expands out of proportion to its size."""
    return DataError(
        f"{path}: refused, because {path.stat().st_size:,} bytes expand to more than {limit:,}, which real "
        "data does not"
    )


def text_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its line end) of UTF-8 text, without the byte order mark.

    Raises:
        DataError: a line is not UTF-8, has a NUL, or has more than ``LINE_BYTES``.
    """
    for line in located_lines(stream, name):
        if isinstance(line.text, DataError):
            raise line.text
        yield line.number, line.text


def located_lines(stream: BinaryIO, name: str, *, offset: int = 0, number: int = 1) -> Iterator[Line]:
    """Yield lines as ``text_lines`` does, but a malformed line as its error, followed by the other lines.

    Args:
        offset, number: of the next line, if the stream is not at its beginning.

    Raises:
        DataError: the whole file is in UTF-16.
    """
    while raw := stream.readline(LINE_BYTES + 1):
        size = len(raw)
        if size > LINE_BYTES:  # skip the rest of the line in pieces
            piece = raw
            while not piece.endswith(b"\n") and (piece := stream.readline(LINE_BYTES)):
                size += len(piece)
            limit = f"a line of {size:,} bytes; expected one record in a line, of at most {LINE_BYTES:,}"
            yield Line(number, offset, DataError(f"{name}:{number}: {limit}"))
        else:
            yield Line(number, offset, _decoded(raw, name, number))
        offset += size
        number += 1


def _decoded(raw: bytes, name: str, number: int) -> str | DataError:
    if number == 1:
        if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(
                f"{name}: UTF-16 text; expected UTF-8. Pass --encoding utf-16, or convert it: "
                "iconv -f utf-16 -t utf-8"
            )
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return DataError(
            f"{name}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1}). "
            "Pass --encoding (cp1252 for most Western files of Windows), or convert it: "
            "iconv -f cp1252 -t utf-8"
        )
    if "\0" in line:
        return DataError(f"{name}:{number}: a NUL character; expected text")
    return line


def no_field(where: str, field: str, names: Iterable[str]) -> DataError:
    """Return the error about a record or table without the field of the text."""
    columns = sorted(repr(name) for name in names)
    listed = ", ".join(columns[:20]) + (", ..." if len(columns) > 20 else "")
    return DataError(
        f"{where}: no field {field!r}. Its fields: {listed or 'none'}. "
        "Name the one with the text: --field NAME"
    )
