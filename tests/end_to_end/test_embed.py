"""``nvembed embed`` as a process: killed at random points, locked, refused; and with a real model."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pq = pytest.importorskip("pyarrow.parquet", reason="the extra 'corpus' is not installed")

from corpora import DIM, content, make_corpus, sentences, word_offsets  # noqa: E402

from conftest import TINY_A  # noqa: E402
from nvembed.cli.main import app_for  # noqa: E402
from nvembed.embed.embedded import open_embedded  # noqa: E402
from nvembed.encoder import Encoder  # noqa: E402
from nvembed.errors import InputError  # noqa: E402
from nvembed.indexing.models import Facts  # noqa: E402

UNIT = Path(__file__).parents[1] / "helpers"

# The command with a fake model: its name is the file in which it notes what it embeds. It can be killed some
# seconds after its start, or after the beginning of its second shard.
FAKE = """
import os, signal, sys, threading, time
from pathlib import Path

where, seconds = os.environ.get("KILL", "never 0").split()
timer = threading.Timer(float(seconds), os.kill, (os.getpid(), signal.SIGKILL))
timer.daemon = True
if where == "start":
    timer.start()
import nvembed.indexing.models as models
from corpora import DIM, encode, word_offsets

class Encoder:
    def __init__(self, name):
        self.name, self.shards = name, 0
    def stream(self, texts, **settings):
        with open(self.name, "a") as log:
            log.write(texts[0] + "\\n")
        if "sleep" in texts[0]:
            time.sleep(600)
        self.shards += 1
        if where == "shard" and self.shards == 2:
            timer.start()
        time.sleep(0.05)
        yield from encode(texts)

facts = models.Facts("f" * 32, DIM, 52, "float32", 2048, 2, "mean", lambda: word_offsets)
models.find_model = lambda model, **_: Path(model)
models.own_prompts = lambda model, **_: None
models.describe = lambda model, **_: facts
import nvembed.cli.embedding as embedding
embedding.load = lambda name, **_: Encoder(name)
from nvembed.cli.main import main
main()
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", FAKE, "embed", *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{UNIT}:{os.environ.get('PYTHONPATH', '')}"}


def run(*arguments: str | Path, code: int = 0) -> str:
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment())
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_killed_8_times_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"_id": f"d{i}", "text": sentences(i, 2 + i % 5)}) + "\n" for i in range(64)]
    corpus.write_text("".join(lines))
    log = tmp_path / "log"

    def options(out: str) -> list[str | Path]:
        return [corpus, tmp_path / out, "--model", log, "--shard-passages", "4", "--chunk-tokens", "20"]

    run(*options("calm"))
    expected = content(tmp_path / "calm")
    shards = [path.name for path in sorted((tmp_path / "calm" / "shards").iterdir())]
    firsts = [pq.read_table(tmp_path / "calm" / "shards" / name)["text"][0].as_py() for name in shards]
    assert log.read_text().splitlines() == firsts
    assert len(shards) == 16

    chance = random.Random(0)
    finished: set[str] = set()
    for kill in range(8):
        log.write_text("")
        # at the start: while it imports, takes checksums or plans; or as a shard is computed, written or
        # renamed, after another one
        when = f"start {chance.uniform(0, 1.5)}" if kill % 3 == 0 else f"shard {chance.uniform(0.05, 0.12)}"
        variables = {**environment(), "KILL": when}
        done = subprocess.run(command(*options("killed")), capture_output=True, env=variables)
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr  # 0: late, on a busy machine
        again = set(log.read_text().splitlines()) & {firsts[shards.index(name)] for name in finished}
        assert not again, "a finished shard was computed twice"
        finished = {path.name for path in (tmp_path / "killed" / "shards").glob("*.parquet")}
    assert len(finished) >= 5
    said = run(*options("killed"))
    assert content(tmp_path / "killed") == expected
    assert not [path for path in (tmp_path / "killed").rglob(".*") if path.is_dir()]
    assert "64 documents" in said
    assert run(*options("killed")).startswith("already finished: nothing was computed\n")


