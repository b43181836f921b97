"""Passages embedded with their headings: what the model reads, what is stored and what is reused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from corpora import encode, settings, word_offsets

from nvembed.embed.embedded import open_embedded
from nvembed.embed.job import local_engine, open_job, recorded_cut
from nvembed.embed.passages import Context
from nvembed.embed.records import CorpusReading
from nvembed.errors import OutputError
from nvembed.read.corpus import list_files

NAMES = {"corpus": "c", "model": "m"}
GUIDE = "---\ntitle: The guide\n---\n# Guide\n\nIntro words.\n\n## Install\n\n" + "One sentence is here. " * 8


def embed(corpus: Path, out: Path, context: Context, **changes: object) -> list[str]:
    """Embed a corpus, and return what the model was given to read."""
    read: list[str] = []

    def reading(texts: Sequence[str]) -> Any:
        read.extend(texts)
        return encode(texts)

    chosen = settings(**{"cut": "structure", "context": context, **changes})
    files = list_files(str(corpus))
    with open_job(out, files, CorpusReading(), lambda *_: None, update=True) as job:
        earlier = job.earlier_shards(chosen.prompt, context)
        engine = local_engine(word_offsets, earlier.reusing(reading) if earlier else reading)
        job.run(chosen, engine, lambda *_: None, names=NAMES)
    return read


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "guide.md").write_text(GUIDE)
    (tmp_path / "corpus" / "prices.csv").write_text("Item,Price\nMouse,9\nKeyboard,20\n")
    return tmp_path / "corpus"


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for batch in open_embedded(out).batches() for row in batch.to_pylist()]


@pytest.mark.parametrize("context", ["none", "title", "headings"])
def test_the_model_reads_the_context_and_the_text_is_stored_without_it(
    corpus: Path, tmp_path: Path, context: Context
) -> None:
    read = embed(corpus, tmp_path / "out", context)
    rows = rows_of(tmp_path / "out")
    assert len(read) == len(rows)
    last = [row for row in rows if row["document"] == "guide.md"][-1]
    assert json.loads(last["metadata"])["headings"] == ["Guide", "Install"]
    before = {"none": "", "title": "The guide\n\n", "headings": "The guide > Guide > Install\n\n"}[context]
    assert f"{before}{last['text']}" in read
    assert not last["text"].startswith("The guide")
    assert [row["text"] for row in rows if row["document"].startswith("prices.csv")] == [
        "Item: Mouse | Price: 9",
        "Item: Keyboard | Price: 20",
    ]
    recorded = open_embedded(tmp_path / "out").manifest["settings"]
    assert (recorded["cut"], recorded.get("context", "none")) == ("structure", context)
    assert recorded_cut(tmp_path / "out") == "structure"


def test_an_update_reads_passages_again_whose_headings_have_changed(corpus: Path, tmp_path: Path) -> None:
    embed(corpus, tmp_path / "out", "headings")
    (corpus / "guide.md").write_text(GUIDE.replace("## Install", "## Set up"))
    read = embed(corpus, tmp_path / "out", "headings")
    assert read
    assert all("Set up" in text for text in read)
    assert any(text.startswith("The guide > Guide > Set up\n\n") for text in read)
    (corpus / "prices.csv").write_text("Item,Price\nMouse,9\nKeyboard,21\n")
    assert embed(corpus, tmp_path / "out", "headings") == ["Item: Keyboard | Price: 21"]


def test_a_folder_is_not_continued_with_another_cut(corpus: Path, tmp_path: Path) -> None:
    embed(corpus, tmp_path / "out", "none", cut="sentences")
    assert recorded_cut(tmp_path / "out") == "sentences"
    assert all("headings" not in json.loads(row["metadata"]) for row in rows_of(tmp_path / "out"))
    with pytest.raises(OutputError, match="cut"):
        embed(corpus, tmp_path / "out", "none")
    assert recorded_cut(tmp_path / "new") is None
