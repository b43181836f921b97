"""Documents out of every kind of file: text, ids, metadata, pages; from any place; and what is wrong."""

import json
import os
from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow", reason="the extra 'corpus' is not installed")
pytest.importorskip("pypdfium2", reason="the extra 'corpus' is not installed")

from corpora import make_corpus, sentences  # noqa: E402

from nvembed.errors import DataError, DownloadError, InputError  # noqa: E402
from nvembed.read import corpus as sources  # noqa: E402
from nvembed.read import lines as records  # noqa: E402
from nvembed.read.corpus import Document, SourceFile, hub, list_files, read_documents  # noqa: E402


def documents(file: SourceFile, field: str | None = None) -> list[Document]:
    found = [item.document for item in read_documents(file, field=field)]
    assert all(isinstance(item, Document) for item in found)
    return found  # type: ignore[return-value]


def test_a_folder_of_every_kind(tmp_path: Path) -> None:
    source = list_files(str(make_corpus(tmp_path)))
    names = ["a.md", "b.txt", "c.html", "d.pdf", "sub/e.jsonl", "sub/f.csv", "sub/g.parquet"]
    assert [file.name for file in source.files] == names
    assert source.ignored == {".png": 1}
    found = {doc.id: doc for file in source.files for doc in documents(file)}
    assert found["b.txt"].text == f"plain\r\n\r\n{sentences(2, 5)}"
    page = found["c.html"]
    assert [line for line in page.text.splitlines() if line] == [
        "# Head",
        "Ünï & bold text.",
        "* one",
        "* two",
    ]
    assert json.loads(page.metadata) == {"title": "A page"}
    paged = found["d.pdf"]
    assert paged.text == f"{sentences(3, 2)}\n{sentences(4, 2)}\n"
    assert [section.start for section in paged.sections] == [0, paged.text.index("Document 4")]
    record = found["sub/e.jsonl:r3"]
    assert (record.text, json.loads(record.metadata)) == (sentences(3, 3), {"year": 2003, "tags": ["x"]})
    assert [found[f"sub/f.csv:{i}"].text for i in range(2)] == ["one, two\nthree", "four"]
    assert json.loads(found["sub/f.csv:1"].metadata) == {"lang": "de"}
    assert json.loads(found["sub/g.parquet:7"].metadata) == {"n": 7}, "vectors are no metadata"


def test_blank_code_and_json_are_ignored(tmp_path: Path) -> None:
    for name, content in {"__init__.py": "", "a.py": "x = 1\n", "b.json": "{}\n", "c.sh": " \n"}.items():
        (tmp_path / name).write_text(content)
    source = list_files(str(tmp_path))
    assert [file.name for file in source.files] == ["a.py"]
    assert source.ignored == {"blank file": 3}


def test_single_files_and_beir(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    assert [d.id for d in documents(list_files(str(tmp_path / "lines.txt")).files[0])] == ["0", "1"]
    (tmp_path / "one.md").write_text("# Text")
    assert documents(list_files(str(tmp_path / "one.md")).files[0]) == [Document("one.md", "# Text")]
    (tmp_path / "corpus.jsonl").write_text(
        '{"_id": "x", "title": "T", "text": "t", "metadata": {"a": NaN}}\n'
    )
    (beir,) = documents(*list_files(str(tmp_path)).files)
    assert (beir.id, beir.text) == ("x", "T t")
    assert json.loads(beir.metadata) == {"title": "T", "metadata": {"a": None}}
    with pytest.raises(DataError, match=r"no such file or folder: a/b.* is written datasets:a/b"):
        list_files("a/b")
    (tmp_path / "x.png").write_text("")
    with pytest.raises(InputError, match=r"x\.png: .*'\.png'.*\.txt.*\.pdf.*\.docx.*\.jsonl"):
        list_files(str(tmp_path / "x.png"))
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"none: no file that can be read; expected corpus\.jsonl, or files"):
        list_files(str(tmp_path / "none"))


