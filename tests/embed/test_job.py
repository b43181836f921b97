"""A job on a folder: what is written, resumed, refused, skipped; and read back."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="the extra 'corpus' is not installed")
pq = pytest.importorskip("pyarrow.parquet", reason="the extra 'corpus' is not installed")
pytest.importorskip("pypdfium2", reason="the extra 'corpus' is not installed")

from corpora import DIM, content, encode, make_corpus, settings, vector, word_offsets  # noqa: E402

from nvembed.embed import plan, shard  # noqa: E402
from nvembed.embed.check import check_embedded  # noqa: E402
from nvembed.embed.embedded import open_embedded, vectors_of  # noqa: E402
from nvembed.embed.job import EmbedSettings, local_engine, open_job  # noqa: E402
from nvembed.embed.plan import read_plan, read_shard, stamp  # noqa: E402
from nvembed.embed.records import CorpusReading  # noqa: E402
from nvembed.errors import DataError, InputError, NumericsError, OutputError  # noqa: E402
from nvembed.read.corpus import list_files  # noqa: E402

HELPERS = Path(__file__).parents[1] / "helpers"
READING = CorpusReading(shard_passages=4)
NAMES = {"corpus": "c", "model": "m"}


def run(
    corpus: Path,
    out: Path,
    *,
    reading: CorpusReading = READING,
    using: EmbedSettings | None = None,
    encode: Callable[[Sequence[str]], Any] = encode,
    told: list[tuple[int, int]] | None = None,
) -> dict[str, Any]:
    with open_job(out, list_files(str(corpus)), reading, lambda *_: None) as job:
        progress = (lambda *pair: told.append(pair)) if told is not None else (lambda *_: None)
        engine = local_engine(word_offsets, encode)
        return job.run(using or settings(), engine, progress, names=NAMES)


class Stopped(BaseException):
    pass


def test_a_stop_does_not_wait_for_the_rest_of_a_long_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next shard is read on a thread, which Python waits for."""
    monkeypatch.setattr("nvembed.read.chunk.WINDOW_CHARACTERS", 200)
    begun, windows = threading.Event(), 0

    def slow_offsets(texts: Sequence[str]) -> list[np.ndarray]:
        nonlocal windows
        if texts[0].startswith("long"):
            windows += 1
            begun.set()
            time.sleep(0.002)
        return word_offsets(texts)

    def stopped(_: Sequence[str]) -> np.ndarray:
        assert begun.wait(120)
        raise Stopped

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("short")
    (corpus / "b.txt").write_text("long " * 200_000)
    reading = CorpusReading(shard_passages=1)
    with open_job(tmp_path / "out", list_files(str(corpus)), reading, lambda *_: None) as job:
        engine = local_engine(slow_offsets, stopped)
        with pytest.raises(Stopped):
            job.run(settings(), engine, lambda *_: None, names=NAMES)
    assert 0 < windows < 5000


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus")


def test_what_is_written(corpus: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    manifest = run(corpus, tmp_path / "out", told=told)
    found = open_embedded(tmp_path / "out")
    assert check_embedded(tmp_path / "out").damages == []
    assert found.manifest == manifest
    assert (found.dim, found.manifest["settings"]["storage"]) == (DIM, "float16")
    rows = [row for batch in found.batches() for row in batch.to_pylist()]
    assert len(rows) == found.rows == sum(shard["rows"] for shard in manifest["shards"])
    counts = manifest["counts"]
    assert counts["documents"] == len({row["document"] for row in rows}) == 24
    assert (counts["files"], counts["skipped"], counts["truncated"], counts["empty"]) == (7, 0, 0, 0)
    assert counts["tokens"] == sum(row["tokens"] for row in rows)
    assert len({row["id"] for row in rows}) == len(rows)
    assert manifest["ignored"] == {".png": 1}
    files = [json.loads(line) for line in (tmp_path / "out" / "files.jsonl").read_text().splitlines()]
    for file in files:
        raw = (corpus / file["path"]).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    texts = {"b.txt": (corpus / "b.txt").read_bytes().decode()}
    for row in rows:
        np.testing.assert_array_equal(row["vector"], vector(row["text"]).astype(np.float16))
        whole = texts.get(row["document"])
        assert whole is None or whole[row["start"] : row["end"]] == row["text"]
    pages = {json.loads(row["metadata"])["page"]: row["text"] for row in rows if row["document"] == "d.pdf"}
    assert pages.keys() == {1, 2}
    assert pages[2].startswith("Document 4")
    blocks = list(found.vectors(rows=3))
    assert all(block.dtype == np.float16 and block.shape[1] == DIM and len(block) <= 3 for block in blocks)
    assert sum(map(len, blocks)) == len(rows)
    assert told[0][0] == 0
    assert told[-1][0] == told[-1][1]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "files.jsonl",
        "manifest.json",
        "shards",
    ]


