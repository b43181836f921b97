"""Standard streams that are closed or not UTF-8, paths that begin with ``~``, and signals."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TINY = Path(__file__).parents[1] / "parity" / "tiny-a"
NVEMBED = [sys.executable, "-c", "from nvembed.cli.main import main; main()"]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="closes streams with a POSIX shell")


def run(command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command in which ``$@`` is nvembed with its arguments."""
    code = ["sh", "-c", command, "sh", *NVEMBED, *arguments]
    return subprocess.run(code, capture_output=True, check=False, env={**os.environ, **environment})


def test_a_closed_output_is_an_error() -> None:
    done = run('"$@" >&-', "--version")
    assert (done.returncode, done.stderr.splitlines()) == (1, [b"error: standard input or output is closed"])


def test_a_closed_input_is_an_error() -> None:
    done = run('"$@" <&-', "encode", str(TINY), "-", "-")
    assert (done.returncode, done.stderr.splitlines()) == (1, [b"error: standard input or output is closed"])


def test_closed_messages_are_dropped() -> None:
    done = run('"$@" 2>&-', "encode")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")


def test_a_terminal_without_unicode() -> None:
    done = run('"$@"', "encode", str(TINY), "Übär", "-", PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: \\xdcb\\xe4r")
    assert b"Traceback" not in done.stderr


def test_the_home_folder_in_an_option(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a text\n")
    done = run('"$@"', "encode", str(TINY), "~/in.txt", "~/out.npy", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.npy").is_file()


SIGNALLED = """
import os, sys
from nvembed.cli import main
from nvembed.errors import WeightsError
class App:
    def __call__(self, argv):
        try:
            os.kill(os.getpid(), int(sys.argv[1]))
        except BaseException as error:  # as a library does that reads a tensor
            raise WeightsError("UntypedStorage") from error
main.app_for = lambda argv: App()
main.main(["check"])
"""


@pytest.mark.parametrize("number", [2, 15])
def test_a_signal_inside_a_library_that_hides_it(number: int) -> None:
    code = [sys.executable, "-c", SIGNALLED, str(number)]
    done = subprocess.run(code, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, b"")
