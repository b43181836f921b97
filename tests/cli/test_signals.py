"""Signals at odd moments: while a module is imported, and where Python drops exceptions."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import TINY_A

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
CODES = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]

# The signal comes when a module is looked for the first time.
AT_IMPORT = """
import os, sys
number, name = int(sys.argv[1]), sys.argv[2]
sent = []
class Finder:
    def find_spec(module, path=None, target=None):
        if module == name and not sent:
            sent.append(name)
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Finder)
from nvembed.cli.main import main
try:
    main(sys.argv[3:])
finally:
    print("sent", *sent)
"""


@pytest.mark.parametrize(
    ("module", "number", "code"),
    [("cyclopts", signal.SIGINT, 130), ("pydantic_core", signal.SIGTERM, 143), ("numpy", signal.SIGINT, 130)],
)
def test_while_a_module_is_imported(tmp_path: Path, module: str, number: signal.Signals, code: int) -> None:
    (tmp_path / "texts.txt").write_text("a\n")
    words = [str(int(number)), module, "encode", str(TINY_A), "texts.txt", "out.npy", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"sent {module}\n"
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


SCRIPT = """
import os, sys, time
from nvembed.cli.signals import Interrupts

class Odd:
    def __del__(self):
        os.kill(os.getpid(), {number})
        for _ in range(1000):
            pass

interrupts = Interrupts()
interrupts.install()
try:
    {work}
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(130)
finally:
    try:
        time.sleep(0.5)  # nothing more is raised while the stack unwinds
        print("cleaned up")
    finally:
        interrupts.end()
"""


def run(folder: Path, number: int, work: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(number=int(number), work=work)
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_where_exceptions_are_dropped(tmp_path: Path, number: signal.Signals, code: int) -> None:
    done = run(tmp_path, number, "Odd()")
    assert (done.returncode, done.stdout, done.stderr) == (code, "cleaned up\n", "")


@pytest.mark.parametrize(("number", "code"), CODES)
def test_an_import_is_finished_first(tmp_path: Path, number: signal.Signals, code: int) -> None:
    (tmp_path / "losing.py").write_text(
        "import os\n"
        "try:\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    for _ in range(1000):\n"
        "        pass\n"
        "except BaseException:\n"
        "    print('lost')\n"
    )
    done = run(tmp_path, number, "import losing; print('imported', flush=True)")
    assert (done.returncode, done.stdout) == (code, "imported\ncleaned up\n"), done.stderr


def test_an_import_without_end_is_interrupted(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(signal.SIGTERM)})\ntime.sleep(600)\n"
    )
    done = run(tmp_path, signal.SIGTERM, "import endless")
    assert (done.returncode, done.stdout) == (143, "cleaned up\n"), done.stderr
