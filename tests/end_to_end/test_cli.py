"""The command line as a process: exit codes, streams, pipes and interruptions."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conftest import TINY_A
from nvembed.cli.main import COMMANDS, app_for
from nvembed.encoder import Encoder

pq = pytest.importorskip("pyarrow.parquet")

# An encoder that counts words in 64 buckets: no torch, and a text's vector can be told beforehand.
# A text "sleep" takes ten minutes, so that a process can be interrupted in the midst of its work.
FAKE = """
import sys, time, types, zlib
from itertools import islice
from pathlib import Path
import numpy as np

def offsets(texts):
    import re
    spans = [[m.span() for m in re.finditer("[^ ]+", text)] for text in texts]
    return [np.array(item, dtype=np.int64).reshape(-1, 2) for item in spans]

class Tokenizer:
    def __call__(self, texts, **settings):
        return [types.SimpleNamespace(full_length=3) for _ in texts]
    offsets = staticmethod(offsets)

class Encoder:
    fingerprint, max_length, dtype, dim = "0" * 32, 512, "float32", 64
    tokenizer = Tokenizer()
    replicas = [types.SimpleNamespace(device="cpu", config=types.SimpleNamespace(pooling="mean"))]
    prompts = None

    def document_prompt(self, *, task=None):
        return ""

    def prompt(self, *, task=None):
        from nvembed.text.prompt import format_prompt, instruction_for
        return format_prompt(instruction_for(task))

    @classmethod
    def from_pretrained(cls, path, *, device=None, dtype=None, revision=None, compiled=False):
        print(f"loaded {path} {device} {dtype}", file=sys.stderr)
        return cls()

    def stream(self, texts, *, prompt="", max_length=None, truncate=True, truncate_dim=None,
               batch_tokens=None, show_progress=False):
        texts = iter(texts)
        while window := list(islice(texts, 3)):
            if "sleep" in window:
                print("sleeping", file=sys.stderr, flush=True)
                time.sleep(600)
            vectors = np.full((len(window), self.dim), 1e-3, dtype=np.float32)
            for row, text in enumerate(window):
                for word in (prompt + text).lower().split():
                    vectors[row, zlib.crc32(word.strip('.,?').encode()) % self.dim] += 1
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            counts = np.array([len(text.split()) for text in window])
            yield types.SimpleNamespace(
                vectors=vectors[:, :truncate_dim], num_tokens=counts, truncated=counts > (max_length or 512),
                empty=np.array([not text.strip() for text in window]),
            )

