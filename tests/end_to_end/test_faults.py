"""A small part of ``benchmarks/faults.py``: every campaign but that of the server, without random times."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("gcc") is None,
    reason="system calls are counted with gcc on Linux",
)


def test_faults_and_hostile_inputs(tmp_path: Path) -> None:
    """Kills, signals, full disks, I/O errors and damage for embed, encode, index and mine; every reader."""
    results = tmp_path / "faults.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "small"]
    command += ["--root", str(tmp_path / "root"), "--results", str(results)]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(results.read_text())
    assert content["findings"] == []
    tried = {
        campaign: sum(row["tried"] for row in rows.values()) for campaign, rows in content["counters"].items()
    }
    assert tried.keys() == {"kills", "errors", "damage", "pairs", "fuzz"}
    assert all(count >= 4 for count in tried.values()), tried
    assert tried["fuzz"] >= 1000
