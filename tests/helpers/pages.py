"""Run the code blocks of a page of documentation.

The language of a fence says what happens to the block:

    sh      each command is run; ``nvembed`` runs in this process, which saves importing torch every time
    python  run, with the names of the page's earlier blocks
    text    what the block before it prints to standard output; numbers may differ a little
    others  shown only

http://127.0.0.1:8000 in a block becomes the address of a server that the test has started.
"""

import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nvembed.cli.main import main

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SERVER = "http://127.0.0.1:8000"
NUMBER = re.compile(r"-?\d+\.\d+")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of each code block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def executed(page: Path) -> str:
    """Return the text of all blocks that are run."""
    return "".join(text for language, text in blocks(page) if language in ("sh", "python"))


def run_page(page: Path, capsys: pytest.CaptureFixture[str], *, server: str = SERVER) -> None:
    """Run the page's blocks in the current folder."""
    names: dict[str, object] = {"__name__": "page"}
    printed = ""
    for language, original in blocks(page):
        text = original.replace(SERVER, server)
        if language == "text":
            assert_same(printed, text)
        elif language == "sh":
            printed = "".join(run_command(command, capsys) for command in commands(text))
        elif language == "python":
            exec(compile(text, str(page), "exec"), names)
            printed = capsys.readouterr().out


def commands(text: str) -> Iterator[str]:
    """Yield each line that calls nvembed, and what stands between two of them."""
    others: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("nvembed "):
            yield "\n".join(others)
            others = []
            yield line
        else:
            others.append(line)
    yield "\n".join(others)


def run_command(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command of nvembed in this process, anything else in a shell; return what it prints.

    3 is the exit code of ``leaks`` that finds some.
    """
    if command.startswith("nvembed "):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(SystemExit) as end:
                main(shlex.split(command, comments=True)[1:])
        printed = capsys.readouterr()
        assert end.value.code in (0, 3), f"{command}\n{printed.out}\n{printed.err}"
        return printed.out
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", "-ec", command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def assert_same(printed: str, expected: str) -> None:
    """The same words, and numbers with a decimal point within 0.002."""
    assert "".join(NUMBER.sub("0", printed).split()) == "".join(NUMBER.sub("0", expected).split())
    figures = [[float(number) for number in NUMBER.findall(text)] for text in (printed, expected)]
    np.testing.assert_allclose(*figures, atol=2e-3)
