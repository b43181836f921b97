"""JSON lines from files, gzipped or not: what is read, and where an error is."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvembed.errors import DataError
from nvembed.files import json_lines, json_object


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_objects_with_their_lines(tmp_path: Path, name: str) -> None:
    content = '\ufeff{"a": 1}\r\n\n  \n{"b": "\u2028é"}'.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert list(json_lines(tmp_path / name)) == [(1, {"a": 1}), (4, {"b": "\u2028é"})]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_an_object_comes_back(row: dict[str, object]) -> None:
    line = json.dumps(row, ensure_ascii=False)
    assert json_object("here", line) == json_object("here", line.encode()) == row


BAD = {
    "no file": (None, r"cannot read .*a\.jsonl: No such file"),
    "no object": (b'{"a": 1}\n{oops\n', r"a\.jsonl:2: expected a JSON object, got '\{oops' \(Expecting"),
    "a list": (b"[1]\n", r"a\.jsonl:1: expected a JSON object, got list"),
    "too deep": (b"[" * 200_000, r"a\.jsonl:1: expected a JSON object, got '\[+' \("),
    "huge number": (b'{"a": ' + b"1" * 5000 + b"}", r"a\.jsonl:1: expected a JSON object, got .*digits"),
    "latin-1": (b'{"a": 1}\n{"a": "\xe9"}\n', r"a\.jsonl:2: not UTF-8 \(byte 0xe9 at position 8\)"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), r"a\.jsonl: UTF-16 text; expected UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(json_lines(tmp_path / "a.jsonl"))


def test_a_cut_gzip_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: not a whole gzip file"):
        list(json_lines(tmp_path / "a.jsonl.gz"))
