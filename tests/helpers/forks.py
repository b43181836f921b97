"""Programs as forks of one process that has imported what they need: a start takes no second.

What it imports must start no threads.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HELPERS = Path(__file__).parent

# A program that has the process run ``code`` with its own arguments, folder and environment.
CLIENT = """#!{python} -SE
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({address!r})
    order = dict(code={code!r}, argv=sys.argv, env=dict(os.environ), folder=os.getcwd())
    connection.sendall(json.dumps(order).encode() + b"\\n")
    with connection.makefile() as answers:
        answer = json.loads(answers.readline())
sys.stdout.write(answer["stdout"])
sys.stderr.write(answer["stderr"])
sys.exit(answer["code"])
"""


class Forks:
    """Runs Python programs one at a time, each in a fork of a process of its own."""

    def __init__(self, modules: tuple[str, ...], folder: Path) -> None:
        self._address = str(folder / "forks")
        paths = [str(HELPERS), str(HELPERS.parent), *filter(None, sys.path)]
        code = (
            f"import sys; sys.path[:0] = {paths!r}; import forks; forks.serve({self._address!r}, {modules!r})"
        )
        self._process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def run(
        self, code: str, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -c code arguments``, with further environment variables."""
        argv = ["-c", *map(str, arguments)]
        order = {"code": code, "argv": argv, "env": dict(env or {}), "folder": str(Path.cwd())}
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self._address)
            connection.sendall(json.dumps(order).encode() + b"\n")
            with connection.makefile() as answers:
                answer = json.loads(answers.readline())
        return subprocess.CompletedProcess(argv, answer["code"], answer["stdout"], answer["stderr"])

    def program(self, path: Path, code: str) -> Path:
        """Write a program that runs ``code`` like this."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CLIENT.format(python=sys.executable, address=self._address, code=code))
        path.chmod(0o755)
        return path

    def stop(self) -> None:
        self._process.terminate()
        self._process.communicate()


@contextmanager
def forks(*modules: str) -> Iterator[Forks]:
    """Import ``modules`` in a process, for the programs to come."""
    with tempfile.TemporaryDirectory() as folder:  # short: the address of a socket has 100 characters at most
        made = Forks(modules, Path(folder))
        try:
            yield made
        finally:
            made.stop()


def serve(address: str, modules: tuple[str, ...]) -> None:
    """Run what is ordered at a socket, one program at a time, until terminated."""
    for module in modules:
        __import__(module)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection, connection.makefile() as orders, tempfile.TemporaryDirectory() as outputs:
                order = json.loads(orders.readline())
                pid = os.fork()
                if pid == 0:
                    _run(order, Path(outputs))
                _, status = os.waitpid(pid, 0)
                names = ("stdout", "stderr")
                texts = {name: (Path(outputs) / name).read_text(errors="replace") for name in names}
                answer = {"code": os.waitstatus_to_exitcode(status), **texts}
                connection.sendall(json.dumps(answer).encode() + b"\n")


def _run(order: dict[str, object], outputs: Path) -> None:
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(str(order["folder"]))
        os.environ.update(order["env"])  # type: ignore[call-overload]
        sys.argv[:] = order["argv"]  # type: ignore[call-overload]
        exec(compile(str(order["code"]), "<program>", "exec"), {"__name__": "__main__"})
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)
