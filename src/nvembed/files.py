"""Files on disk: written whole or not at all, and the data that ships with the package."""

import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from nvembed.errors import DataError, NvembedError, OutputError

# The largest JSON file of ours that is read. Manifests of a million shards are smaller.
JSON_BYTES = 1 << 30

T = TypeVar("T")


class Schema(BaseModel):
    """A frozen record read from a file: no unknown key, no silent conversion, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def read_json(path: Path, schema: type[T], *, cure: str, error: type[NvembedError] = DataError) -> T:
    """Read one of the package's own JSON files and check it against a schema.

    Args:
        path: the file; a regular file of at most ``JSON_BYTES``.
        schema: a ``Schema``, a frozen dataclass, or any type that pydantic can validate.
        cure: what to do about a damaged file, such as ``"run nvembed index OUT again"``; ends the message.
        error: the exception to raise.

    Raises:
        NvembedError: ``error``, where the file is missing, too large, not JSON, or does not fit the schema.
            The message lists every fault as ``path: key: expected ..., got ...``.
    """
    try:
        if not path.is_file():
            raise error(f"{path}: expected a regular file, found none: {cure}")
        if (size := path.stat().st_size) > JSON_BYTES:
            raise error(f"{path}: {size:,} bytes; expected at most {JSON_BYTES:,}: {cure}")
        raw = path.read_bytes()
    except OSError as reason:
        if isinstance(reason, NvembedError):
            raise
        raise error(f"{path}: cannot be read ({reason.strerror or reason}): {cure}") from reason
    return parse_json(raw, str(path), schema, cure=cure, error=error)


def parse_json(
    raw: str | bytes, where: str, schema: type[T], *, cure: str, error: type[NvembedError] = DataError
) -> T:
    """Check JSON text against a schema; ``where`` names it in messages. Otherwise as ``read_json``."""
    try:
        return TypeAdapter(schema).validate_json(raw, strict=True)
    except ValidationError as faults:
        lines = [f"{where}: {fault_text(fault)}" for fault in faults.errors(include_url=False)[:10]]
        raise error("\n".join(lines) + f"\n{cure}") from faults


def fault_text(fault: ErrorDetails) -> str:
    """Return one fault that pydantic found as ``key: expected ..., got ...``."""
    key = ".".join(map(str, fault["loc"])) or "the file"
    if fault["type"] == "missing":
        return f"{key}: expected a value, got none"
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key}: unknown key"
    if fault["type"] == "json_invalid":
        return f"expected JSON ({fault['msg']})"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key}: expected {message}, got {short_json(fault['input'])}"


def write_json(path: Path, content: Any) -> None:
    """Write a record (a pydantic model, a dataclass or plain values) as indented JSON, whole or not at all.

    Raises:
        OutputError: as ``atomic_path``.
    """
    plain = TypeAdapter(Any).dump_python(content, mode="json", warnings=False)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def short_json(value: Any) -> str:
    """Return a value as JSON, shortened to fit a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 100 else text[:97] + "..."


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


def as_utf8(name: str) -> str:
    """Return a file's name as text that can be written: bytes of it that are not UTF-8 as ``\\udcXX``."""
    return name.encode(errors="backslashreplace").decode()


def claim(marker: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``marker``, or check that it is what stands there: which run a path belongs to.

    Raises:
        OutputError: ``marker`` is of a run with another state; the message says what differs.
    """
    if not marker.exists():
        write_json(marker, state)
        return
    cure = "remove it if nothing that decides the result has changed, and run the command again"
    stored = read_json(marker, dict[str, Any], cure=cure, error=OutputError)
    same_run(marker, stored, json.loads(json.dumps(state)))


def same_run(marker: Path, found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise OutputError that says what differs, unless both are equal."""
    differs = list(_differences(found, expected))
    if differs:
        name, there, here = differs[0]
        names = ", ".join(name for name, _, _ in differs[:5]) + (" and more" if len(differs) > 5 else "")
        raise OutputError(
            f"{marker} is of a run with another {names} ({name} there: {short_json(there)}, here: "
            f"{short_json(here)}): remove what that run left, or write to another folder"
        )


def take_lock(handle: int) -> None:
    """Take an open file's lock, which goes with the process, however it ends.

    Raises:
        BlockingIOError: another process has it.
        OSError: the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # no such lock on Windows
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with the process however it ends; the folder is made if need be.

    Raises:
        OutputError: another process holds it, or the folder cannot be written.
    """
    lock = out / ".lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = lock.open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror or error}") from error
    with handle:
        try:
            take_lock(handle.fileno())
        except BlockingIOError as error:
            handle.seek(0)
            raise OutputError(
                f"{out} is being written by another job ({handle.read().strip() or 'unknown'}): "
                "wait for it, or write to another folder"
            ) from error
        except OSError as error:
            raise OutputError(f"{lock} cannot be locked ({error.strerror}): write to a local disk") from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)


def _differences(found: Any, expected: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, value found, value expected) of what is not equal in two nested objects."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in {**found, **expected}:
            yield from _differences(found.get(key), expected.get(key), f"{name}.{key}" if name else key)
    elif found != expected:
        yield name, found, expected
