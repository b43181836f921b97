"""Reads and writes the package's own files: whole or not at all, locked, and with digests."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from nvembed.errors import DataError, NvembedError, OutputError

# The largest JSON file that is read. Manifests of a million shards are smaller.
JSON_BYTES = 1 << 30

T = TypeVar("T")


class Schema(BaseModel):
    """A frozen record from a file: unknown keys, conversions and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def read_json(path: Path, schema: type[T], *, cure: str, error: type[NvembedError] = DataError) -> T:
    """Read one of the package's own JSON files and check it against a schema.

    Args:
        path: a regular file of at most ``JSON_BYTES``.
        schema: a ``Schema``, a frozen dataclass, or any type that pydantic can validate.
        cure: the action for a damaged file, such as ``"run nvembed index OUT again"``; it ends the message.
        error: the exception to raise.

    Raises:
        NvembedError: ``error``; the file is missing, too large, not JSON, or does not fit the schema. The
            message lists the faults as ``path: key: expected ..., got ...``.
    """
    try:
        size = path.stat().st_size if path.is_file() else None
        raw = path.read_bytes() if size is not None and size <= JSON_BYTES else b""
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason}): {cure}") from reason
    if size is None:
        raise error(f"{path}: expected a regular file, got none: {cure}")
    if size > JSON_BYTES:
        raise error(f"{path}: {size:,} bytes; expected at most {JSON_BYTES:,}: {cure}")
    return parse_json(raw, str(path), schema, cure=cure, error=error)


def parse_json(
    raw: str | bytes, where: str, schema: type[T], *, cure: str, error: type[NvembedError] = DataError
) -> T:
    """Check JSON text against a schema, as ``read_json``; ``where`` is its name in messages.

    Raises:
        NvembedError: also if the text has a checksum (`json_text`) that differs.
    """
    raw = _checked(raw.encode() if isinstance(raw, str) else raw, where, cure, error)
    try:
        return TypeAdapter(schema).validate_json(raw, strict=True)
    except ValidationError as faults:
        lines = [f"{where}: {fault_text(fault)}" for fault in faults.errors(include_url=False)[:10]]
        raise error("\n".join(lines) + f"\n{cure}") from faults


def fault_text(fault: ErrorDetails) -> str:
    """Return a fault from pydantic as ``key: expected ..., got ...``."""
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
    """Write a record (a pydantic model, a dataclass or plain values) as ``json_text``, whole or not at all.

    Raises:
        OutputError: as ``atomic_path``.
    """
    plain = TypeAdapter(Any).dump_python(content, mode="json", warnings=False)
    with atomic_path(path) as temporary:
        temporary.write_text(json_text(plain), encoding="utf-8")