@pytest.fixture
def sleeping(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A job in the midst of its second shard."""
    (tmp_path / "corpus.txt").write_text("awake\nsleep\n")
    process = subprocess.Popen(
        command(
            tmp_path / "corpus.txt", tmp_path / "out", "--model", tmp_path / "log", "--shard-passages", "1"
        ),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "log").exists() or "sleep" not in (tmp_path / "log").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path: Path, sleeping: "subprocess.Popen[str]", number: int, code: int) -> None:
    said = run(tmp_path / "corpus.txt", tmp_path / "out", "--model", tmp_path / "log", code=1)
    assert re.search(r"error: .*out is being written by another job \(process \d+ on .*\): wait for it", said)
    sleeping.send_signal(number)
    _, said = sleeping.communicate(timeout=300)
    assert sleeping.returncode == code
    assert "1 shards are finished. Run the same command again to resume" in said
    shards = (tmp_path / "out" / "shards").glob("*.parquet")
    assert [path.name for path in shards] == ["00000.parquet"]


def test_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    (corpus / "d.pdf").write_bytes(b"%PDF-1.4 broken")
    out = tmp_path / "out"
    always = ["--model", tmp_path / "log"]
    assert "d.pdf: cut off" in run(corpus, out, *always, code=1)
    said = run(corpus, out, *always, "--on-error", "skip", "--overlap-tokens", "0")
    assert re.search(r"\b23 documents, \d+ passages \([\d,]+ tokens\), 1 shards -> .*out\n", said)
    assert re.search(r"warning: .*skipped: 1\n.*d\.pdf", said)
    assert "warning: files of other kinds were not read (.png: 1)" in said
    manifest = open_embedded(out).manifest
    assert (manifest["corpus"], manifest["model"]) == (str(corpus), str(tmp_path / "log"))
    assert manifest["settings"]["chunk_tokens"] == 48, "what is left of 52 beside BOS, EOS and 2 to spare"
    assert manifest["settings"]["overlap_tokens"] == 0
    assert "another storage" in run(
        corpus, out, *always, "--on-error", "skip", "--overlap-tokens", "0", "--storage", "float32", code=1
    )
    facts = Facts("f" * 32, DIM, 52, "float32", 2048, 2, "mean", lambda: word_offsets)
    monkeypatch.setattr("nvembed.cli.embed.describe", lambda model, **_: facts)
    monkeypatch.setattr("nvembed.cli.embed.own_prompts", lambda model, **_: None)
    for options, message in [
        (["--whole", "--chunk-tokens", "9"], "--whole leaves documents whole"),
        (["--whole", "--cut", "structure"], "--whole leaves documents whole: remove it, or --cut"),
        (["--cut", "sentences", "--context", "headings"], "--context headings needs --cut structure"),
        (["--late-chunking", "--context", "title"], "remove it, or --context"),
        (["--workers", "2"], "--workers and --ray-address are for --engine ray"),
        (["--engine", "ray", "--device", "cpu"], "--device and --update are for the local engine"),
        (["--task", "NQ", "--prompt", "p"], "at most one of --task and --prompt"),
        (["--split", "test"], "--config, --split and --revision are for data sets: datasets:owner/name"),
        (["--chunk-tokens", "99"], "--chunk-tokens is 99; expected 1 to 50"),
        (["--chunk-tokens", "9", "--overlap-tokens", "9"], "--overlap-tokens is 9; expected 0 to 8"),
    ]:
        arguments = ["embed", corpus, tmp_path / "new", *always, "--on-error", "skip", *options]
        with pytest.raises(InputError, match=re.escape(message)):
            app_for(["embed"])([str(argument) for argument in arguments])
    assert not (tmp_path / "new").exists(), "a wrong option is said before the corpus is read"
    with pytest.raises(InputError, match="in is inside the corpus"):
        app_for(["embed"])(["embed", str(corpus), str(corpus / "in"), "--model", "m"])


def test_a_real_model(tmp_path: Path, tiny_encoder: Encoder) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    options = ["--model", str(TINY_A), "--storage", "float32", "--chunk-tokens", "30"]
    code = "from nvembed.cli.main import main; main()"
    arguments = [sys.executable, "-c", code, "embed", str(corpus), str(tmp_path / "out"), *options]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = open_embedded(tmp_path / "out")
    rows = [row for batch in found.batches() for row in batch.to_pylist()]
    assert len(rows) > 30
    assert max(row["tokens"] for row in rows) <= 30 + 3
    assert found.manifest["settings"]["fingerprint"] == tiny_encoder.fingerprint
    expected = tiny_encoder.encode([row["text"] for row in rows])
    np.testing.assert_allclose(np.concatenate(list(found.vectors())), expected, atol=1e-5)
