"""embed, index, search and ask on the command line: the parity checkpoint, a stand-in chat endpoint."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import chat_server
from embedded_folder import FINGERPRINT, write_embedded

from conftest import TINY_A
from nvembed.cli.main import app_for
from nvembed.embed.embedded import open_embedded, vectors_of
from nvembed.encoder import Encoder
from nvembed.errors import InputError, NvembedError

RECORDS = [
    {"id": "judo", "text": "Judo throws are allowed in freestyle wrestling.", "year": 2019, "lang": "en"},
    {"id": "radio", "text": "Radiologists train for years. They read pictures.", "year": 2021, "lang": "en"},
    {"id": "gatto", "text": "Il gatto dorme sul divano.", "year": 2022, "lang": "it"},
]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("story")
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    (folder / "corpus.jsonl").write_text(lines, encoding="utf-8")
    run("embed", folder / "corpus.jsonl", folder / "out", "--model", TINY_A, "--device", "cpu")
    run("index", folder / "out")
    return folder / "out"


def run(*arguments: str | Path) -> None:
    argv = [str(argument) for argument in arguments]
    app_for(argv)(argv)


def test_hits_are_those_of_the_library(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    run("search", out, "which throws?", "--mode", "vector", "--json", "--top", "3", "--task", "NQ")
    hits = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    encoder = Encoder.from_pretrained(TINY_A, device="cpu")
    query = encoder.encode_query(["which throws?"], task="NQ")[0]
    (batch,) = open_embedded(out).batches()
    scores = dict(zip(batch["id"].to_pylist(), vectors_of(batch).astype(np.float32) @ query, strict=True))
    assert [hit["id"] for hit in hits] == sorted(scores, key=lambda id_: -scores[id_])
    np.testing.assert_allclose([hit["score"] for hit in hits], sorted(scores.values())[::-1], atol=2e-6)
    judo = next(hit for hit in hits if hit["document"] == "judo")
    assert [judo["text"][a:b] for a, b in judo["marks"]] == ["throws"]
    assert judo["metadata"] == {"year": 2019, "lang": "en"}
    # NQ's instruction is what this index's queries are read behind anyway
    run("search", out, "which throws?", "--mode", "vector", "--json", "--top", "3")
    assert [json.loads(line) for line in capfd.readouterr().out.splitlines()] == hits


def test_modes_filters_and_marks(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    run("search", out / "index", "radiologist", "--mode", "text", "--json")
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["rank"] == 1
    options = ("--where", "year >= 2021 and lang = en", "--json", "--mark", "sentence", "--model", TINY_A)
    run("search", out, "read", *options)
    (line,) = capfd.readouterr().out.splitlines()
    hit = json.loads(line)
    ((a, b),) = hit["marks"]
    assert hit["text"][a:b] in ("Radiologists train for years.", "They read pictures.")
    run("search", out, "throws", "gatto\x1b[2J", "--top", "1")
    printed = capfd.readouterr().out
    assert "\x1b[2J" not in printed
    assert "Judo throws are allowed" in printed
    assert "Il gatto dorme" in printed
    run("search", out, "xyzzy", "--mode", "text")
    assert "xyzzy\nnothing found" in capfd.readouterr().out


def test_a_folder_that_looks_like_one_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A site's own index.json makes no index of a folder of text; what is not yet indexed is said so."""
    for place in (tmp_path / "notes", tmp_path / "notes" / "index"):
        place.mkdir()
        (place / "index.json").write_text("{}")
    (tmp_path / "notes" / "a.md").write_text("Judo throws.")
    run("search", tmp_path / "notes", "judo", "--json", "--model", TINY_A)
    assert json.loads(capfd.readouterr().out)["id"] == "a.md#0"
    embedded = tmp_path / "embedded"
    run("embed", tmp_path / "notes", embedded, "--model", TINY_A)
    run("search", embedded, "judo", "--json")
    assert json.loads(capfd.readouterr().out)["id"] == "a.md#0"
    with pytest.raises(InputError, match="is a model"):
        run("search", TINY_A, tmp_path / "notes", "judo")


