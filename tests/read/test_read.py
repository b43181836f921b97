"""Texts from files: every format, streaming, and each malformed input by its message."""

import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path

import pytest

from nvembed.errors import DataError, InputError
from nvembed.read.beir import Passage, read_qrels, read_stream, read_texts

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TEXTS = ['plain, "quoted"', "two words\u2028one line", "emoji 🦊 and ñ", "", "x" * 200_000]


def write_jsonl(path: Path, records: list[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_txt_one_text_per_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\ntwo\u2028half\nlast".encode())
    assert list(read_texts(path)) == [
        Passage("0", "one"),
        Passage("1", ""),
        Passage("2", "two\u2028half"),
        Passage("3", "last"),
    ]


def test_jsonl_ids_and_title(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"_id": "a", "title": "T", "text": "body "},
            {"id": 7, "title": "", "text": " as it is "},
            {"text": "no id", "other": 1},
            {"_id": None, "title": None, "text": "no title"},
        ],
    )
    expected = [("a", "T body"), ("7", " as it is "), ("2", "no id"), ("3", "no title")]
    assert [(p.id, p.text) for p in read_texts(path)] == expected
    assert [p.text for p in read_texts(write_jsonl(path, [{"title": "T", "text": "x"}]), field="title")] == [
        "T"
    ]
    assert [p.text for p in read_texts(path, field="text")] == ["x"]


