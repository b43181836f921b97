"""Files are written whole or not at all, where the user said; locks and digests."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nvembed.errors import OutputError
from nvembed.files import atomic_path, claim, file_digest, locked

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX files")


def write(path: Path, content: bytes = b"new") -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@posix
def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("far/file")
    (tmp_path / "dangling").symlink_to("far/later")
    (tmp_path / "loop").symlink_to("loop")
    write(tmp_path / "link")
    write(tmp_path / "dangling")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "far" / "file").read_bytes() == (tmp_path / "far" / "later").read_bytes() == b"new"
    assert names(tmp_path / "far") == ["file", "later"]
    with pytest.raises(OutputError, match="loop"):
        write(tmp_path / "loop")


@posix
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe", b"x" * 200_000)
    reader.join()
    assert received == [b"x" * 200_000]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert names(tmp_path) == ["pipe"]


@posix
def test_a_device_is_written_to(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:
        pytest.skip("only root makes devices")
    write(device)
    assert stat.S_ISCHR(device.stat().st_mode)


@posix
def test_modes(tmp_path: Path) -> None:
    """An existing file keeps its mode; new ones have what the umask allows, whatever made them."""
    (tmp_path / "kept").touch(0o600)
    old = os.umask(0o027)
    try:
        for name in ("kept", "made"):
            with atomic_path(tmp_path / name) as temporary:
                temporary.touch(0o600)
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "inside").touch(0o600)
    finally:
        os.umask(old)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("kept", "made", "folder/inside")]
    assert modes == [0o600, 0o640, 0o640]


KILLED = """
import os, signal, sys
from nvembed.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    os.kill(os.getpid(), int(sys.argv[2]))
"""


@posix
def test_leftovers_of_killed_runs(tmp_path: Path) -> None:
    """They are removed by the next write of the file; what a living process writes is left alone."""

    def start(number: int) -> subprocess.Popen[bytes]:
        code = [sys.executable, "-c", KILLED, str(tmp_path / "out"), str(number)]
        return subprocess.Popen(code, stdout=subprocess.PIPE)

    start(signal.SIGKILL).communicate()
    [first] = names(tmp_path)
    stopped = start(signal.SIGSTOP)
    assert stopped.stdout is not None
    assert stopped.stdout.readline() == b"writing\n"
    [second] = names(tmp_path)
    assert second != first
    write(tmp_path / "out")
    assert names(tmp_path) == [second, "out"]
    stopped.kill()
    stopped.communicate()
    (tmp_path / ".out.12345678").mkdir()  # killed before it wrote anything
    write(tmp_path / "out", b"last")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_bytes() == b"last"


def test_long_names(tmp_path: Path) -> None:
    write(tmp_path / ("ä" * 120))
    assert names(tmp_path) == ["ä" * 120]


@posix
@pytest.mark.parametrize("make", ["symlink", "hardlink", "fifo", "file"])
def test_a_lock_is_only_ever_a_lock(tmp_path: Path, make: str) -> None:
    victim, lock = tmp_path / "victim", tmp_path / "out" / ".lock"
    victim.write_text("x" * 300)
    lock.parent.mkdir()
    if make == "symlink":
        lock.symlink_to(victim)
    elif make == "hardlink":
        lock.hardlink_to(victim)
    elif make == "fifo":
        os.mkfifo(lock)
    else:
        lock.write_text(victim.read_text())
    with pytest.raises(OutputError, match="lock file"), locked(lock.parent):
        pass
    assert victim.read_text() == "x" * 300


@posix
def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    other = f"process {os.getpid()} on {socket.gethostname()}"
    with locked(tmp_path), pytest.raises(OutputError, match=other), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_digests_are_kept_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = tmp_path / "weights", tmp_path / "cache"
    path.write_bytes(b"a" * 100)
    changed_ns = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    monkeypatch.setattr(time, "time_ns", lambda: changed_ns + 1_000_000_000)
    first = file_digest(path, cache=cache)
    assert not cache.exists(), "a file this new may change within its time stamp"
    monkeypatch.setattr(time, "time_ns", lambda: changed_ns + 100_000_000_000)
    assert file_digest(path, cache=cache) == file_digest(path, cache=cache) == first
    assert len(names(cache)) == 1
    [entry] = cache.iterdir()
    entry.write_text("damaged")
    assert file_digest(path, cache=cache) == first
    path.write_bytes(b"a" * 99 + b"b")
    os.utime(path, ns=(changed_ns, changed_ns))
    assert file_digest(path, cache=cache) != first


def test_a_damaged_marker(tmp_path: Path) -> None:
    for content in ("", "{", "[1]", "\udcff", "[" * 100_000):
        (tmp_path / "state.json").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(OutputError, match=r"state\.json"):
            claim(tmp_path / "state.json", {"a": 1})
