"""``nvembed check`` on every kind of folder: whole, then with each file cut, deleted, or a byte changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpora import encode, make_corpus, settings, word_offsets
from embedded_folder import write_embedded
from eval_folders import encode as encode_words
from eval_folders import make_pairs
from training import job, recipe

from conftest import TINY_A
from nvembed.cli.check import check
from nvembed.cli.mine import mine
from nvembed.embed.embedded import open_embedded
from nvembed.embed.job import local_engine, open_job
from nvembed.embed.records import CorpusReading
from nvembed.encoder import Encoder
from nvembed.evaluate.run import evaluate
from nvembed.evaluate.subject import Subject, plain
from nvembed.evaluate.tasks import load_task
from nvembed.learn.classify import Classifier, StoredClassifier, save_classifier
from nvembed.read.corpus import list_files
from nvembed.search.index import add, build, delete
from nvembed.train.loop import train
from nvembed.vectors.embeddings import bare
from nvembed.vectors.store import VectorSettings, VectorStore
from nvembed.weights.average import average

VECTORS = VectorSettings("0" * 32, "", 512, "float32")
BLEND = """
seed = 1
[sets.faq]
task = "NQ"
form = "pairs"
licence = "ours"
samples = 8
stages = [1]
path = "faq.jsonl"
[held_out.test]
path = "test.jsonl"
"""
MINING = """
teacher = "bm25"
instruct = false
[rule]
method = "naive"
negatives = 2
depth = 4
"""


def unit(texts: list[str]) -> np.ndarray:
    return encode_words(texts, "")


def embedded(folder: Path, *, finish: bool = True) -> Path:
    corpus, reading = make_corpus(folder / "corpus"), CorpusReading(shard_passages=4)
    done = 0

    def some(texts: object) -> object:
        nonlocal done
        done += 1
        if done > 2 and not finish:
            raise KeyboardInterrupt
        return encode(texts)  # type: ignore[arg-type]

    try:
        with open_job(folder / "out", list_files(str(corpus)), reading, lambda *_: None) as opened:
            names = {"corpus": str(corpus), "model": "m"}
            opened.run(settings(), local_engine(word_offsets, some), lambda *_: None, names=names)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        assert not finish
    return folder / "out"


def unfinished(folder: Path) -> Path:
    return embedded(folder, finish=False)


def index(folder: Path) -> Path:
    source = open_embedded(write_embedded(folder / "out"))
    more = open_embedded(write_embedded(folder / "more", {"new.md": (["A new passage on ships."], {})}))
    with build(source, folder / "index") as opened:
        add(opened, more)
        delete(opened, ["radio.md"])
    return folder / "index"


def run_of_training(folder: Path) -> Path:
    train(job(folder / "run", recipe(), evaluate=lambda _: {"a": 0.5}))
    return folder / "run"


def state(folder: Path) -> Path:
    return run_of_training(folder) / "last"


def averaged(folder: Path) -> Path:
    last = state(folder)
    average([last, last], folder / "mean")
    return folder / "mean"


def mined(folder: Path) -> Path:
    rows = [{"query": f"what is number {n}", "positive": f"number {n} follows {n - 1}"} for n in range(12)]
    (folder / "faq.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "test.jsonl").write_text('{"text": "What is number 7?"}\n')
    (folder / "blend.toml").write_text(BLEND)
    (folder / "mining.toml").write_text(MINING)
    mine(folder, out=folder / "mined", root=folder)
    return folder / "mined"


def store(folder: Path) -> Path:
    kept = VectorStore(folder / "kept", VECTORS, block_texts=4)
    kept.fill([f"text {n}" for n in range(8)], lambda texts: bare(unit(texts)))
    return folder / "kept"


def classifier(folder: Path) -> Path:
    made = Classifier(["a", "b"], np.eye(2, 3, dtype=np.float32), np.zeros(2, np.float32), 1.0)
    (folder / "made").mkdir()
    save_classifier(folder / "made", StoredClassifier(made, "m", VECTORS))
    return folder / "made"


def results(folder: Path) -> Path:
    make_pairs(folder / "sts" / "alike", binary=False)
    subject = Subject("fake/words", "f0", encode=plain(encode_words))
    out = folder / "results"
    evaluate(subject, [load_task(folder / "sts" / "alike")], out, cache=out / ".embeddings")
    return out


def model(folder: Path) -> Path:
    Encoder.from_pretrained(TINY_A).save_pretrained(folder / "model")
    return folder / "model"


KINDS: dict[str, Callable[[Path], Path]] = {
    "embedded": embedded,
    "unfinished": unfinished,
    "index": index,
    "run": run_of_training,
    "state": state,
    "averaged": averaged,
    "mined": mined,
    "store": store,
    "classifier": classifier,
    "results": results,
    "model": model,
}
NOTHING = (".lock", ".report.md")  # not data
# Without these nothing is lost: texts are embedded again, digests are a second witness.
MAY_BE_MISSING = (".vectors", "nvembed-index.sums", "SHA256SUMS", ".report.json", ".sha256")


def report_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = check(str(folder), json=True)
    report = json.loads(capsys.readouterr().out)
    report.pop("memory", None)  # it changes while the test runs
    report["findings"] = [one for one in report.get("findings", ()) if one["check"] != "memory"]
    return code, json.dumps(report)


@pytest.mark.parametrize("kind", KINDS)
def test_every_damage_is_found(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = KINDS[kind](tmp_path).resolve()
    capsys.readouterr()
    code, whole = report_of(folder, capsys)
    assert code == 0, whole
    kept = tmp_path / "kept-copy"
    shutil.copytree(folder, kept, symlinks=True)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    paths = [path for path in paths if not path.name.endswith(NOTHING) and path.stat().st_size]
    assert paths
    missed = []
    for path in paths:
        content = path.read_bytes()
        middle = len(content) // 2
        changes: dict[str, bytes | None] = {
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "cut": content[:middle],
            "deleted": None,
        }
        if path.name == "latest_version_hint.json":  # LanceDB rewrites it, and reads on without it
            continue
        if path.suffix == ".parquet":  # its footer has no checksum of its own
            changes["flipped in its footer"] = content[:-60] + bytes([content[-60] ^ 1]) + content[-59:]
        for change, damaged in changes.items():
            if damaged is None and (
                path.name.endswith(MAY_BE_MISSING)
                or (kind == "unfinished" and (path.suffix == ".parquet" or path.name == "job.json"))
            ):
                continue
            path.unlink() if damaged is None else path.write_bytes(damaged)
            code, report = report_of(folder, capsys)
            if code != 1 or path.name not in report:
                missed.append((str(path.relative_to(folder)), change))
            path.write_bytes(content)
    assert not missed, missed
    assert report_of(folder, capsys) == (0, whole)  # nothing was changed


def test_what_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = embedded(tmp_path)
    shard = folder / "shards" / "00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert check(str(folder)) == 1
    shown = capsys.readouterr().out
    assert "embedded corpus, damaged" in shown
    assert f"{shard}: " in shown
    assert f"cure: nvembed embed {tmp_path / 'corpus'} {folder} --model m" in shown


def test_a_copied_shard_and_a_lost_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = unfinished(tmp_path)
    shards = sorted((folder / "shards").glob("*.parquet"))
    shutil.copyfile(shards[0], shards[1])
    code, report = report_of(folder, capsys)
    assert (code, shards[1].name in report) == (1, True)
    run = run_of_training(tmp_path)
    (run / "best").unlink()
    (run / "best").symlink_to("step-00000001")
    code, report = report_of(run, capsys)
    assert (code, "best" in report) == (1, True)
