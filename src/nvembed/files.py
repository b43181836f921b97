"""Files on disk: written whole or not at all, read line by line, and the data that ships with the package."""

import codecs
import errno
import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from nvembed.errors import DataError, NvembedError, OutputError


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success it becomes ``target``, else it is removed.

    Works for a file and for a folder (create it at the yielded path). A file replaces an existing
    file; a folder never replaces an existing one. Ctrl-C, an exception or a full disk leave ``target``
    as it was.

    Raises:
        OutputError: the parent folder cannot be made or written, the disk is full, or ``target`` is a
            folder that exists already.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        temporary = work / target.name
        try:
            yield temporary
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise _not_written(target, error) from error
        if temporary.is_dir() and target.exists():
            raise OutputError(f"{target} exists already: remove it, or write to another path")
        try:
            _sync(temporary)
            temporary.replace(target)
        except OSError as error:
            raise _not_written(target, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def _not_written(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"could not write {target}: {reason}; nothing was left behind")


def _sync(path: Path) -> None:
    """Flush a file, or every file of a folder, so that a rename never outlives its bytes."""
    for item in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with item.open("rb") as handle:
            os.fsync(handle.fileno())


def data_path(name: str) -> Path:
    """Return the folder ``name`` (``recipes`` or ``demo``): inside an installed package, or of a checkout."""
    package = Path(__file__).parent
    for candidate in (package / "_data" / name, package.parent.parent / name):
        if candidate.is_dir():
            return candidate
    raise OutputError(f"the package's own folder {name!r} is missing: reinstall nvembed")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of a JSON-lines file, gzipped or not; blank lines are passed over.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    with open_binary(path) as stream:
        for number, line in text_lines(stream, str(path)):
            if line.strip():
                yield number, json_object(f"{path}:{number}", line)


def json_object(where: str, line: str | bytes) -> dict[str, Any]:
    """Parse one JSON object; ``where`` is how an error names the line.

    Raises:
        DataError: the line is no JSON object.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise DataError(f"{where}: expected a JSON object, got {line.strip()[:60]!r} ({reason})") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


@contextmanager
def open_binary(path: Path) -> Iterator[BinaryIO]:
    """Open a file, unzipped if its name ends in .gz; what goes wrong while reading it is a DataError."""
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file ({error}): fetch it again") from error
    except NvembedError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def text_lines(stream: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line with its line end) of UTF-8 text, a byte order mark taken off.

    Raises:
        DataError: bytes that are not UTF-8, or a NUL.
    """
    for number, raw in enumerate(stream, start=1):
        if number == 1:
            if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(
                    f"{name}: UTF-16 text; expected UTF-8: convert it with  iconv -f utf-16 -t utf-8"
                )
            raw = raw.removeprefix(codecs.BOM_UTF8)
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{name}:{number}: not UTF-8 (byte 0x{raw[error.start]:02x} at position {error.start + 1}): "
                "convert the file first, for example with  iconv -f latin1 -t utf-8"
            ) from error
        if "\0" in line:
            raise DataError(f"{name}:{number}: a NUL character, which no text has: is this a text file?")
        yield number, line
