"""Reading documents in a child process, because a damaged or hostile file may crash or exhaust a native
library.

``ask`` starts one child per process at its first call and keeps it for the next documents. The child
limits its own memory; a document that takes too long or ends the child is an error of that document.
The child runs ``main`` of this file: it reads a line of JSON for each document from standard input and
answers with one frame, the length in 8 bytes and JSON. Empty frames say that it works.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from nvembed.errors import DataError

MEMORY_BYTES = 3 << 30
# Time limit without progress (a page of a PDF, a whole HTML file), and for a document.
PROGRESS_S = 60.0
DOCUMENT_S = 600.0

# The child imports modules from the same places as this process, and not from the current folder.
_MAIN = "import sys; sys.path[:] = {}; from nvembed.read.child import main; main()"


class DocumentReader:
    """A child process that reads documents."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-c", _MAIN.format([entry for entry in sys.path if entry])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.late = False

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the child's answer.

        Raises:
            DataError: the child ended or took too long; it must be replaced.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        overall = self._limit(DOCUMENT_S)
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            while not (frame := self._frame(self.process.stdout)):
                pass
        except (OSError, EOFError) as error:
            raise DataError(f"{request['path']}: {self._reason()}") from error
        finally:
            overall.cancel()
        answer: dict[str, Any] = json.loads(frame)
        return answer

    def _frame(self, stream: IO[bytes]) -> bytes:
        timer = self._limit(PROGRESS_S)
        try:
            size = int.from_bytes(_exactly(stream, 8))
            return _exactly(stream, size)
        finally:
            timer.cancel()

    def _limit(self, seconds: float) -> threading.Timer:
        timer = threading.Timer(seconds, self._give_up)
        timer.daemon = True
        timer.start()
        return timer

    def _give_up(self) -> None:
        self.late = True
        self.process.kill()

    def _reason(self) -> str:
        code = self.process.wait()
        if self.late:
            return "reading it takes too long; expected a document that can be read in a minute"
        return (
            f"the process that reads it ended (exit code {code}): the file is damaged, or its content needs "
            f"more than {MEMORY_BYTES >> 30} GiB of memory"
        )

    def close(self) -> None:
        """End the child."""
        if self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()


def _exactly(stream: IO[bytes], size: int) -> bytes:
    raw = stream.read(size)
    if len(raw) < size:
        raise EOFError
    return raw


_lock = threading.Lock()
_reader: DocumentReader | None = None


def ask(path: Path, kind: str, max_bytes: int) -> dict[str, Any]:
    """Read a file of at most ``max_bytes`` in the child: text, metadata, sections and warnings.

    Raises:
        DataError: the file cannot be read, the child's process ended, or took too long.
    """
    global _reader
    with _lock:
        if _reader is not None and (_reader.owner != os.getpid() or _reader.process.poll() is not None):
            _reader = None
        if _reader is None:
            _reader = DocumentReader()
            atexit.register(_reader.close)
        try:
            # absolute: the child keeps the current folder that this process had when it was started
            answer = _reader.ask({"path": os.fspath(path.absolute()), "kind": kind, "max_bytes": max_bytes})
        except BaseException:  # the rest of this answer must not become the next document's
            atexit.unregister(_reader.close)
            _reader.close()
            _reader = None
            raise
    if "error" in answer:
        raise DataError(f"{path}: {answer['error']}")
    return answer


def main() -> None:
    """Answer requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process handles it
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not be part of an answer
    _limit_memory()

    def send(frame: bytes) -> None:
        answers.write(len(frame).to_bytes(8) + frame)
        answers.flush()

    send(b"")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            answer = _read(request, lambda: send(b""))
        except (OSError, ValueError) as error:
            answer = {"error": str(error)}
        except MemoryError:
            return
        except Exception as error:  # a bug, here or in a library, is an error of this document
            answer = {"error": f"cannot be read ({type(error).__name__}: {error})"}
        send(json.dumps(answer).encode())


def _read(request: dict[str, Any], progress: Callable[[], None]) -> dict[str, Any]:
    from nvembed.read.formats import read_format

    limit = request["max_bytes"]
    with Path(request["path"]).open("rb") as stream:
        raw = stream.read(limit)
    document = read_format(raw, request["kind"], limit, progress)
    return document._asdict()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
