"""A folder that is indexed, changed and updated: the same as a fresh index, whatever happened between."""

import asyncio
import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from conftest import TINY_A
from nvembed import Index
from nvembed.encoder import Encoder
from nvembed.errors import InputError, OutputError
from nvembed.indexing import folder as folders
from nvembed.indexing.documents import records_of
from nvembed.indexing.folder import CHANGING
from nvembed.indexing.index import Model
from nvembed.search.index import IndexOptions, open_index

TEXTS = {
    "cats.md": "# Cats\n\nA cat sleeps on the sofa all day.",
    "dogs.md": "# Dogs\n\nThe dog runs in the park.",
    "sub/judo.txt": "Judo throws are allowed in freestyle wrestling.",
    "sub/lunch.txt": "The canteen serves lunch from half past eleven.",
}
ROWS = [
    {"id": "a", "text": "An atom is small.", "year": 2020},
    {"id": "b", "text": "A bee flies.", "year": 2021},
]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder.from_pretrained(TINY_A, device="cpu")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    for name, text in TEXTS.items():
        write(folder / name, text)
    write(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def tiny(encoder: Encoder) -> Model:
    return Model(str(TINY_A), "cpu", lambda *_: encoder)


@pytest.fixture
def index(notes: Path, encoder: Encoder) -> Iterator[Index]:
    with Index.build(notes, tiny(encoder)) as built:
        yield built


def content(index: Index) -> list[tuple[Any, ...]]:
    rows = index.passages.store.passages(sorted(index.passages.store.documents())).to_pylist()
    names = ("id", "document", "start", "end", "text", "metadata")
    return sorted((*(row[name] for name in names), tuple(row["vector"])) for row in rows)


def fresh(notes: Path, encoder: Encoder, to: Path) -> list[tuple[Any, ...]]:
    with Index.build(notes, tiny(encoder), to=to) as built:
        return content(built)


def assert_same(one: Sequence[tuple[Any, ...]], other: Sequence[tuple[Any, ...]]) -> None:
    assert [row[:-1] for row in one] == [row[:-1] for row in other]
    vectors = (np.array([row[-1] for row in rows], np.float32) for rows in (one, other))
    np.testing.assert_allclose(*vectors, atol=2e-3)  # a text in another batch, in half precision


def test_an_updated_index_is_a_fresh_one(index: Index, notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    assert str(index.changes) == "0 changed, 6 new, 0 removed, 0 unchanged"
    write(notes / "cats.md", "# Cats\n\nA cat hunts mice at night.")
    write(notes / "new.md", "Radiologists train for years.")
    (notes / "sub/judo.txt").rename(notes / "sport.txt")
    (notes / "sub/lunch.txt").unlink()
    rows = [ROWS[0], {**ROWS[1], "year": 2022}, {"id": "c", "text": "The cow moos."}]
    write(notes / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    changes = index.update()
    assert str(changes) == "2 changed, 2 new, 1 moved, 1 removed, 2 unchanged"
    assert changes.embedded == 3  # cats, radiologists, the cow; not the moved file, nor the bee with its year
    assert_same(content(index), fresh(notes, encoder, tmp_path / "fresh"))
    (hit, *_) = index.search("judo throws", top=1)
    assert hit.document == "sport.txt"
    assert [hit.document for hit in index.search("bee", where="year = 2022")] == ["rows.jsonl:b"]
    again = index.update()
    assert (again.embedded, again.unchanged, again.changed) == (0, 7, 0)


def test_types_and_language_are_decided_again(notes: Path, encoder: Encoder, tmp_path: Path) -> None:
    write(notes / "shop.csv", "id,name,price,version\n1,Mouse,9,1\n2,Cable,3,2\n")
    options = IndexOptions(kinds={"version": "string"})
    with Index.build(notes, tiny(encoder), options=options) as index:
        assert index.passages.record.fields["price"] == "int"
        table = index.passages.record.name
        write(notes / "shop.csv", "id,name,price,version\n1,Mouse,9.5,1\n2,Cable,3,2\n3,Lamp,4,3\n")
        for name in ("cats.md", "dogs.md"):
            text = "Der Hund und die Katze sind nicht im Haus, aber sie ist auch nicht in der Stadt. "
            write(notes / name, text * 2)
        (notes / "sub/judo.txt").unlink()
        (notes / "sub/lunch.txt").unlink()
        write(notes / "rows.jsonl", json.dumps(ROWS[0]) + "\n")
        assert index.update().embedded > 0
        record = index.passages.record
        assert record.name != table
        assert (record.fields["price"], record.fields["version"]) == ("float", "string")
        assert record.language == "german"
        assert [hit.document for hit in index.search("mouse", where="price = 9.5", mode="text")] == [
            "shop.csv:1"
        ]
        assert content(index) == content(Index.open(notes, model=tiny(encoder)))
        with Index.build(notes, tiny(encoder), to=tmp_path / "fresh", options=options) as new:
            assert new.passages.record.fields == record.fields
            assert (new.passages.record.language, new.passages.record.languages) == (
                record.language,
                record.languages,
            )
            assert_same(content(index), content(new))
        assert index.update().embedded == 0
        assert index.passages.record.name == record.name, "nothing to decide"
        for path in notes.rglob("*.*"):
            if path.is_file() and ".nvembed" not in path.parts and path.name != "cats.md":
                path.unlink()
        assert index.update().removed > 0
        assert len(index) == 1


def test_times_do_not_matter(index: Index, notes: Path) -> None:
    (notes / "cats.md").touch()
    assert str(index.update()) == "0 changed, 0 new, 0 removed, 6 unchanged"


@pytest.mark.parametrize("step", ["embed", "add", "delete", "table", "write"])
def test_an_update_that_failed_anywhere_is_completed(
    index: Index, notes: Path, encoder: Encoder, tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(index)
    write(notes / "cats.md", "A cat hunts mice at night.")
    (notes / "dogs.md").unlink()

    def fail(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        if step == "embed":
            patch.setattr("nvembed.indexing.folder.local_engine", fail)
        elif step == "write":
            write_json = folders.write_json
            patch.setattr(
                folders,
                "write_json",
                lambda path, record: (
                    write_json(path, record) if CHANGING in record.files.values() else fail()
                ),
            )
        elif step == "table":
            patch.setattr(folders, "is_decided_anew", lambda _: True)
            patch.setattr(folders, "build", fail)
        else:
            patch.setattr(folders, step, fail)
        with pytest.raises(OutputError, match="disk"):
            index.update()
    after = {row[1]: row for row in content(index)}
    assert all(after[row[1]] == row for row in before if row[1] not in ("cats.md", "dogs.md"))
    write(notes / "late.md", "It came later.")
    index.update()
    assert_same(content(index), fresh(notes, encoder, tmp_path / "fresh"))


def test_a_file_that_cannot_be_read_is_reported_once(index: Index, notes: Path) -> None:
    (notes / "cats.md").write_bytes(b"caf\xe9")
    changes = index.update()
    assert (changes.removed, len(changes.skipped)) == (1, 1)
    assert "cats.md" in changes.skipped[0]
    assert index.update().skipped == ()


def test_added_documents_stay(index: Index, notes: Path) -> None:
    added = index.add([{"id": "extra", "text": "A zebra has stripes.", "year": 1999}])
    assert (added.new, added.embedded) == (1, 1)
    (notes / "cats.md").unlink()
    index.update()
    assert index.search("zebra", top=1, where=["year < 2000"])[0].document == "extra"
    assert index.delete(["extra", "nothing"]) == ["nothing"]
    assert not index.search("zebra", where="year < 2000")
    with pytest.raises(InputError, match=r"dogs\.md"):
        index.add([{"id": "dogs.md", "text": "mine"}, {"id": "rows.jsonl:a", "text": "mine"}])


@pytest.mark.parametrize("form", ["pandas", "arrow", "list"])
def test_documents_of_a_data_frame(form: str, encoder: Encoder, tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {
        "id": [7, 8],
        "text": ["An otter swims.", "A zebra has stripes."],
        "year": [2020, 2021],
        "seen": [datetime(2020, 5, 1), None],
        "score": [0.5, float("nan")],
    }
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    frames = {
        "pandas": lambda: pd.DataFrame(columns),
        "arrow": lambda: pa.table(columns),
        "list": lambda: rows,
    }
    with Index.build(frames[form](), tiny(encoder), to=tmp_path / "index") as index:
        assert (index.changes.new, len(index)) == (2, 2)
        (hit,) = index.search("otter", mode="text", where="year = 2020 and seen < 2021-01-01")
        assert (hit.document, hit.metadata["score"]) == ("7", 0.5)
        assert "score" not in index.search("zebra", mode="text")[0].metadata
        index.add(pd.DataFrame({"id": ["7"], "text": ["An otter sleeps."]}))
        index.delete(["8"])
        assert [hit.text for hit in index.search("otter", mode="text")] == ["An otter sleeps."]
        with pytest.raises(InputError, match="follows no folder"):
            index.update()
    with Index.open(tmp_path / "index", model=tiny(encoder)) as index:
        assert len(index) == 1


def test_documents_that_cannot_be_used(encoder: Encoder, tmp_path: Path) -> None:
    numbered = records_of([{"text": "a"}, {"text": "b"}], numbered=True)
    assert [record["id"] for record in numbered] == ["0", "1"]
    for documents, word in (
        ([{"text": "a"}], "id"),
        ([{"id": "a"}], "text"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], "unique"),
        (["a text"], "dictionary"),
        ("notes", "list"),
    ):
        with pytest.raises(InputError, match=word):
            records_of(documents)
    with pytest.raises(InputError, match="to=FOLDER"):
        Index.build([{"text": "a"}], tiny(encoder))


def test_a_folder_can_be_moved_with_its_index(index: Index, notes: Path, encoder: Encoder) -> None:
    moved = notes.with_name("moved")
    shutil.move(notes, moved)
    write(moved / "new.md", "Radiologists train for years.")
    with Index.open(moved, model=tiny(encoder)) as opened:
        assert str(opened.update()) == "0 changed, 1 new, 0 removed, 6 unchanged"


def test_documents_and_tables(index: Index) -> None:
    text, metadata = index.document("rows.jsonl:b#0")
    assert (text, metadata) == ("A bee flies.", {"year": 2021})
    with pytest.raises(InputError, match="gone"):
        index.document("gone")
    hits = index.search("bee <script>", mode="text")
    assert "<mark>bee</mark>" in hits._repr_html_()
    assert "<script>" not in hits._repr_html_()
    assert "no passage has a word" in index.search("xyzzy")._repr_html_()
    assert "no passage has a word" not in index.search("xyzzy", mode="vector")._repr_html_()
    assert "6 documents" in repr(index)
    assert "year (int)" in index._repr_html_()
    assert len(index) == 6


def test_asynchronous_twins(notes: Path, encoder: Encoder) -> None:
    async def story() -> list[str]:
        index = await Index.abuild(notes, tiny(encoder))
        await index.aadd([{"id": "extra", "text": "A zebra has stripes."}])
        hits = await index.asearch("zebra", top=1, mode="text")
        await index.adelete(["extra"])
        await index.aupdate()
        index.close()
        return [hit.document for hit in hits]

    assert asyncio.run(story()) == ["extra"]


def test_another_model_is_refused(index: Index, notes: Path) -> None:
    with pytest.raises(InputError, match="index already"):
        Index.build(notes, str(TINY_A))
    record = folders.read_folder(index.passages)
    settings = record.settings.model_copy(update={"fingerprint": "0" * 32})
    folders.write_json(
        index.passages.folder / folders.FOLDER, record.model_copy(update={"settings": settings})
    )
    (notes / "cats.md").unlink()
    with pytest.raises(InputError, match="fingerprint"):
        index.update()


def test_a_folder_names_its_index(index: Index, notes: Path) -> None:
    with open_index(notes) as opened:
        assert opened.folder == index.passages.folder