def test_whole_documents_and_float32(corpus: Path, tmp_path: Path) -> None:
    manifest = run(
        corpus, tmp_path / "out", using=settings(chunk_tokens=None, overlap_tokens=None, storage="float32")
    )
    found = open_embedded(tmp_path / "out")
    (batch,) = [b for b in found.batches() if "sub/e.jsonl:r8" in b["id"].to_pylist()]
    row = batch["id"].to_pylist().index("sub/e.jsonl:r8")
    assert batch["truncated"][row].as_py()
    assert manifest["counts"]["passages"] == 24
    assert manifest["counts"]["truncated"] == sum(
        sum(b["truncated"].to_pylist()) for b in found.batches(["truncated"])
    )
    np.testing.assert_array_equal(vectors_of(batch)[row], vector(batch["text"][row].as_py()))


def test_a_stopped_job_goes_on_with_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "one")
    expected = content(tmp_path / "one")
    assert sum(name.startswith("shards/") for name in expected) >= 5
    embedded: list[str] = []

    def stops(texts: Sequence[str]) -> Any:
        embedded.extend(texts)
        parts = list(encode(texts))
        if len(embedded) % 3 == 1:
            raise KeyboardInterrupt
        return parts

    for _ in range(30):
        try:
            run(corpus, tmp_path / "two", encode=stops)
            break
        except KeyboardInterrupt:
            with pytest.raises(DataError, match="an unfinished job"):
                open_embedded(tmp_path / "two")
    assert content(tmp_path / "two") == expected
    assert run(corpus, tmp_path / "two", encode=lambda _: pytest.fail("nothing is computed twice"))
    assert content(tmp_path / "two") == expected


def test_shards_are_read_again_from_the_plan(corpus: Path, tmp_path: Path) -> None:
    source = list_files(str(corpus))
    stamped = stamp(source, lambda *_: None)
    (tmp_path / "out").mkdir()
    plan.make_plan(tmp_path / "out", source, stamped, READING, lambda *_: None)
    shards = list(read_plan(tmp_path / "out"))
    ids = [doc.id for shard in shards for doc in read_shard(shard, stamped, READING)]
    assert len(ids) == len(set(ids)) == 24
    assert [len(list(read_shard(shards[i], stamped, READING))) for i in (3, 1)] == [
        sum(span.documents for span in shards[i].spans) for i in (3, 1)
    ]
    os.utime(corpus / "a.md", (1, 1))
    with pytest.raises(DataError, match=r"a\.md was changed while the corpus was embedded: restore it"):
        list(read_shard(shards[0], stamped, READING))


def interrupted(corpus: Path, out: Path, reading: CorpusReading = READING) -> None:
    calls: list[int] = []

    def stops(texts: Sequence[str]) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(texts)

    with pytest.raises(KeyboardInterrupt):
        run(corpus, out, reading=reading, encode=stops)


