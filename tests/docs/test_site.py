"""The documentation builds without a warning: links and references resolve, pages are in the menu."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT
from nvembed.cli.main import COMMANDS


def test_site(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", tmp_path / "doctrees"]
    done = subprocess.run(
        [*command, ROOT / "docs", site], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr
    for command_name in COMMANDS:
        page = (site / "reference" / "cli" / f"{command_name}.html").read_text(encoding="utf-8")
        assert f"nvembed {command_name}" in page


def test_links_of_the_readme() -> None:
    """Sphinx sees a copy of the README, in which a link to a file that is no page would pass."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
