"""Rows of files of every format: what is read, how it is bounded, and where an error is."""

import bz2
import contextlib
import gzip
import json
import lzma
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvembed.errors import DataError, InputError
from nvembed.read import streams
from nvembed.read.lines import TextLayout, file_records, json_object, read_rows


def fields(path: Path, kind: str, **layout: str) -> list[dict[str, object]]:
    rows = []
    for record in file_records(path, kind, layout=TextLayout(**layout)):
        if isinstance(record.fields, DataError):
            raise record.fields
        rows.append(dict(record.fields))
    return rows


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


COMPRESS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_objects_with_their_lines(tmp_path: Path, suffix: str) -> None:
    content = '\ufeff{"a": 1}\r\n\n  \n{"b": "\u2028é"}'.encode()
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    assert list(read_rows(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"b": "\u2028é"})]
    places = [record.place for record in file_records(path, "jsonl")]
    (again,) = file_records(path, "jsonl", start=places[1])
    assert again.fields == {"b": "\u2028é"}


@given(st.dictionaries(st.text(), st.integers(-(2**63), 2**64 - 1) | st.text() | st.none()))
def test_an_object_comes_back(row: dict[str, object]) -> None:
    line = json.dumps(row, ensure_ascii=False)
    if "\0" not in "".join([*row, *(v for v in row.values() if isinstance(v, str))]):
        assert json_object("here", line) == json_object("here", line.encode()) == row


BAD = {
    "no file": (None, r"cannot read .*a\.jsonl: No such file"),
    "no object": (b'{"a": 1}\n{oops\n', r"a\.jsonl:2: not JSON \(Expecting"),
    "a list": (b"[1]\n", r"a\.jsonl:1: a JSON list; expected one object"),
    "too deep to parse": (b"[" * 200_000, r"a\.jsonl:1: not JSON"),
    "too deep to return": (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", r"a\.jsonl:1: .*nested more than 100"),
    "deep objects": (b'{"a": ' * 150 + b"1" + b"}" * 150, r"a\.jsonl:1: .*nested more than 100"),
    "huge number": (b'{"a": ' + b"1" * 5000 + b"}", r"a\.jsonl:1: not JSON"),
    "beyond 64 bits": (b'{"a": [{"b": 18446744073709551616}]}', r"a\.jsonl:1: .*'a'.*64 bits"),
    "far below": (b'{"a": -9223372036854775809}', r"a\.jsonl:1: .*64 bits"),
    "half a pair within": (b'{"a": {"b": ["\\ud83d"]}}', r"a\.jsonl:1: .*half a surrogate \w+ \(\\ud83d"),
    "half a pair in a name": (b'{"\\udc00": 1}', r"a\.jsonl:1: .*half a surrogate pair"),
    "NUL within": (b'{"a": ["x\\u0000"]}', r"a\.jsonl:1: .*NUL"),
    "latin-1": (
        b'{"a": 1}\n{"a": "\xe9"}\n',
        r"a\.jsonl:2: not UTF-8 \(byte 0xe9 at position 8\).*--encoding",
    ),
    "utf-16": ('{"a": 1}'.encode("utf-16"), r"a\.jsonl: UTF-16 text; expected UTF-8.*--encoding utf-16"),
    "nothing": (b"\n", r"a\.jsonl: the file is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / "a.jsonl"))


def test_one_bad_value_leaves_the_other_records(tmp_path: Path) -> None:
    lines = ['{"n": 1}', '{"n": 36893488147419103232}', '{"n": 3}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    first, second, third = (record.fields for record in file_records(tmp_path / "a.jsonl", "jsonl"))
    assert (first, third) == ({"n": 1}, {"n": 3})
    assert isinstance(second, DataError)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_that_are_not_whole(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESS[suffix](b"".join(b'{"a": %d}\n' % (i * 7919 % 1000) for i in range(9999)))
    path = tmp_path / f"a.jsonl{suffix}"
    for content in (whole[: len(whole) // 2], b'{"a": 1}\n'):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jsonl\.\w+: not a whole compressed file"):
            list(read_rows(path))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "latin-1", "utf-8-sig"])
def test_other_encodings(tmp_path: Path, encoding: str) -> None:
    text = "id;text\r\n" + "".join(f"{i};Größe für {i}\r\n" for i in range(30_000))
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode(encoding))
    records = list(file_records(path, "csv", layout=TextLayout(encoding=encoding)))
    assert len(records) == 30_000
    assert records[-1].fields == {"id": "29999", "text": "Größe für 29999"}
    later = file_records(path, "csv", start=records[20_000].place, layout=TextLayout(encoding=encoding))
    assert next(later) == records[20_000]


def test_a_wrong_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text\nna\xefve\n")
    with pytest.raises(DataError, match=r"a\.csv: not text in ascii"):
        fields(tmp_path / "a.csv", "csv", encoding="ascii")
    for encoding in ("nosuch", "", "hex", "rot13", "a\0b"):
        with pytest.raises(InputError, match=r"--encoding .*: unknown"):
            fields(tmp_path / "a.csv", "csv", encoding=encoding)


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(tmp_path: Path, mark: str) -> None:
    other = "," if mark != "," else ";"
    header = mark.join(["id", "text", f'"price{other} net{other} gross{other}"'])
    (tmp_path / "a.csv").write_text(f'{header}\na{mark}"Stift{mark} blau"{mark}9,50\n'.replace("9,50", "9"))
    (row,) = fields(tmp_path / "a.csv", "csv")
    assert row == {"id": "a", "text": f"Stift{mark} blau", f"price{other} net{other} gross{other}": "9"}


def test_a_delimiter_that_is_given(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id:text\na:one, two\n")
    assert fields(tmp_path / "a.csv", "csv", delimiter=":") == [{"id": "a", "text": "one, two"}]
    (tmp_path / "a.tsv").write_text('id\ttext\na\t"one\ttwo"\n')
    assert fields(tmp_path / "a.tsv", "tsv", delimiter="tab") == [{"id": "a", "text": "one\ttwo"}]
    with pytest.raises(InputError, match="expected one character"):
        fields(tmp_path / "a.csv", "csv", delimiter="ab")


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,text\n1,a,b\n")
    with pytest.raises(DataError, match=r"a\.csv:1: two columns are called 'text'"):
        fields(tmp_path / "a.csv", "csv")
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"a\.arrow: two columns are called 'text'"):
        fields(tmp_path / "a.arrow", "arrow")


def test_quotes_of_a_tsv_are_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"To be\n2\tquestion"\n3\tsay "yes"\n')
    assert [row["text"] for row in fields(path, "tsv")] == ['"To be', 'question"', 'say "yes"']


QUOTED = {
    "header": '"id"\t"text"\n"1"\t"a"\n',
    "tab within": 'id\ttext\n1\t"a\tb"\n',
    "line break within": 'id\ttext\n1\t"a\nb"\n',
    "doubled quotes": 'id\ttext\n1\t"say ""yes"""\n',
}


@pytest.mark.parametrize("case", QUOTED)
def test_a_tsv_that_quotes_as_csv(tmp_path: Path, case: str) -> None:
    (tmp_path / "a.tsv").write_text(QUOTED[case])
    expected = {
        "header": "a",
        "tab within": "a\tb",
        "line break within": "a\nb",
        "doubled quotes": 'say "yes"',
    }
    assert fields(tmp_path / "a.tsv", "tsv") == [{"id": "1", "text": expected[case]}]


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "n": [1, 2, 3], "v": [[0.5]] * 3})
    for name, new in (("a.arrow", pa.ipc.new_stream), ("b.feather", pa.ipc.new_file)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
        assert [row for _, row in read_rows(tmp_path / name)] == table.to_pylist()
        (last,) = list(file_records(tmp_path / name, "arrow", field="text"))[2:]
        assert last.fields == {"text": "c", "n": 3}


def test_a_string_of_a_table_that_is_not_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"ok", b"caf\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "a.parquet")
    good, bad = file_records(tmp_path / "a.parquet", "parquet")
    assert good.fields == {"text": "ok"}
    assert isinstance(bad.fields, DataError)


def peak_of_reading(path: Path, kind: str) -> tuple[str, int]:
    """What another process said when it read a file through, and its peak memory in MiB."""
    code = (
        "import sys; from pathlib import Path\n"
        "from nvembed.errors import DataError; from nvembed.read.lines import file_records\n"
        "rows = file_records(Path(sys.argv[1]), sys.argv[2])\n"
        "try: print(sum(not isinstance(row.fields, DataError) for row in rows))\n"
        "except DataError as error: print(error)\n"
        "import re; print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) >> 10)"
    )
    limit = lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), kind], capture_output=True, text=True, preexec_fn=limit
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)