@pytest.mark.parametrize("finished", [False, True])
def test_another_corpus_or_setting_is_refused(corpus: Path, tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "out"
    if finished:
        run(corpus, out)
    else:
        interrupted(corpus, out)
    before = content(out)
    marker = "manifest" if finished else "job"
    message = rf"out/{marker}\.json is of a run with another chunk_tokens \(.* there: 20, here: 30\)"
    with pytest.raises(OutputError, match=message):
        run(corpus, out, using=settings(chunk_tokens=30))
    with pytest.raises(OutputError, match="another fingerprint"):
        run(corpus, out, using=settings(fingerprint="0" * 32))
    with pytest.raises(OutputError, match=r"another on_error \(on_error there: \"stop\", here: \"skip\"\)"):
        run(corpus, out, reading=READING.model_copy(update={"on_error": "skip"}))
    original = (corpus / "a.md").read_bytes()
    (corpus / "a.md").write_bytes(original + b"more")
    (corpus / "new.md").write_text("new")
    (corpus / "b.txt").rename(corpus / "away")
    message = r"a\.md has changed, new\.md is new, b\.txt is missing\. .*--update"
    with pytest.raises(OutputError, match=message):
        run(corpus, out)
    assert content(out) == before
    (corpus / "a.md").write_bytes(original)
    (corpus / "new.md").unlink()
    (corpus / "away").rename(corpus / "b.txt")
    run(corpus, out)


def test_a_damaged_or_foreign_shard_is_computed_again(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "one")
    out = tmp_path / "two"
    interrupted(corpus, out)
    first = out / "shards" / "00000.parquet"
    first.write_bytes(first.read_bytes()[:-9])
    leftover = out / "shards" / ".00002.parquet.a_b0c1d2" / "00002.parquet"
    leftover.parent.mkdir()
    leftover.write_bytes(b"PAR1")
    run(corpus, tmp_path / "other", using=settings(fingerprint="e" * 32))
    (out / "shards" / "00001.parquet").write_bytes(
        (tmp_path / "other" / "shards" / "00001.parquet").read_bytes()
    )
    run(corpus, out)
    assert content(out) == content(tmp_path / "one")


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"PAR1")])
def test_a_finished_job_computes_lost_shards_again(
    corpus: Path, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    expected = content(out)
    lose(out / "shards" / "00001.parquet")
    with pytest.raises(OutputError, match="another chunk_tokens"):
        run(corpus, out, using=settings(chunk_tokens=5))
    with pytest.raises(OutputError, match="another shard_passages"):
        run(corpus, out, reading=CorpusReading(shard_passages=5))
    (corpus / "new.md").write_text("New.")
    with pytest.raises(OutputError, match=r"new\.md is new"):
        run(corpus, out)
    (corpus / "new.md").unlink()
    with pytest.raises(DataError, match="an unfinished job"):
        open_embedded(out)
    told: list[tuple[int, int]] = []
    run(corpus, out, told=told)
    assert told[0][0] > 0  # the other shards were there
    assert told[0][0] < told[-1][0] == told[-1][1]
    assert content(out) == expected


def test_one_job_at_a_time(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = list_files(str(corpus))
    with open_job(out, source, READING, lambda *_: None):
        code = (
            "import sys; from pathlib import Path; from nvembed.embed.job import open_job\n"
            "from nvembed.embed.records import CorpusReading; from nvembed.read.corpus import list_files\n"
            "with open_job(Path(sys.argv[2]), list_files(sys.argv[1]), CorpusReading(), print): pass"
        )
        done = subprocess.run([sys.executable, "-c", code, corpus, out], capture_output=True, text=True)
        assert f"out is being written by another job (process {os.getpid()} on " in done.stderr
        assert "wait for it, or write to another folder" in done.stderr
    run(corpus, out)


def test_a_folder_with_something_else(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"expected a new folder"):
        run(corpus, corpus)
    (tmp_path / "home" / ".git").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"home contains \.git"):
        run(corpus, tmp_path / "home")
    assert (tmp_path / "home" / ".git").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write to .*file: File exists"):
        run(corpus, tmp_path / "file")


def break_corpus(corpus: Path) -> None:
    (corpus / "d.pdf").write_bytes(b"%PDF-1.4 broken")
    (corpus / "empty.md").write_text("")
    (corpus / "latin.txt").write_bytes(b"caf\xe9")
    (corpus / "sub" / "f.csv").write_text('text\nfine\n"open')
    with (corpus / "sub" / "e.jsonl").open("a") as file:
        file.write('{"text": \n{"_id": "r2", "text": "again"}\n{"_id": "r9", "text": "last"}\n')


def test_what_cannot_be_read_stops_or_is_recorded(corpus: Path, tmp_path: Path) -> None:
    break_corpus(corpus)
    with pytest.raises(DataError) as caught:
        run(corpus, tmp_path / "out")
    for name in ("d.pdf", "empty.md", "latin.txt", "f.csv:3", "e.jsonl:9", "e.jsonl:10", "--on-error skip"):
        assert name in str(caught.value)
    assert content(tmp_path / "out") == {}
    manifest = run(corpus, tmp_path / "out", reading=READING.model_copy(update={"on_error": "skip"}))
    reasons = {entry["path"]: entry["reason"] for entry in manifest["skipped"]}
    assert manifest["counts"]["skipped"] == len(manifest["skipped"]) == 6
    assert "cut off" in reasons["d.pdf"]
    assert "no text" in reasons["empty.md"]
    assert "latin.txt:1: not UTF-8" in reasons["latin.txt"]
    assert "f.csv:3: not CSV" in reasons["sub/f.csv"]
    lines = [entry["reason"] for entry in manifest["skipped"] if entry["path"] == "sub/e.jsonl"]
    assert "e.jsonl:9: not JSON" in lines[0]
    assert "e.jsonl:10: the id 'sub/e.jsonl:r2' occurs twice, first at " in lines[1]
    documents = {
        d for b in open_embedded(tmp_path / "out").batches(["document"]) for d in b["document"].to_pylist()
    }
    assert {"sub/e.jsonl:r9", "sub/f.csv:0", "sub/g.parquet:9"} <= documents
    assert len(documents) == manifest["counts"]["documents"] == 23


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, text in ((b"caf\xe9.txt", "A text."), (b"\xe9.md", "")):
        (corpus / os.fsdecode(name)).write_text(text)
    manifest = run(corpus, tmp_path / "out", reading=CorpusReading(on_error="skip"))
    assert [skipped["path"] for skipped in manifest["skipped"]] == ["\\udce9.md"]
    (batch,) = open_embedded(tmp_path / "out").batches()
    assert batch["document"].to_pylist() == ["caf\\udce9.txt"]
    assert run(corpus, tmp_path / "out", reading=CorpusReading(on_error="skip")) == manifest


def test_nothing_readable_or_too_much_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip = READING.model_copy(update={"on_error": "skip"})
    (tmp_path / "a.jsonl").write_text("oops\n" * 30)
    with pytest.raises(DataError, match=r"no document can be read: 30 were skipped; .*:1: not JSON"):
        run(tmp_path / "a.jsonl", tmp_path / "out", reading=skip)
    monkeypatch.setattr(plan, "MAX_SKIPPED", 10)
    with pytest.raises(DataError, match=r"more than 10 files or records cannot be read; .*a\.jsonl:11"):
        run(tmp_path / "a.jsonl", tmp_path / "out", reading=skip)


def test_many_faults_of_one_file_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("oops\n" * 250 + '{"text": "one two"}\n')
    manifest = run(tmp_path / "a.jsonl", tmp_path / "out", reading=CorpusReading(on_error="skip"))
    assert len(manifest["skipped"]) == 101
    assert manifest["skipped"][-1]["reason"].endswith("a.jsonl: 150 more records cannot be read")


def test_a_file_that_cannot_be_opened_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("one two")
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path.name == "b.md":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    files = list_files(str(tmp_path))
    with pytest.raises(DataError, match=r"b\.md: Permission denied"):
        plan.stamp(files, lambda *_: None)
    one, other = plan.stamp(files, lambda *_: None, on_error="skip")
    assert one.sha256 == hashlib.sha256(b"one two").hexdigest()
    assert other.sha256 not in (one.sha256, hashlib.sha256(b"").hexdigest())


def test_empty_records_and_a_prompt_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "  "}\n{"text": "one two"}\n')
    manifest = run(tmp_path / "a.jsonl", tmp_path / "out")
    assert manifest["counts"]["empty"] == 2
    rows = [row for batch in open_embedded(tmp_path / "out").batches() for row in batch.to_pylist()]
    assert [(r["id"], r["start"], r["end"]) for r in rows] == [("0#0", 0, 0), ("1#0", 0, 0), ("2#0", 0, 7)]


