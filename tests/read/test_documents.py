"""Text files and Markdown; and what is the same for every kind of document."""

import codecs
import os
import time
from pathlib import Path

import pytest
from corpora import pdf

from nvembed.errors import DataError
from nvembed.read import child, documents
from nvembed.read.corpus import Document, SourceFile, read_documents
from nvembed.read.documents import DOCUMENT_KINDS, extract
from nvembed.read.front_matter import split_front_matter


def write(folder: Path, name: str, raw: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return path


@pytest.mark.parametrize(
    "raw",
    [
        "é – Ж\r\n".encode(),
        codecs.BOM_UTF8 + "é – Ж\r\n".encode(),
        "é – Ж\r\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "é – Ж\r\n".encode("utf-16-be"),
        "é – Ж\r\n".encode("utf-32"),
    ],
)
@pytest.mark.parametrize("kind", ["text", "markdown"])
def test_text_stays_as_it_is(tmp_path: Path, kind: str, raw: bytes) -> None:
    assert extract(write(tmp_path, "a.txt", raw), kind).text == "é – Ж\r\n"


BAD = {
    "a.md": (b"fine\ncaf\xe9\n", r"a\.md:2: not UTF-8 \(byte 0xe9 at position 4\).*windows-1252"),
    "b.txt": ("fine\nno mark\n".encode("utf-16-le"), r"b\.txt:1: a NUL character.*UTF-16LE"),
    "c.txt": (b"\xff\xfea\x00b", r"c\.txt: not utf-16"),
    "d.md": (b"", r"d\.md: no text"),
    "e.txt": (b" \n\t\n", r"e\.txt: no text"),
    "f.md": (b"---\ntitle: only this\n---\n", r"f\.md: no text"),
    "g.html": (b"<html><script>x</script></html>", r"g\.html: no text"),
    "h.html": (b"", r"h\.html: no text"),
    "i.pdf": (b"", r"i\.pdf: .*damaged"),
    "j.pdf": (pdf(" "), r"j\.pdf: no text \(scanned pages need text recognition first\)"),
    "k.xhtml": (b"<html xmlns='http://www.w3.org/1999/xhtml'><title/></html>", r"k\.xhtml: no text"),
}


@pytest.mark.parametrize("name", BAD)
def test_files_without_readable_text(tmp_path: Path, name: str) -> None:
    raw, message = BAD[name]
    path = write(tmp_path, name, raw)
    with pytest.raises(DataError, match=message):
        extract(path, DOCUMENT_KINDS[path.suffix])


@pytest.mark.parametrize("name", ["a.md", "a.html", "a.pdf"])
def test_missing_and_large_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(DataError, match=rf"cannot read .*{name}: No such file"):
        extract(path, DOCUMENT_KINDS[path.suffix])
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 1 << 20)
    path.write_text("word \n" * 200_000)
    with pytest.raises(DataError, match=rf"{name}: more than 1 MiB; expected one document: split it"):
        extract(path, DOCUMENT_KINDS[path.suffix])


@pytest.mark.skipif(os.name == "nt", reason="file names are bytes only on POSIX")
def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.html"))
    path.write_text("<p>text")
    assert extract(path, "html").text == "text"


def test_front_matter_is_metadata(tmp_path: Path) -> None:
    source = (
        "---\r\ntitle: 'A page'\ntags: [a, b]\ndate: 2024-05-01\n1: {x: .nan}\n"
        "draft: yes\nnone:\n---\r\n# Text\n"
    )
    document = extract(write(tmp_path, "a.md", source), "markdown")
    assert document.text == "# Text\n"
    nested = document.metadata.pop("1")
    assert nested["x"] != nested["x"]
    assert document.metadata == {
        "title": "A page",
        "tags": ["a", "b"],
        "date": "2024-05-01",
        "draft": True,
        "none": None,
    }
    toml = "+++\ntitle = 'T'\nwhen = 2024-05-01T10:00:00Z\n+++\ntext"
    assert split_front_matter(toml)[:2] == ("text", {"title": "T", "when": "2024-05-01T10:00:00+00:00"})
    assert split_front_matter("---\n---\ntext")[:2] == ("text", {})
    assert split_front_matter("---\na: 1\n...\n---\ntext")[:2] == ("---\ntext", {"a": 1})


@pytest.mark.parametrize(
    "source",
    [
        "text\n---\ntitle: x\n---\n",
        "---\nA paragraph between two rules\n---\nmore",
        "---\ntitle: never closed\n\ntext",
        "----\ntitle: x\n----\ntext",
        "---\n- a\n- b\n---\ntext",
        "",
    ],
)
def test_what_is_no_front_matter_stays_in_the_text(source: str) -> None:
    assert split_front_matter(source) == (source, {}, ())


@pytest.mark.parametrize(
    "block",
    [
        "a: [",
        "a: &x [1]\nb: *x",
        "!!python/object:os.system {}",
        "a: " + "[" * 2000,
        "a: " + "[" * 20 + "]" * 20,
        "a: 2024-02-31",
        "a: " + "1" * 5000,
        "- " * 6_000,
        "? " * 6_000,
        "a: 'unclosed",
        "{" * 10_000,
        "a: !!binary x",
    ],
)
def test_front_matter_that_cannot_be_read_is_a_warning(block: str) -> None:
    source = f"---\n{block}\n---\ntext"
    text, metadata, warnings = split_front_matter(source)
    assert (text, metadata) == (source, {})
    assert len(warnings) == 1
    assert "front matter" in warnings[0]


@pytest.mark.parametrize(
    "source",
    [
        "---" + "\n" * 100_000,
        "---\n" + "---x\n" * 20_000,
        "---\n" + "\r" * 100_000,
        "---\n" + "a: b\n" * 12_000 + "---\n",
        "---\n" + "a" * 60_000 + "\n---\n",
        "---\n" + "a " * 30_000 + ": b\n---\n",
        "---\n" + " " * 60_000 + "\n---\n",
        "---\n" + "'" * 60_000 + "\n---\n",
        "---\n" + "# \n" * 20_000 + "\n---\n",
        "+++\n" + "[a]\n" * 15_000 + "+++\n",
        "+++\n" + "a." * 30_000 + "\n+++\n",
        "+++\na = " + "[" * 60_000 + "\n+++\n",
    ],
)
def test_long_front_matter_takes_no_long_time(source: str) -> None:
    start = time.process_time()
    split_front_matter(source)
    assert time.process_time() - start < 20, "time grows with the square of the length"


def test_warnings_are_part_of_a_document(tmp_path: Path) -> None:
    path = write(tmp_path, "a.pdf", pdf("one", " ", "three"))
    (item,) = read_documents(SourceFile(path, "a.pdf", "pdf"))
    assert isinstance(item.document, Document)
    assert item.document.text == "one\n\nthree\n"
    assert [warning.partition(" (")[0] for warning in item.document.warnings] == ["1 of 3 pages have no text"]


def test_the_child_that_reads_is_replaced_after_it_ended(tmp_path: Path) -> None:
    path = write(tmp_path, "a.html", "<p>text")
    assert extract(path, "html").text == "text"
    first = child._reader
    assert first is not None
    assert extract(path, "html").text == "text"
    assert child._reader is first
    first.process.kill()
    first.process.wait()
    assert extract(path, "html").text == "text"
    assert child._reader is not first