def json_text(content: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """Return an object as indented JSON whose last key is a checksum of the lines before it.

    ``read_json`` verifies and removes the checksum. Without it, a changed digit would be read as a value.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=sort_keys)
    if not content:
        return text + "\n"
    return text.removesuffix("\n}") + f',\n "checksum": "{_checksum(text.encode())}"\n}}\n'


_CHECKSUM = re.compile(rb',\n "checksum": "([0-9a-f]{32})"\n}\n?\Z')


def _checksum(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:32]


def _without_checksum(raw: bytes) -> bytes:
    """Return JSON without the key ``checksum``, which is outdated if another program wrote the file."""
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return raw
    if isinstance(content, dict):
        content.pop("checksum", None)
    return json.dumps(content).encode()


def _checked(raw: bytes, where: str, cure: str, error: type[NvembedError]) -> bytes:
    """Verify the checksum at the end of JSON and return the JSON without it; a checksum is optional."""
    match = _CHECKSUM.search(raw[-100:])
    if match is None:
        return _without_checksum(raw) if b'"checksum"' in raw else raw
    text = raw[: len(raw[:-100]) + match.start()] + b"\n}"
    if _checksum(text) != match[1].decode():
        raise error(f"{where}: damaged or changed: its checksum differs: {cure}")
    return text


def short_json(value: Any) -> str:
    """Return a value as JSON, shortened to fit a message."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):
        return f"a {type(value).__name__} nested too deeply to show"
    return text if len(text) <= 100 else text[:97] + "..."


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success it becomes ``target``, otherwise it is removed.

    The path may become a file or a folder. After Ctrl-C, an exception or a full disk, ``target`` is
    unchanged. The temporary folder of a killed process is removed at the next write of the same path.

    A file replaces an existing file and keeps its mode; new files have the mode that the umask allows. A
    symbolic link stays, and its target is replaced. Data is written into pipes and devices. A folder never
    replaces an existing path.

    Raises:
        OutputError: the parent folder cannot be created or written, the disk is full, or ``target`` is an
            existing path and the new one a folder.
    """
    name = Path(target)
    special = name.exists() and not name.is_file() and not name.is_dir()
    target = name if special else Path(os.path.realpath(name))
    try:
        if target.is_symlink() and not special:
            raise OutputError(f"{name} is a loop of links: remove it, or write to another path")
        parent = Path(tempfile.gettempdir()) if special else target.parent
        parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(parent, target.name)
        work, lock = _make_work(parent, target.name)
    except OSError as error:
        raise _not_written(name, error) from error
    try:
        temporary = work / target.name
        try:
            yield temporary
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise _not_written(name, error) from error
        if temporary.is_dir() and target.exists():
            raise OutputError(f"{name} exists already: remove it, or write to another path")
        try:
            if special:
                with temporary.open("rb") as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
            else:
                _set_modes(temporary, target, work)
                _sync(temporary)
                temporary.replace(target)
        except OSError as error:
            raise _not_written(name, error) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


_MODE = ".mode"  # in a temporary folder: shows what the umask allows
_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}", re.DOTALL)  # the name of a temporary folder


def _not_written(target: Path, error: OSError) -> OutputError:
    if isinstance(error, OutputError):
        return error
    reason = error.strerror or str(error)
    return OutputError(f"could not write {target}: {reason}; nothing was left behind")


def _work_prefix(name: str) -> str:
    """Return the prefix of the temporary folders for a file name; the whole name fits in 255 bytes."""
    return f".{name.encode()[:200].decode(errors='ignore')}."


def _make_work(parent: Path, name: str) -> tuple[Path, int | None]:
    """Make a temporary folder for ``name``; return it and its lock, None on a system without locks."""
    while True:
        work = Path(tempfile.mkdtemp(prefix=_work_prefix(name), dir=parent))
        try:
            lock = _lock_folder(work)
        except (BlockingIOError, FileNotFoundError):  # another process removed it before it was locked
            continue
        if lock is None or work.exists():
            return work, lock
        os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """Lock a folder and return the open handle; None on a system without locks.

    Raises:
        BlockingIOError: another process holds the lock.
        FileNotFoundError: the folder does not exist.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_DIRECTORY", 0))
    except FileNotFoundError:
        raise
    except OSError:  # Windows
        return None
    try:
        if take_lock(handle):
            return handle
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:
        pass
    os.close(handle)
    return None


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove the temporary folders that killed processes left in ``folder``.

    Args:
        name: of the file that was written; None is any file.
    """
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        works = [(Path(each.path), match) for each in entries if (match := _LEFTOVER.fullmatch(each.name))]
    for work, match in works:
        if name is not None and not work.name.startswith(_work_prefix(name)):
            continue
        try:
            lock = _lock_folder(work)
        except OSError:  # its process is alive, or has removed it
            continue
        if lock is None:
            continue
        if all(each.name.startswith(match[1]) or each.name == _MODE for each in work.iterdir()):
            shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


def _set_modes(temporary: Path, target: Path, work: Path) -> None:
    """Set the mode of the file that is replaced, or for new files the mode that the umask allows.

    Some libraries create files that only their owner may read.
    """
    if temporary.is_file() and target.exists():
        status = target.stat()
        temporary.chmod(status.st_mode & 0o7777)
        if hasattr(os, "chown") and temporary.stat().st_uid != status.st_uid:
            with suppress(OSError):
                os.chown(temporary, status.st_uid, status.st_gid)
        return
    probe = work / _MODE
    probe.touch(0o666)
    mode = probe.stat().st_mode & 0o777
    for path in _files_of(temporary):
        path.chmod(mode)


def _files_of(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _sync(path: Path) -> None:
    """Flush a file, or every file of a folder, to disk before it is renamed."""
    for item in _files_of(path):
        with item.open("rb" if not os.access(item, os.W_OK) else "r+b") as handle:  # for Windows
            os.fsync(handle.fileno())


def file_digest(path: Path, *, cache: Path | None = None) -> str:
    """Return the SHA-256 of a file's bytes.

    Args:
        cache: a folder that keeps digests under path, size, times and inode, so that a large file is read
            once. Digests of files that changed within the last two seconds are not kept: their times may
            stay equal after another change.
    """
    status = path.stat()
    changed_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    identity = repr(
        (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    )
    entry = cache / hashlib.sha256(identity.encode()).hexdigest() if cache else None
    if entry is not None and entry.is_file():
        digest = entry.read_text(encoding="ascii", errors="replace")
        if re.fullmatch("[0-9a-f]{64}", digest):
            return digest
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if entry is not None and time.time_ns() - changed_ns > 2_000_000_000:
        with suppress(OutputError), atomic_path(entry) as temporary:  # the cache is optional
            temporary.write_text(digest, encoding="ascii")
    return digest


@dataclass(frozen=True)
class Damage:
    """A damaged or missing file, and the action that repairs it."""

    path: Path
    fault: str
    cure: str


@dataclass(frozen=True)
class FolderReport:
    """The result of `nvembed check`: the kind of a folder, a summary of its content, and all damages."""

    path: Path
    kind: str
    content: str
    damages: list[Damage]


def data_path(name: str) -> Path:
    """Return the folder ``name`` (``recipes`` or ``demo``) of the installed package or the checkout."""
    package = Path(__file__).parent
    for candidate in (package / "_data" / name, package.parent.parent / name):
        if candidate.is_dir():
            return candidate
    raise OutputError(f"the package's own folder {name!r} is missing: reinstall nvembed")


def as_utf8(name: str) -> str:
    """Return a file name as valid text; bytes that are not UTF-8 become ``\\udcXX``."""
    return name.encode(errors="backslashreplace").decode()


def claim(marker: Path, state: dict[str, Any]) -> None:
    """Write the state of a run to ``marker``, or check that an existing marker has the same state.

    Raises:
        OutputError: ``marker`` is damaged, or has another state; the message names the difference.
    """
    if not marker.exists():
        write_json(marker, state)
        return
    cure = "remove it if nothing that decides the result has changed, and run the command again"
    stored = read_json(marker, dict[str, Any], cure=cure, error=OutputError)
    same_run(marker, stored, json.loads(json.dumps(state)))


def same_run(marker: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise OutputError if the states differ; the message names the difference."""
    differs = list(_differences(stored, expected))
    if differs:
        name, old, new = differs[0]
        names = ", ".join(name for name, _, _ in differs[:5]) + (" and more" if len(differs) > 5 else "")
        raise OutputError(
            f"{marker} is of a run with another {names} ({name} there: {short_json(old)}, here: "
            f"{short_json(new)}): remove the files of that run, or write to another folder"
        )


def take_lock(handle: int) -> bool:
    """Lock an open file until the process ends; return False on Windows, which has no such locks.

    Raises:
        BlockingIOError: another process holds it.
        OSError: the file system does not support locks.
    """
    try:
        import fcntl
    except ImportError:
        return False
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


_LOCK_BYTES = 128  # the size of a lock file: the name of its holder, padded with spaces


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a folder, which is created if it is missing; the lock ends with the process.

    Raises:
        OutputError: another process holds the lock, the folder cannot be written, or ``.lock`` is not a lock
            file.
    """
    lock = out / ".lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = _open_lock(lock)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write to {out}: {error.strerror or error}") from error
    try:
        try:
            take_lock(handle)
        except BlockingIOError as error:
            holder = os.read(handle, _LOCK_BYTES).decode(errors="replace").strip()
            raise OutputError(
                f"{out} is being written by another job ({holder or 'unknown'}): wait for it, or write to "
                "another folder"
            ) from error
        except OSError as error:
            raise OutputError(f"{lock} cannot be locked ({error.strerror}): write to a local disk") from error
        _write_holder(handle, f"process {os.getpid()} on {socket.gethostname()}")
        remove_leftovers(out)
        try:
            yield
        finally:
            _write_holder(handle, "")
    finally:
        os.close(handle)


def _open_lock(lock: Path) -> int:
    """Open a lock file; refuse anything else, because the file is overwritten."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(lock, flags, 0o666)
    except OSError as error:
        if lock.is_symlink():
            raise OutputError(f"{lock} is a link, not a lock file: remove it") from error
        raise
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or status.st_size > _LOCK_BYTES:
        os.close(handle)
        raise OutputError(f"{lock} is not a lock file: remove it")
    return handle


def _write_holder(handle: int, holder: str) -> None:
    """Overwrite a lock file in place."""
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, holder.encode()[:_LOCK_BYTES].ljust(_LOCK_BYTES))


def _differences(stored: Any, expected: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, stored value, expected value) of the values that differ in two nested objects."""
    if isinstance(stored, dict) and isinstance(expected, dict):
        for key in {**stored, **expected}:
            yield from _differences(stored.get(key), expected.get(key), f"{name}.{key}" if name else key)
    elif stored != expected:
        yield name, stored, expected
