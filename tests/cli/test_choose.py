"""`nvembed choose`: tiny models on a folder of documents, judged and unjudged."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_folders import make_retrieval
from tiny_sentence import sentence_folder

from nvembed.cli.choose import licence_of
from nvembed.cli.main import main
from nvembed.encoder import Encoder
from nvembed.evaluate.choose import Material, Measurement, agreement, judged, measure
from nvembed.evaluate.subject import bm25, random_encoder
from nvembed.vectors.metric import score_run

DOCUMENTS = {
    "dog.md": "A dog barks at the postman.",
    "cat.md": "A cat sleeps on the sofa all day long.",
    "boat.md": "The boat leaves the harbour at noon.",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    sentence_folder(path, "bert", prompts={"query": "query: ", "document": "passage: "})
    (path / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return path


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert isinstance(left.value.code, int)
    return left.value.code


def chosen(out: Path) -> dict[str, Any]:
    rows = json.loads((out / "choose.json").read_text())["models"]
    return {row["model"]: row for row in rows}


@pytest.mark.filterwarnings("ignore:.*cut to")
def test_judged(model: Path, tmp_path: Path) -> None:
    task = make_retrieval(tmp_path / "task")
    out = tmp_path / "out"
    options = ("--questions", task / "queries.jsonl", "--qrels", task / "qrels" / "test.tsv")
    assert run("choose", model, "--corpus", task, *options, "--out", out, "--device", "cpu") == 0
    assert (out / "choose.png").read_bytes().startswith(b"\x89PNG")
    rows = chosen(out)
    assert set(rows) == {"tiny", "words (BM25)"}
    tiny = rows["tiny"]
    assert (tiny["licence"], tiny["vector_bytes"], tiny["device"]) == ("mit", 4 * tiny["dim"], "cpu")
    assert tiny["tokens_per_second"] > 0
    assert tiny["peak_bytes"] > 1 << 20
    low, high = tiny["interval_95"]
    assert low <= tiny["nDCG@10"] <= high
    encoder = Encoder.from_pretrained(model, device="cpu")
    corpus = [json.loads(line) for line in (tmp_path / "task" / "queries.jsonl").read_text().splitlines()]
    with gzip.open(task / "corpus.jsonl.gz", "rt") as lines:
        passages = [json.loads(line) for line in lines]
    texts = [f"{p['title']} {p['text']}".strip() for p in passages]
    scores = encoder.encode_query([q["text"] for q in corpus]) @ encoder.encode_document(texts).T
    ranking = {
        q["_id"]: {p["_id"]: float(s) for p, s in zip(passages, row, strict=True)}
        for q, row in zip(corpus, scores, strict=True)
    }
    qrels: dict[str, dict[str, int]] = {}
    for line in (task / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        question, document, grade = line.split("\t")
        qrels.setdefault(question, {})[document] = int(grade)
    expected = np.mean(list(score_run(ranking, qrels, (10,))["ndcg@10"].values()))
    assert tiny["nDCG@10"] == pytest.approx(expected, abs=1e-4)


def test_agreement_of_neighbours(model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(12):
        words = [f"word{number * step % 37}" for step in range(2, 8)]
        (corpus / f"{number}.md").write_text(" ".join(words))
    out = tmp_path / "out"
    assert run("choose", model, "random", "--corpus", corpus, "--reference", model, "--out", out) == 0
    rows = chosen(out)
    assert rows["tiny"]["overlap@10"] == rows["tiny"]["correlation"] == 1
    assert rows["random"]["correlation"] < 1
    assert rows["random"]["licence"] == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--reference", "other"], "--reference is 'other'"),
        (["--qrels", "x.tsv"], "--questions"),
    ],
)
def test_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run("choose", model, "--corpus", tmp_path, "--out", tmp_path / "out", *words) == 1
    assert message in capsys.readouterr().err


def test_licences(model: Path, tmp_path: Path) -> None:
    assert licence_of(str(model)) == "mit"
    assert licence_of(f"mine={model}") == "mit"
    (tmp_path / "config.json").write_text('{"license": "own terms"}')
    assert licence_of(str(tmp_path)) == "own terms"
    (tmp_path / "config.json").write_text("{}")
    assert licence_of(str(tmp_path)) == "unknown"


MATERIAL = Material(
    ["dog", "cat", "boat"],
    ["a dog barks", "dogs bark loudly", "a cat sleeps", "boats leave the harbour"],
    np.array([0, 2, 3]),
    {"q0": "who sleeps", "q1": "dogs"},
)


def test_a_document_has_the_score_of_its_best_passage() -> None:
    subject = random_encoder()
    assert subject.encode is not None
    vectors, questions = (
        subject.encode(t, "").vectors for t in (MATERIAL.passages, list(MATERIAL.questions.values()))
    )
    cosines = questions @ vectors.T
    expected = np.stack([cosines[:, :2].max(1), cosines[:, 2], cosines[:, 3]], 1)
    np.testing.assert_allclose(measure(subject, MATERIAL).scores, expected, atol=1e-6)


def test_words_rank_documents() -> None:
    quality = judged(measure(bm25(), MATERIAL), MATERIAL, {"q0": {"cat": 1}, "q1": {"dog": 1}})
    assert quality.values["nDCG@10"].tolist() == [1, 1]
    assert quality.values["recall@10"].tolist() == [1, 1]


def test_agreement_counts_common_documents() -> None:
    rng = np.random.default_rng(0)
    documents = [str(i) for i in range(30)]
    material = Material(documents, documents, np.arange(30), {"q": "q"})
    scores = np.linspace(1, 0, 30, dtype=np.float32)[None]
    other = scores.copy()
    other[0, 5:15] = rng.permuted(other[0, 10:15].repeat(2))
    same = agreement(Measurement(scores), Measurement(scores), material)
    assert (same.values["overlap@10"][0], same.values["correlation"][0]) == (1, pytest.approx(1))
    opposite = agreement(Measurement(-scores), Measurement(scores), material)
    assert (opposite.values["overlap@10"][0], opposite.values["correlation"][0]) == (0, pytest.approx(-1))
    assert 0.5 <= agreement(Measurement(other), Measurement(scores), material).values["overlap@10"][0] < 1


def test_a_model_that_fails_does_not_stop_the_others(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    task = make_retrieval(tmp_path / "task")
    options = ("--questions", task / "queries.jsonl", "--qrels", task / "qrels" / "test.tsv")
    out = tmp_path / "out"
    assert run("choose", broken, "random", "--corpus", task, *options, "--sample", 20, "--out", out) == 1
    assert set(chosen(out)) == {"random", "words (BM25)"}
    errors = capsys.readouterr().err
    assert "broken could not be measured" in errors
    assert "1 of 2 models" in errors