def test_a_dictionary_that_stands_for_gigabytes(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), ["x" * (4 << 20)])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": words}), path, compression="zstd")
    assert path.stat().st_size < 5000
    said, peak = peak_of_reading(path, "parquet")
    assert "expand to more than" in said
    assert peak < 500


def test_a_list_that_stands_for_gigabytes(tmp_path: Path) -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x" * (4 << 20)])
    many = pa.ListArray.from_arrays(pa.array([0, 1000], pa.int32()), words)
    nested = pa.StructArray.from_arrays([many], names=["words"])
    table = pa.table({"text": ["a"], "tags": many, "more": nested})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    (record,) = file_records(tmp_path / "a.arrow", "arrow")
    assert isinstance(record.fields, DataError)
    assert "a record of" in str(record.fields)
    _, peak = peak_of_reading(tmp_path / "a.arrow", "arrow")
    assert peak < 500


def test_long_rows_of_a_small_file(tmp_path: Path) -> None:
    texts = [f"{i}" + "x" * (1 << 20) for i in range(400)]
    pq.write_table(
        pa.table({"text": texts}),
        tmp_path / "a.parquet",
        compression="zstd",
        use_dictionary=False,
        write_batch_size=1,
    )
    said, peak = peak_of_reading(tmp_path / "a.parquet", "parquet")
    assert said == "400"
    assert peak < 500


def test_a_quote_left_open(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\nfine\n"open\n' + "word word word\n" * 3_000_000)
    said, peak = peak_of_reading(path, "csv")
    assert "a.csv:3: a row of more than" in said
    assert peak < 400


def test_a_compressed_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(streams, "MAX_EXPANSION", 100)
    path = tmp_path / "a.txt.xz"
    path.write_bytes(lzma.compress(b"a\n" * 5_000_000))
    with pytest.raises(DataError, match=r"a\.txt\.xz: .* expand to more than"):
        list(file_records(path, "txt"))
    path.write_bytes(lzma.compress(b"a\n" * 500_000))
    assert sum(1 for _ in file_records(path, "txt")) == 500_000


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_damaged_tables_end_in_our_error(tmp_path: Path, suffix: str) -> None:
    """Any byte of a table with strings, lists and dictionaries flipped: read, or refused."""
    table = pa.table({"text": ["one", "two", "three"] * 4, "d": ["k"] * 12, "v": [["a", "b"]] * 12})
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 200)):
        raw = bytearray(whole)
        raw[place] ^= 1 << place % 8
        path.write_bytes(raw)
        with contextlib.suppress(DataError):
            list(file_records(path, suffix))