module = types.ModuleType("nvembed.encoder")
module.Encoder = Encoder
sys.modules["nvembed.encoder"] = module
import nvembed.cli.models
nvembed.cli.models.find_model = lambda model, **_: Path(model)
nvembed.indexing.models.own_prompts = lambda model, **_: None
from nvembed.cli.main import main
main()
"""
COMMAND = [sys.executable, "-c", FAKE]


def run(*arguments: str | Path, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, check=False)
    assert done.returncode == code, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    for stream in (done.stdout, done.stderr):  # neither is a terminal
        assert not re.search(rb"[\x00-\x08\x0b-\x1f\x7f]", stream)
    return done


def fake_vectors(texts: list[str], prompt: str = "") -> np.ndarray:
    scope: dict[str, object] = {}
    exec(FAKE.split("module =")[0], scope)
    return np.concatenate([part.vectors for part in scope["Encoder"]().stream(texts, prompt=prompt)])  # type: ignore[operator]


TEXTS = ["judo throws in wrestling", "a radiology technician", "the cat sat", "ñ 🦊", "", "one more"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_version_and_help() -> None:
    assert run("--version").stdout == b"0.1.0\n"
    page = run("--help").stdout.decode()
    assert all(name in page and " ".join(line.split()[:3]) in page for name, line in COMMANDS.items())
    assert run().stdout.decode() == page


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for name, line in COMMANDS.items():
        app_for([name, "--help"])([name, "--help"])
        own = capsys.readouterr().out
        assert line in " ".join(own.split()), "the list shows the first line of the command's own help"
        assert f"nvembed {name}" in own.split("Examples:")[1]


def test_help_is_light() -> None:
    code = "import sys; from nvembed.cli.main import app_for; app_for(['--help'])(['--help'])"
    code += (
        "; print([m for m in ('torch', 'numpy', 'pydantic', 'pyarrow') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch"], "unknown command 'serch': did you mean 'search'?"),
        (["xyzzy"], "unknown command 'xyzzy': expected one of"),
        (["encode", "m"], "requires an argument"),
        (["encode", "m", "a.txt", "b.npy", "--taks", "NQ"], "Did you mean --task?"),
        (["encode", "m", "a.txt", "b.npy", "--dtype", "int7"], '"float32", "bfloat16"'),
        (["search", "m", "c", "q", "--top", "many"], "many"),
    ],
)
def test_usage_errors(arguments: list[str], message: str) -> None:
    done = run(*arguments, code=2)
    assert done.stdout == b""
    assert message in " ".join(done.stderr.decode().split())


@pytest.mark.parametrize("kind", ["npy", "parquet", "jsonl"])
def test_encode_each_format(texts: Path, kind: str) -> None:
    out = texts.parent / f"out.{kind}"
    done = run("encode", "m", texts, out, "--task", "NQ", "--device", "cuda:0,cuda:1", "--dtype", "bfloat16")
    assert done.stdout == b""
    assert b"loaded m ['cuda:0', 'cuda:1'] bfloat16" in done.stderr
    assert re.search(rf"6 texts, 14 tokens in .* -> {out}".encode(), done.stderr)
    prompt = "Instruct: Given a question, retrieve passages that answer the question\nQuery: "
    if kind == "npy":
        vectors = np.load(out)
    elif kind == "parquet":
        table = pq.read_table(out)
        assert table["text"].to_pylist() == TEXTS
        assert json.loads(table.schema.metadata[b"nvembed"])["prompt"] == prompt
        vectors = np.array(table["vector"].to_pylist(), dtype=np.float32)
    else:
        rows = [json.loads(line) for line in out.read_bytes().splitlines()]
        assert [(row["id"], row["text"]) for row in rows] == [(str(i), t) for i, t in enumerate(TEXTS)]
        vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(vectors, fake_vectors(TEXTS, prompt))
    only(texts.parent, "texts.txt", out.name)


def test_encode_from_stdin_to_stdout() -> None:
    source = "".join(json.dumps({"_id": f"q{i}", "body": t}) + "\n" for i, t in enumerate(TEXTS)).encode()
    done = run("encode", "m", "-", "-", "--input-format", "jsonl", "--field", "body", stdin=source)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(6)]
    vectors = np.array([row["vector"] for row in rows], dtype=np.float32)
    np.testing.assert_array_equal(vectors, fake_vectors(TEXTS))


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_encode_takes_delimiter_and_encoding(encoding: str, tmp_path: Path) -> None:
    source = 'id#text\n1#Grüße\n2#"a#b"\n'.encode(encoding)
    (tmp_path / "in.csv").write_bytes(source)
    options = ["--delimiter", "#", "--encoding", encoding]
    for done in (
        run("encode", "m", tmp_path / "in.csv", "-", *options),
        run("encode", "m", "-", "-", "--input-format", "csv", *options, stdin=source),
    ):
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(row["id"], row["text"]) for row in rows] == [("1", "Grüße"), ("2", "a#b")]


def test_cut_texts_are_said(texts: Path) -> None:
    done = run("encode", "m", texts, texts.parent / "o.npy", "--max-length", "3", "--truncate-dim", "8")
    assert b"warning: 1 of 6 texts were cut to 3 tokens" in done.stderr
    assert np.load(texts.parent / "o.npy").shape == (6, 8)


def test_empty_texts_are_said(tmp_path: Path) -> None:
    done = run("encode", "m", "-", tmp_path / "o.npy", stdin=b"one\n\n \ntwo\n")
    assert b"2 of 4 texts are empty" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encode", "m", "none.txt", "o.npy"], "error: cannot read none.txt: No such file"),
        (["encode", "m", "bad.jsonl", "o.npy"], "error: bad.jsonl:2: not JSON"),
        (["encode", "m", "bad.txt", "o.npy"], "error: bad.txt: no text in it"),
        (["encode", "m", "a.txt", "o.bin"], "error: o.bin: unknown file type"),
        (
            ["encode", "m", "a.txt", "-", "--format", "npy"],
            "error: --format is npy; expected jsonl",
        ),
        (["encode", "m", "a.txt", "o.npy", "--task", "NQQ"], "error: no instruction for task 'NQQ'"),
        (
            ["encode", "m", "a.txt", "o.npy", "--task", "NQ", "--prompt", ""],
            "error: expected at most one of --task and --prompt",
        ),
        (
            ["encode", "m", "a.txt", "./a.txt", "--format", "npy"],
            "error: a.txt is also the input, which would",
        ),
        (["search", "none", "q", "--model", "m"], "error: no such file or folder: none"),
        (
            ["search", "a.txt", "--model", "m"],
            "error: expected queries either as arguments or with --queries",
        ),
        (["search", "a.txt", "q"], "error: a.txt has no vectors yet. Give the model"),
    ],
)
def test_errors_are_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    (tmp_path / "bad.txt").write_text("")
    (tmp_path / "a.txt").write_text("a\n")
    done = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in done.stderr
    only(tmp_path, "bad.jsonl", "bad.txt", "a.txt")


def test_a_model_that_is_not_there(texts: Path) -> None:
    """With the real encoder: its error is one message too."""
    code = "from nvembed.cli.main import main; main()"
    arguments = ["encode", "./no/such/model", str(texts), str(texts.parent / "o.npy")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no/such/model" in done.stderr
    assert "Traceback" not in done.stderr
    only(texts.parent, "texts.txt")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("command", ["encode", "search"])
def test_interrupted(tmp_path: Path, command: str, number: int, code: int) -> None:
    corpus = tmp_path / "c.txt"
    corpus.write_text("a\nb\nc\nd\nsleep\n")
    rest = ["m", str(corpus), str(tmp_path / "o.npy")]
    if command == "search":
        rest = [str(corpus), "q", "--model", "m", "--cache", str(tmp_path / "cache")]
    process = subprocess.Popen([*COMMAND, command, *rest], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "sleeping" not in (line := process.stderr.readline()):
        assert line, "the process ended before it could be interrupted"
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in errors
    only(tmp_path, "c.txt", *(["cache"] if command == "search" else []))
    assert not list((tmp_path / "cache").rglob("*.parquet"))


@pytest.mark.parametrize(
    "arguments", [["encode", "m", "-", "-"], ["search", "c.txt", "--model", "m", "--queries", "-"]]
)
@pytest.mark.parametrize("json_lines", [True, False])
def test_a_reader_that_goes_away(tmp_path: Path, arguments: list[str], json_lines: bool) -> None:
    (tmp_path / "c.txt").write_text("a\nb\n")
    if arguments[0] == "search" and json_lines:
        arguments = [*arguments, "--json"]
    read, write = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=tmp_path, stdin=subprocess.PIPE, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    os.close(read)
    _, errors = process.communicate(b"some text\n" * 5000, timeout=300)
    assert process.returncode == 1
    assert b"Traceback" not in errors
    assert b"Broken pipe" not in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(
    "arguments", [["encode", "m", "c.txt", "-"], ["search", "c.txt", "a", "--model", "m"]]
)
def test_standard_output_is_full(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "c.txt").write_text("a\nb\n")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr.endswith("error: No space left on device\n")
    assert "Traceback" not in done.stderr


def test_a_question_in_the_place_of_a_folder(tmp_path: Path) -> None:
    question = "why? " * 100
    done = subprocess.run(
        [*COMMAND, "search", question, "words"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.endswith("File name too long\n")
    assert "Traceback" not in done.stderr


CORPUS = {
    "judo": "Judo throws are allowed in freestyle wrestling.",
    "radio": "A radiology technician needs a licence.",
    "cat": "The cat sat on the mat.",
}


def test_search_as_json_lines_and_its_cache(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"_id": i, "text": t}) + "\n" for i, t in CORPUS.items()))
    queries = ["are judo throws allowed?", "where sat the cat"]
    done = run("search", corpus, *queries, "--model", "m", "--top", "2", "--json")
    hits = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(h["query"], h["rank"]) for h in hits] == [(q, rank) for q in queries for rank in (1, 2)]
    assert [h["id"] for h in hits if h["rank"] == 1] == ["judo#0", "cat#0"]
    expected = fake_vectors(queries) @ fake_vectors(list(CORPUS.values())).T
    for hit in hits:
        score = expected[queries.index(hit["query"]), list(CORPUS).index(hit["document"])]
        assert hit["score"] == pytest.approx(float(score), abs=1e-5)
        assert hit["text"] == CORPUS[hit["document"]]
    assert b"3 texts" in done.stderr
    options = ("--model", "m", "--top", "2", "--json")
    again = run("search", corpus, "--queries", "-", *options, stdin="\n".join(queries).encode())
    assert again.stdout == done.stdout
    assert b"texts" not in again.stderr, "the vectors of the corpus come from the cache"
    corpus.write_text(corpus.read_text() + '{"_id": "new", "text": "Are judo throws allowed?"}\n')
    done = run("search", corpus, queries[0], "--model", "m", "--json")
    assert json.loads(done.stdout.splitlines()[0])["id"] == "new#0"
    assert b"1 texts" in done.stderr, "only the new text is embedded"
    only(tmp_path, "corpus.jsonl", ".nvembed")


def test_search_for_people(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text("# Judo\n\nJudo throws \x1b[31mare\x07 allowed.\n")
    (tmp_path / "notes" / "b.txt").write_text("The cat sat on the mat.\n" + "and sat " * 100)
    done = run("search", tmp_path / "notes", "judo throws", "the \x1b[2Jcat", "--task", "NQ", "--model", "m")
    page = done.stdout.decode()
    assert page.index("a.md#0") < page.index("b.txt#0")
    assert max(map(len, page.splitlines())) <= 80
    for word in ("judo throws", "1. a.md#0", "cosine 0.", "# Judo Judo throws", "…"):
        assert word in page


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_demo_at_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bm25s")
    monkeypatch.setenv("COLUMNS", str(columns))
    page = run("demo", "--model", "bag-of-words", "--show", "2").stdout.decode()
    assert max(map(len, page.splitlines())) == min(columns, 120)
    flat = " ".join(page.split())
    assert "240 passages and 1,190 questions" in flat
    assert re.search(r"1,430 texts, [\d,]+ tokens in [\d.]+ s \([\d,]+ tokens/s\)", flat)
    assert page.count("│ 1. ") == 2
    rows = [line.split("│")[1:-1] for line in page.splitlines() if line.count("│") > 4]
    scores = {cells[0].strip(): cells[1:] for cells in rows}
    assert [float(cell) for cell in scores["BM25"]] == pytest.approx([96.5, 92.9, 99.3, 99.7], abs=0.2)
    assert 5 < float(scores["bag-of-words"][0]) < 90
    assert "untrained" not in page, "that is said of the model that the demo makes itself"


def test_a_real_model_gives_the_librarys_vectors(tmp_path: Path, tiny_encoder: Encoder) -> None:
    texts = [text for text in TEXTS if text] * 3
    (tmp_path / "t.txt").write_text("\n".join(texts), encoding="utf-8")
    code = "from nvembed.cli.main import main; main()"
    arguments = ["encode", TINY_A, tmp_path / "t.txt", tmp_path / "o.npy", "--task", "NQ", "--device", "cpu"]
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "15 texts, " in done.stderr
    np.testing.assert_allclose(
        np.load(tmp_path / "o.npy"), tiny_encoder.encode_query(texts, task="NQ"), atol=1e-5
    )