def test_text_mode_needs_no_model(tmp_path: Path) -> None:
    run("index", write_embedded(tmp_path / "out", model="no/such model"))
    code = "import sys; from nvembed.cli.main import main; main(sys.argv[1:])"
    arguments = ["search", str(tmp_path / "out"), "sofa", "--mode", "text", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["document"] == "empty"
    with pytest.raises(InputError, match="names 'no/such model' as its model"):
        run("search", tmp_path / "out", "sofa")
    with pytest.raises(InputError, match=f"expected {FINGERPRINT}"):
        run("search", tmp_path / "out", "sofa", "--model", TINY_A)


def test_add_and_delete(out: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("index", out, "--to", tmp_path / "own")
    more = tmp_path / "more.jsonl"
    more.write_text(
        json.dumps({"id": "judo", "text": "Sambo."}) + "\n" + json.dumps({"id": "new", "text": "New."})
    )
    run("embed", more, tmp_path / "more", "--model", TINY_A, "--device", "cpu")
    run("index", tmp_path / "own", "--add", tmp_path / "more", "--delete", "radio")
    assert "3 documents, 3 passages" in capfd.readouterr().err
    run("search", tmp_path / "own", "sambo throws", "--mode", "text", "--json")
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line)["text"] == "Sambo."


def test_an_update_uses_vectors_again_and_outdates_the_index(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    notes, out = tmp_path / "notes", tmp_path / "out"
    notes.mkdir()
    for name, text in (("a.txt", "Judo throws."), ("b.txt", "The cat sat."), ("empty.txt", "")):
        (notes / name).write_text(text)
    embed = ("embed", notes, out, "--model", TINY_A, "--on-error", "skip")
    run(*embed)
    run("index", out)
    (notes / "b.txt").write_text("Sambo throws.")
    capfd.readouterr()
    with pytest.raises(NvembedError, match="--update"):
        run(*embed)
    run(*embed, "--update")
    messages = capfd.readouterr().err
    assert "1 texts," in messages
    assert "1 passages have not changed" in messages
    assert "skipped: 1" in messages
    assert "empty.txt" in messages
    assert f"nvembed index {out}" in messages
    run("search", out, "cat", "--mode", "text")
    assert f"nvembed index {out}" in capfd.readouterr().err, "hits of the earlier state are never silent"
    run("index", out)
    capfd.readouterr()
    run("search", out, "sambo", "--mode", "text", "--json")
    shown = capfd.readouterr()
    assert (json.loads(shown.out)["document"], shown.err) == ("b.txt", "")


def test_every_skipped_file_is_named_up_to_ten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("Judo throws.")
    for i in range(12):
        (notes / f"empty{i:02}.txt").write_text("")
    run("embed", notes, tmp_path / "out", "--model", TINY_A, "--on-error", "skip")
    messages = capfd.readouterr().err
    assert "skipped: 12" in messages
    assert [f"empty{i:02}.txt" in messages for i in range(12)] == [True] * 10 + [False] * 2
    assert "2 more" in messages


def test_types_of_fields_from_a_table_to_a_filter(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = "id|text|price|in_stock\na|Cheap pen|9|true\nb|Good pen|50|True\nc|Fine pen|100|false\n"
    (tmp_path / "shop.csv").write_text(rows + "d|Gold pen|1250.50|true\ne|Gift pen|free|true\n")
    run("embed", tmp_path / "shop.csv", tmp_path / "out", "--model", TINY_A, "--delimiter", "|")
    run("index", tmp_path / "out")
    messages = capfd.readouterr().err
    assert "in_stock (bool), price (float)" in messages
    assert "'e#0'" in messages, "the value that is no number is reported"
    for where, documents in (
        ("price > 50", "cd"),
        ("price >= 100", "cd"),
        ("price = 100.0", "c"),
        ("price != 9 and in_stock = True", "bd"),
        ("in_stock = false", "c"),
    ):
        run("search", tmp_path / "out", "pen", "--mode", "text", "--json", "--where", where)
        hits = [json.loads(line)["document"] for line in capfd.readouterr().out.splitlines()]
        assert sorted(hits) == list(documents), where


def test_search_reads_a_table_as_embed_does(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shop = tmp_path / "shop.csv"
    shop.write_bytes("id^name\na^Überschrift\n".encode("cp1252"))
    with pytest.raises(NvembedError, match="--encoding"):
        run("search", shop, "q", "--model", TINY_A, "--field", "name", "--delimiter", "^")
    options = ("--field", "name", "--delimiter", "^", "--encoding", "cp1252", "--json")
    run("search", shop, "q", "--model", TINY_A, *options)
    assert json.loads(capfd.readouterr().out)["text"] == "Überschrift"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["search", "OUT", "q", "--where", "month = 3"],
            "no field 'month' to filter on; this index has document, id",
        ),
        (["search", "OUT", "q", "--where", "year = x"], "the field 'year' is a number; got 'x'"),
        (
            ["search", "OUT", "q", "--where", "year"],
            "cannot read the filter 'year' at 'year'; expected FIELD OP VALUE",
        ),
        (["search", "OUT", "q", "--field", "text"], "--field is for folders and files"),
        (["search", "OUT"], "expected queries either as arguments or with --queries"),
        (["search", "c.txt", "q", "--model", "m", "--mode", "text"], "--mode is for an index"),
        (
            ["search", "OUT", "q", "--task", "NQ", "--instruction", "x"],
            "expected at most one of --task and --instruction",
        ),
        (["index", "OUT", "--add", "OUT", "--kind", "rq"], "--add and --delete keep the settings"),
        (["ask", "OUT", "q", "--endpoint", "http://x"], "endpoint and --chat-model together"),
        (["ask", "nowhere", "q"], "nowhere is not an index"),
    ],
)
def test_refusals(out: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(NvembedError, match=message):
        run(*[str(out) if argument == "OUT" else argument for argument in arguments])


def ask(capfd: pytest.CaptureFixture[str], *arguments: Any) -> tuple[str, str]:
    capfd.readouterr()
    run("ask", *arguments)
    return tuple(capfd.readouterr())  # type: ignore[return-value]


def test_ask(out: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, _ = ask(capfd, out, "which throws?", "--top", "2")
    assert "\nPASSAGES\n" in prompt
    assert prompt.endswith("Question: which throws?\n")
    monkeypatch.setenv("NVEMBED_CHAT_KEY", "k")
    with chat_server("See [2].", "No: [9].", "Still [9].") as endpoint:
        there = ("--endpoint", endpoint.url, "--chat-model", "small", "--top", 2)
        printed, warned = ask(capfd, out, "which throws?", *there)
        lines = json.loads(json.dumps(endpoint.requests[0]["messages"][1]["content"])).splitlines()
        second = json.loads(lines[2])
        assert printed.splitlines()[0] == "See [2]."
        assert printed.splitlines()[2:] == [f"[2] {second['document']}, characters 0-{len(second['text'])}"]
        assert warned == ""
        assert endpoint.keys == ["Bearer k"]
        printed, warned = ask(capfd, out, "which throws?", *there, "--json")
        said = json.loads(printed)
        assert (said["answer"], said["citations"], said["absent"]) == ("Still [no such passage].", [], [9])
        assert "passages that do not exist: [9]" in warned.replace("\n", " ")
