"""How Sphinx builds this folder into a site: ``make docs``. Every warning is an error there.

``reference/cli`` is written before the build from the commands themselves; ``repository`` holds copies of
the pages outside docs/ that the documentation links to.
"""

import os
import re
import shutil
from pathlib import Path

from sphinx.application import Sphinx

from nvembed import __version__
from nvembed.cli.main import COMMANDS, app_for

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # the Python reference imports haystack

project = "nvembed"
copyright = "the nvembed authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
exclude_patterns = ["_build"]
nitpick_ignore_regex = [("py:.*", ".*")]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_display_short_literal_types = True

html_theme = "furo"
html_title = f"nvembed {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False

HERE = Path(__file__).parent
ROOT = HERE.parent
REPOSITORY = ("CHANGELOG.md", "CONTRIBUTING.md", "benchmarks", "models/nvembed-small")
LEAVES_DOCS = re.compile(r"(\]\((?:\.\./)*)\.\./(CHANGELOG|CONTRIBUTING|benchmarks|models)\b")
ENTERS_DOCS = re.compile(r"(\]\((?:\.\./)*)docs/")


def setup(app: Sphinx) -> None:
    app.connect("builder-inited", write_commands)
    app.connect("builder-inited", copy_repository)
    app.connect("source-read", correct_links)


def write_commands(_app: Sphinx) -> None:
    """Write a page for each command from the command itself, so that the two cannot differ."""
    folder = HERE / "reference" / "cli"
    folder.mkdir(exist_ok=True)
    app = app_for(list(COMMANDS))
    for name in COMMANDS:
        page = app[name].generate_docs(
            output_format="markdown", usage_name=f"nvembed {name}", heading_level=1
        )
        _write(folder / f"{name}.md", page.replace(f"# {name}\n", f"# nvembed {name}\n", 1))
    for stale in {page.stem for page in folder.glob("*.md")} - set(COMMANDS):
        (folder / f"{stale}.md").unlink()
    rows = [f"- [{name}](cli/{name}.md): {summary}" for name, summary in COMMANDS.items()]
    tree = ["```{toctree}", ":hidden:", *(f"cli/{name}" for name in COMMANDS), "```"]
    text = "These pages are made from the commands; `nvembed COMMAND --help` prints the same in a terminal."
    _write(HERE / "reference" / "cli.md", "\n".join(["# Command line", "", text, "", *rows, "", *tree, ""]))


def copy_repository(_app: Sphinx) -> None:
    """Copy the pages and pictures outside docs/ that the documentation links to."""
    shutil.rmtree(HERE / "repository", ignore_errors=True)
    for top in REPOSITORY:
        source = ROOT / top
        for path in [source] if source.is_file() else sorted(source.rglob("*")):
            copy = HERE / "repository" / path.relative_to(ROOT)
            if path.suffix == ".md":
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(f"---\norphan: true\n---\n\n{_without_front_matter(path)}", encoding="utf-8")
            elif path.suffix == ".png":
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)


def correct_links(_app: Sphinx, page: str, source: list[str]) -> None:
    """Point links between docs/ and the rest of the repository to the copies."""
    if page.startswith("repository/"):
        source[0] = ENTERS_DOCS.sub(r"\1../", source[0])
    else:
        source[0] = LEAVES_DOCS.sub(r"\1repository/\2", source[0])


def _without_front_matter(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text.partition("\n---\n")[2] if text.startswith("---\n") else text


def _write(path: Path, text: str) -> None:
    """Leave the file alone if nothing changed: Sphinx reads again what is newer than its page."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
