"""Programs as forks of one process that has imported what they need: a start takes no second.

What it imports must start no threads.
"""

import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HELPERS = Path(__file__).parent


class Forks:
    """Runs Python programs one at a time, each in a fork of a process of its own."""

    def __init__(self, *modules: str) -> None:
        paths = [str(HELPERS), str(HELPERS.parent), *filter(None, sys.path)]
        code = f"import sys; sys.path[:0] = {paths!r}; import forks; forks.serve({modules!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(
        self, code: str, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -c code arguments``, with further environment variables."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            argv = ["-c", *map(str, arguments)]
            order = {"code": code, "argv": argv, "env": dict(env or {}), "folder": folder}
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            returncode = int(self._process.stdout.readline())
            texts = [(Path(folder) / name).read_text() for name in ("stdout", "stderr")]
        return subprocess.CompletedProcess(argv, returncode, *texts)

    def stop(self) -> None:
        self._process.communicate()


@contextmanager
def forks(*modules: str) -> Iterator[Forks]:
    """Import ``modules`` in a process, for the programs to come."""
    made = Forks(*modules)
    try:
        yield made
    finally:
        made.stop()


def serve(modules: tuple[str, ...]) -> None:
    """Run what is ordered on standard input, until it ends."""
    for module in modules:
        __import__(module)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(order)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(order: dict[str, object]) -> None:
    code = 1
    try:
        for number, name in ((1, "stdout"), (2, "stderr")):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(os.path.join(str(order["folder"]), name), flags), number)  # noqa: PTH118
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
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
