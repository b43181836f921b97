"""The wheel holds everything that the package needs, and works without the checkout."""

import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from conftest import ROOT

EXTRAS = {"train", "eval", "learn", "ray", "postgres", "otel", "langchain", "llama-index", "haystack"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = pytest.importorskip("hatchling.build", reason="hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build.build_wheel(str(folder))


def files(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT / folder))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        about = message_from_bytes(archive.read(metadata))
    assert {f"nvembed/{name}" for name in files("src/nvembed")} <= names
    for data in ("recipes", "demo"):
        assert {f"nvembed/_data/{data}/{name}" for name in files(data)} <= names
    assert not [name for name in names if name.startswith("nvembed/_data/models")], "other licences"
    assert {"nvembed/py.typed", "nvembed/serve/page/index.html"} <= names
    assert set(about.get_all("Provides-Extra", [])) >= EXTRAS
    assert about["License-Expression"] == "Apache-2.0"


def test_it_works_alone(wheel: Path, tmp_path: Path) -> None:
    """Unpacked in an empty folder, the package finds its own data and lists its commands."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    code = (
        "import nvembed\nfrom nvembed.files import data_path\n"
        "from nvembed.text.prompt import instruction_for\n"
        "print(nvembed.__file__, data_path('demo'), instruction_for('NQ'))\n"
        "from nvembed.cli.main import main; main(['--help'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    home, demo, *_ = done.stdout.split()
    assert Path(home).is_relative_to(tmp_path)
    assert Path(demo).is_relative_to(tmp_path)
    assert "Given a question" in done.stdout
    assert "nvembed COMMAND --help" in done.stdout