def wrong(change: Callable[[Any], Any]) -> Callable[[Sequence[str]], Any]:
    return lambda texts: [change(part) for part in encode(texts)]


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        (wrong(lambda p: replace(p, vectors=p.vectors * np.nan)), NumericsError, "not finite as float16"),
        (wrong(lambda p: replace(p, vectors=p.vectors[:, 1:])), DataError, r"expected \(\d, 8\)"),
        (lambda texts: [], DataError, r"0 vectors of \d+ passages"),
    ],
)
def test_wrong_vectors_leave_nothing(
    corpus: Path, tmp_path: Path, broken: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(corpus, tmp_path / "out", encode=broken)
    assert not list((tmp_path / "out" / "shards").iterdir())
    run(corpus, tmp_path / "out")


def test_a_full_disk(corpus: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for it; then there is room again."""
    run(corpus, tmp_path / "one", using=settings(dim=DIM))
    code = """
import resource, sys
from pathlib import Path
import test_job as t
resource.setrlimit(resource.RLIMIT_FSIZE, (3500, 3500))
t.run(Path(sys.argv[1]), Path(sys.argv[2]))
"""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, corpus, tmp_path / "two"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": f"{here}:{here}/../helpers:{here}/..:{os.environ.get('PYTHONPATH', '')}",
        },
    )
    assert "OutputError: could not write" in done.stderr, done.stderr
    assert "File too large" in done.stderr
    assert not [p for p in (tmp_path / "two").rglob(".*") if p.is_dir()]
    run(corpus, tmp_path / "two")
    assert content(tmp_path / "two") == content(tmp_path / "one")


MEMORY = """
import sys, tracemalloc
from pathlib import Path
from corpora import settings
from test_job import run
from nvembed.embed.records import CorpusReading

folder = Path(sys.argv[1])
whole, reading = settings(chunk_tokens=None, overlap_tokens=None), CorpusReading(shard_passages=30)
run(folder / "small.jsonl", folder / "before", using=whole, reading=reading)  # imports what it needs
tracemalloc.start()
run(folder / "large.jsonl", folder / "out", using=whole, reading=reading)
print(tracemalloc.get_traced_memory()[1])
"""


def test_memory_is_bounded_by_a_shard(tmp_path: Path) -> None:
    """Ids are on disk and texts come a shard at a time: 24 MB of corpus in far less.

    In a process of its own: tables of the interpreter grow in steps, after many tests by 16 MB.
    """
    line = json.dumps({"text": "word " * 600}) + "\n"
    (tmp_path / "small.jsonl").write_text(line * 60)
    (tmp_path / "large.jsonl").write_text(line * 8_000)
    places = os.pathsep.join([*map(str, (HELPERS, Path(__file__).parent)), os.environ.get("PYTHONPATH", "")])
    peak = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": places},
        check=True,
    )
    assert int(peak.stdout) < 8_000_000


def test_folders_that_are_no_embedded_corpus(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not an embedded corpus: nvembed embed CORPUS "):
        open_embedded(tmp_path)
    out = tmp_path / "out"
    run(corpus, out)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 3}))
    with pytest.raises(DataError, match=r"manifest\.json: format: .*got 3"):
        open_embedded(out)
    path.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: .*expected JSON"):
        open_embedded(out)
    path.write_text(json.dumps(manifest))
    last = out / "shards" / manifest["shards"][-1]["name"]
    raw = bytearray(last.read_bytes())
    raw[60] ^= 1
    last.write_bytes(raw)
    assert [damage.path for damage in check_embedded(out).damages] == [last]
    last.write_bytes(raw[:-1])
    with pytest.raises(DataError, match=r"parquet has [\d,]+ bytes; expected [\d,]+"):
        open_embedded(out)
    last.unlink()
    with pytest.raises(DataError, match="parquet is missing"):
        open_embedded(out)


def test_sizes_out_of_range(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="passages of 5 tokens with an overlap of 5"):
        run(corpus, tmp_path / "out", using=settings(chunk_tokens=5, overlap_tokens=5))


def test_columns_are_as_documented(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    with pq.ParquetFile(tmp_path / "out" / "shards" / "00000.parquet") as file:
        assert file.schema_arrow.equals(shard.schema(DIM, "float16"))
        group = file.metadata.row_group(0)
        columns = [group.column(i) for i in range(group.num_columns)]
        compression = {column.path_in_schema: column.compression for column in columns}
        assert compression["vector.list.element"] == "UNCOMPRESSED"
        assert compression["text"] == "ZSTD"
        about = json.loads(file.metadata.metadata[b"nvembed"])
    assert about.keys() == {"format", "job", "shard", "documents", "tokens", "truncated", "empty"}
    document = (Path(__file__).parents[2] / "docs" / "reference" / "embedded-corpus.md").read_text()
    assert all(f"`{name}`" in document for name in [*shard.schema(8, "float16").names, *about])
    example = json.loads(document.split("```json")[1].split("```")[0])
    manifest = open_embedded(tmp_path / "out").manifest
    for name in ("settings", "counts"):
        assert example[name].keys() == manifest[name].keys()
    assert example.keys() == manifest.keys()
    assert example["shards"][0].keys() == manifest["shards"][0].keys()


def test_a_format_1_folder_is_read_and_taken_as_finished(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["notes"], manifest["settings"]["delimiter"], manifest["settings"]["encoding"]
    path.write_text(json.dumps({**manifest, "format": 1}))
    assert open_embedded(out).rows == manifest["counts"]["passages"]
    never = lambda _: pytest.fail("nothing is computed")  # noqa: E731
    assert run(corpus, out, encode=never)["format"] == 1


def test_shards_have_their_number(corpus: Path, tmp_path: Path) -> None:
    """A shard copied over another, or two that change places, are computed again."""
    run(corpus, tmp_path / "one")
    expected = content(tmp_path / "one")
    for finished in (False, True):
        out = tmp_path / f"out{finished}"
        run(corpus, out) if finished else interrupted(corpus, out)
        first, second = (out / "shards" / f"0000{i}.parquet" for i in (0, 1))
        one, two = first.read_bytes(), second.read_bytes()
        second.write_bytes(one)
        run(corpus, out)
        assert content(out) == expected
        first.write_bytes(two)
        second.write_bytes(one)
        run(corpus, out)
        assert content(out) == expected


@pytest.mark.parametrize("finished", [False, True])
def test_damaged_bytes_are_noticed_and_mended(corpus: Path, tmp_path: Path, finished: bool) -> None:
    run(corpus, tmp_path / "one")
    expected = content(tmp_path / "one")
    out = tmp_path / "out"
    run(corpus, out) if finished else interrupted(corpus, out)
    path = out / "shards" / "00000.parquet"
    whole = path.read_bytes()
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        begins = [group.column(i).data_page_offset for i in range(group.num_columns)]
        sizes = [group.column(i).total_compressed_size for i in range(group.num_columns)]
    for begin, size in zip(begins, sizes, strict=True):  # the end of each column's page
        damaged = bytearray(whole)
        damaged[begin + size - 1] ^= 0x10
        path.write_bytes(damaged)
        if finished:
            with pytest.raises(DataError, match=r"00000\.parquet"):
                list(open_embedded(out).batches())
        run(corpus, out)
        assert content(out) == expected


def test_altered_records_are_refused_by_key(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(corpus, out)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in (
        ("dim", -1), ("dim", "8"), ("dim", None), ("shards", []), ("shards", [{}]), ("shards", {"a": 1}),
        ("counts", None), ("settings", 3), ("skipped", [1]), ("ignored", {"a": "b"}), ("extra", 1),
        ("files_sha256", "x"), ("shards", [{**manifest["shards"][0], "name": "../../x.parquet"}]),
    ):  # fmt: skip
        path.write_text(json.dumps({**manifest, key: value}))
        for use in (lambda: open_embedded(out), lambda: run(corpus, out)):
            with pytest.raises(DataError, match=rf"manifest\.json: {key}"):
                use()
    for text in ("", "[]", "null", "{" * 10_000, path.read_text()[:-40], "\0"):
        path.write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json: "):
            open_embedded(out)


@pytest.mark.parametrize("name", ["job.json", "plan.json", "plan.jsonl", "files.jsonl"])
def test_altered_plans_are_refused(corpus: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    interrupted(corpus, out)
    for text in ("{}", "[1]", "{", '{"spans": 3}'):
        (out / name).write_text(text)
        with pytest.raises((DataError, OutputError), match=name.replace(".", r"\.")):
            run(corpus, out)


def update(corpus: Path, out: Path, embedded: list[str], stop_after: int = 10**9) -> dict[str, Any]:
    def counting(texts: Sequence[str]) -> Any:
        embedded.extend(texts)
        if len(embedded) > stop_after:
            raise KeyboardInterrupt
        return encode(texts)

    with open_job(out, list_files(str(corpus)), READING, lambda *_: None, update=True) as job:
        earlier = job.earlier_shards("")
        engine = local_engine(word_offsets, earlier.reusing(counting) if earlier else counting)
        return job.run(settings(), engine, lambda *_: None, names=NAMES)


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [row for batch in open_embedded(out).batches() for row in batch.to_pylist()]


@pytest.mark.parametrize("finished", [False, True])
def test_an_update_embeds_what_has_changed(corpus: Path, tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "out"
    run(corpus, out) if finished else interrupted(corpus, out)
    (corpus / "a.md").write_text((corpus / "a.md").read_text().replace("sentence 8", "sentence eight"))
    (corpus / "0.md").write_text("A new file comes first.")
    (corpus / "b.txt").unlink()
    with pytest.raises(OutputError, match="--update"):
        run(corpus, out)
    embedded: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        update(corpus, out, embedded, stop_after=1 if finished else 5)
    if finished:
        assert open_embedded(out).manifest["counts"]["documents"] == 24, "as it was until all is done"
    update(corpus, out, embedded)
    run(corpus, tmp_path / "fresh")
    assert rows_of(out) == rows_of(tmp_path / "fresh")
    if finished:
        assert all("new file" in text or "eight" in text for text in embedded)
    assert not (out / ".next").exists()
    embedded.clear()
    update(corpus, out, embedded)
    assert not embedded


def test_an_update_that_was_killed_while_it_took_over(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "old")
    (corpus / "a.md").write_text("Other.")
    run(corpus, tmp_path / "new")
    expected = content(tmp_path / "new")
    for step in range(4):
        out = tmp_path / f"out{step}"
        shutil.copytree(tmp_path / "old", out)
        shutil.copytree(tmp_path / "new", out / ".next")
        (out / ".next" / ".lock").unlink()
        if step > 0:
            (out / "manifest.json").unlink()
        if step > 1:
            shutil.rmtree(out / "shards")
            (out / ".next" / "shards").rename(out / "shards")
        if step > 2:
            (out / ".next" / "files.jsonl").replace(out / "files.jsonl")
        run(corpus, out, encode=lambda _: pytest.fail("nothing is computed"))
        assert content(out) == expected


@pytest.mark.parametrize("cut", [0.0, 0.5])
def test_a_damaged_plan_is_reported(corpus: Path, tmp_path: Path, cut: float) -> None:
    interrupted(corpus, tmp_path / "out")
    plan = tmp_path / "out" / "plan.jsonl"
    lines = plan.read_bytes().splitlines(keepends=True)
    plan.write_bytes(b"".join(lines[: int(cut * len(lines))]))
    with pytest.raises(DataError, match=r"plan\.jsonl is damaged"):
        run(corpus, tmp_path / "out")


def test_a_lost_list_of_files_is_written_again(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    before = content(tmp_path / "out")
    (tmp_path / "out" / "files.jsonl").unlink()
    run(corpus, tmp_path / "out")
    assert content(tmp_path / "out") == before
    (tmp_path / "out" / "files.jsonl").unlink()
    (corpus / "b.txt").write_text("other")
    with pytest.raises(DataError, match=r"files\.jsonl is missing"):
        run(corpus, tmp_path / "out")
