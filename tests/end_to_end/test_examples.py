"""The scripts of examples/ run, on tiny models."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_lm

from conftest import ROOT, TINY_A
from nvembed.encoder import Encoder


def run(script: str, *arguments: Path, folder: Path) -> str:
    """Run a shell script from a copy of the checkout's folder; ``nvembed`` is this code."""
    program = folder / "bin" / "nvembed"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from nvembed.cli.main import main; main()" "$@"\n'
    )
    program.chmod(0o755)
    done = subprocess.run(
        ["sh", ROOT / "examples" / script, *arguments],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_search(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["first_search.py", str(TINY_A), "where do I park my car?"])
    runpy.run_path(str(ROOT / "examples" / "first_search.py"))
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert len(lines) == 3
    assert scores == sorted(scores, reverse=True)


def test_train_on_pairs(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes(num_layers=4))
    recipe = ROOT / "examples" / "helpdesk"
    run("train_on_pairs.sh", recipe, tmp_path / "lm", tmp_path / "work", folder=tmp_path)
    assert Encoder.from_pretrained(tmp_path / "work" / "model", device="cpu").encode(["x"]).shape[0] == 1


def test_evaluate_two_models(tmp_path: Path) -> None:
    printed = run("evaluate_two_models.sh", TINY_A, Path("bm25"), tmp_path / "scores", folder=tmp_path)
    assert "| handbook | Retrieval |" in printed
    assert (tmp_path / "scores" / "comparison" / "compare.md").is_file()