@pytest.mark.parametrize("name", ["sub/e.jsonl", "sub/f.csv", "sub/g.parquet", "lines.txt", "sub/h.arrow"])
def test_reading_begins_anywhere(tmp_path: Path, name: str) -> None:
    make_corpus(tmp_path)
    (tmp_path / "lines.txt").write_bytes("\ufeffé1\r\n\nü2\n".encode())
    schema = pa.schema([("text", pa.string())])
    with pa.OSFile(str(tmp_path / "sub/h.arrow"), "wb") as f, pa.ipc.new_stream(f, schema) as writer:
        for size in (2, 3, 1):
            writer.write_table(pa.table({"text": [f"{size}-{i}" for i in range(size)]}, schema=schema))
    path = tmp_path / name
    kind = path.suffix[1:]
    whole = list(records.file_records(path, kind))
    assert len(whole) >= 2
    for number, record in enumerate(whole):
        assert record.place.row == number
        assert list(records.file_records(path, kind, start=record.place)) == whole[number:]


def test_half_a_surrogate_pair_in_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"text": "a", "whole": "\\ud83d\\ude00", "spelt": ["\\\\ud83d"], "n": NaN}\n'
        '{"text": "a", "cut": ["\\ud83d"]}\n'
    )
    whole, cut = (item.document for item in read_documents(SourceFile(path, "a.jsonl", "jsonl")))
    assert isinstance(whole, Document)
    assert whole.metadata == r'{"whole": "\ud83d\ude00", "spelt": ["\\ud83d"], "n": null}'
    assert isinstance(cut, DataError)
    assert "a.jsonl:2: the field 'cut' has half a surrogate pair" in str(cut)


def test_a_malformed_record_leaves_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n{"text": "\xe9"}\n{"body": "c"}\n{"text": "d"}\n')
    found = [item.document for item in read_documents(SourceFile(path, "a.jsonl", "jsonl"))]
    assert [str(d)[-40:] if isinstance(d, DataError) else d.text for d in found][::4] == ["a", "d"]
    for fault, reason in zip(found[1:4], ["not JSON", "not UTF-8", "no field"], strict=True):
        assert reason in str(fault)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvembed.read.streams.LINE_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "b"}\n')
    found = [item.document for item in read_documents(SourceFile(path, "a.jsonl", "jsonl"))]
    assert [d.text for d in found[::2] if isinstance(d, Document)] == ["a", "b"]
    assert "a.jsonl:2: a line of 5,013 bytes" in str(found[1])


def test_a_data_set_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read through ``datasets`` itself, from a local folder in place of a name."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [json.dumps({"text": f"text {i}", "label": i % 2}) + "\n" for i in range(5)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(rows))
    source = hub(str(tmp_path / "set"))
    found = [doc for file in source.files for doc in documents(file)]
    assert [(doc.id, doc.text) for doc in found] == [(str(i), f"text {i}") for i in range(5)]
    assert json.loads(found[1].metadata) == {"label": 1}
    later = source.files[0]._replace(rows_before=100)
    assert documents(later)[0].id == "100"
    with pytest.raises(InputError, match=r"split is 'train\[:3\]'; expected one whole split"):
        hub(str(tmp_path / "set"), split="train[:3]")
    with pytest.raises(DownloadError, match=r"could not read .*set \(config default, split test"):
        hub(str(tmp_path / "set"), split="test")
    assert sources.HUB == "datasets:"


def test_links_out_of_a_folder_are_read_only_when_asked(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "secret.jsonl").write_text('{"_id": "1", "text": "secret"}\n')
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "own.txt").write_text("own")
    (folder / "sub" / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "more").symlink_to(tmp_path)
    (folder / "gone.txt").symlink_to("nothing")
    (folder / "zero.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.txt")
    listed = list_files(str(folder))
    assert [file.name for file in listed.files] == ["own.txt"]
    assert listed.ignored == {"symbolic link": 4}
    listed = list_files(str(folder), follow_links=True)
    assert [file.name for file in listed.files] == ["own.txt", "sub/link.txt"]
    assert listed.ignored == {"symbolic link": 3}
    beir = tmp_path / "beir"
    beir.mkdir()
    (beir / "corpus.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(DataError, match=r"corpus\.jsonl is a symbolic link.*--follow-links"):
        list_files(str(beir))
    assert [file.name for file in list_files(str(beir), follow_links=True).files] == ["corpus.jsonl"]
