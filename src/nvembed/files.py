"""Files on disk: written whole or not at all, and the data that ships with the package."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nvembed.errors import OutputError


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