def test_every_format_gives_the_same_texts(tmp_path: Path) -> None:
    records: list[object] = [{"_id": str(i), "text": text} for i, text in enumerate(TEXTS)]
    write_jsonl(tmp_path / "a.jsonl", records)
    pq.write_table(pa.table({"_id": [str(i) for i in range(5)], "text": TEXTS}), tmp_path / "a.parquet")
    quoted = [text.replace('"', '""') for text in TEXTS]
    for name, mark in (("a.csv", ","), ("a.tsv", "\t")):
        rows = [f"_id{mark}text", *(f'{i}{mark}"{text}"' for i, text in enumerate(quoted))]
        (tmp_path / name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    expected = [Passage(str(i), text) for i, text in enumerate(TEXTS)]
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv", "a.parquet"):
        assert list(read_texts(tmp_path / name)) == expected, name
    for kind in ("jsonl", "csv"):
        stream = io.BytesIO((tmp_path / f"a.{kind}").read_bytes())
        assert list(read_stream(stream, format=kind)) == expected
    assert [p.text for p in read_stream(io.BytesIO(b"one\ntwo"))] == ["one", "two"]


def test_csv_with_line_breaks_in_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,n\n"one\ntwo",1\n\nthree,2\n')
    assert [(p.id, p.text) for p in read_texts(path)] == [("0", "one\ntwo"), ("1", "three")]


def test_a_large_file_streams(tmp_path: Path) -> None:
    """40 MB of text are read in under 2 MB of memory."""
    path = tmp_path / "a.jsonl"
    line = json.dumps({"text": "word " * 2000}) + "\n"
    path.write_text(line * 4000)
    tracemalloc.start()
    count = sum(1 for _ in read_texts(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000
    assert peak < 2_000_000


BAD: dict[str, tuple[str, bytes, str]] = {
    "not json": ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a\.jsonl:2: not JSON \(Expecting value\)"),
    "not an object": ("a.jsonl", b'["a"]\n', r"a\.jsonl:1: a JSON list; expected one object per line"),
    "nested too deep": ("a.jsonl", b"[" * 200_000, r"a\.jsonl:1: not JSON"),
    "huge number": ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", r"a\.jsonl:1: not JSON"),
    "wrong field": (
        "a.jsonl",
        b'{"_id": "1", "body": "a"}\n',
        r"a\.jsonl:1: no field 'text'. Its fields: '_id', 'body'",
    ),
    "not a string": (
        "a.jsonl",
        b'{"text": 3.5}\n',
        r"the field 'text' is a number \(3\.5\); expected a string",
    ),
    "null": ("a.jsonl", b'{"text": null}\n', r"the field 'text' is a null"),
    "list id": ("a.jsonl", b'{"_id": [1], "text": "a"}\n', r"'_id' is a list"),
    "true id": ("a.jsonl", b'{"_id": true, "text": "a"}\n', r"'_id' is a truth value"),
    "latin-1": ("a.txt", b"good\ncaf\xe9\n", r"a\.txt:2: not UTF-8 \(byte 0xe9 at position 4\).*--encoding"),
    "utf-16": ("a.txt", "hello".encode("utf-16"), r"a\.txt: UTF-16 text; expected UTF-8"),
    "NUL byte": ("a.txt", b"a\nb\0c\n", r"a\.txt:2: a NUL character"),
    "NUL escape": ("a.jsonl", b'{"text": "a\\u0000b"}\n', r"a\.jsonl:1: the field 'text' has a NUL"),
    "surrogate": (
        "a.jsonl",
        b'{"text": "ok"}\n{"text": "a\\ud83d"}\n',
        r"a\.jsonl:2: the field 'text' has half a surrogate pair \(\\ud83d\)",
    ),
    "surrogate in id": (
        "a.jsonl",
        b'{"_id": "\\udc00", "text": "a"}\n',
        r"'_id' has half a surrogate pair",
    ),
    "empty": ("a.txt", b"", r"a\.txt: no text in it; expected at least one"),
    "empty jsonl": ("a.jsonl", b"\n \n", r"a\.jsonl: no text in it"),
    "empty csv": ("a.csv", b"text\n", r"a\.csv: no text in it"),
    "wrong column": (
        "a.csv",
        b"id,body\n1,a\n",
        r"a\.csv:2: no field 'text'. Its fields: 'body', 'id'",
    ),
    "too many columns": ("a.csv", b"id,text\n1,a\n2,b,c\n", r"a\.csv:3: 3 fields; expected 2"),
    "open quote": ("a.csv", b'text\nok\n"open\n', r"a\.csv:3: not CSV \(unexpected end of data\)"),
    "not gzip": ("a.jsonl.gz", b'{"text": "a"}\n', r"a\.jsonl\.gz: not a whole compressed file"),
    "cut gzip": (
        "a.txt.gz",
        gzip.compress(os.urandom(999).hex().encode())[:-20],
        r"not a whole compressed file",
    ),
    "not parquet": ("a.parquet", b"hello", r"a\.parquet: not a whole Parquet file"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_input_says_where(tmp_path: Path, case: str) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_texts(tmp_path / name))


def test_parquet_columns_and_nulls(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["a", None], "n": [1, 2]}), path)
    with pytest.raises(DataError, match=r"a\.parquet: no field 'text'. Its fields: 'body', 'n'"):
        list(read_texts(path))
    with pytest.raises(DataError, match=r"a\.parquet, row 1: the field 'body' is a null"):
        list(read_texts(path, field="body"))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a whole Parquet file"):
        list(read_texts(path, field="body"))


def test_unknown_formats(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown file type '\.docx'.*\.txt, \.jsonl"):
        read_texts(tmp_path / "a.docx")
    with pytest.raises(InputError, match="unknown format 'xml'; expected one of txt, jsonl"):
        read_texts(tmp_path / "a.txt", format="xml")
    with pytest.raises(InputError, match="Parquet cannot be read from standard input"):
        read_stream(io.BytesIO(), format="parquet")


def test_missing_and_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot read .*none\.txt: No such file"):
        list(read_texts(tmp_path / "none.txt"))
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        list(read_texts(tmp_path, format="txt"))

    def refuse(self: Path, mode: str) -> None:  # root may read everything, so chmod proves nothing here
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "a.txt").write_text("a")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"cannot read .*a\.txt: Permission denied"):
        list(read_texts(tmp_path / "a.txt"))


def test_a_readers_error_is_not_the_files(tmp_path: Path) -> None:
    """An OSError of whoever consumes the texts passes untouched."""
    (tmp_path / "a.txt").write_text("a\nb\n")

    def consume() -> None:
        for _ in read_texts(tmp_path / "a.txt"):
            raise OSError("mine")

    with pytest.raises(OSError, match="mine") as caught:
        consume()
    assert not isinstance(caught.value, DataError)


def test_an_id_that_occurs_twice(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [{"_id": "x", "text": "a"}, {"_id": "y", "text": "b"}] * 2)
    assert len(list(read_texts(path))) == 4
    with pytest.raises(DataError, match=r"c\.jsonl:3: the id 'x' occurs twice, first at .*c\.jsonl:1"):
        list(read_texts(path, unique=True))


def test_every_reader_of_judgements_takes_the_same_files(tmp_path: Path) -> None:
    """Headers in any order, whole numbers with a fraction of zero, numbers as ids, odd line ends in ids."""
    path = tmp_path / "test.tsv"
    for text in (
        "1\td\u2028x\t2\n",
        "query-id\tcorpus-id\tscore\n1\td\u2028x\t2.0\n",
        "\ufeffcorpus-id\tscore\tquery-id\r\nd\u2028x\t2\t1\r\n",
        "qid\tpid\tlabel\n\n1\td\u2028x\t2\n",
    ):
        path.write_bytes(text.encode())
        assert read_qrels(path, queries={"1"}, passages={"d\u2028x"}) == {"1": {"d\u2028x": 2}}
    for text, message in {
        "1\td\tnan\n": "whole number",
        "1\td\t1.5\n": "whole number",
        "1\td\t1\n1\td\t1\n": "judged twice",
        "1\t \t1\n": "blank id",
        "2\td\t1\n": "not in the file of queries",
        "1\te\t1\n": "not in the corpus",
        "a\tb\tc\n1\td\t1\n": "header",
        "1 d 1\n": "separated by tabs",
    }.items():
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            read_qrels(path, queries={"1"}, passages={"d"})
