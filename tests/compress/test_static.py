"""Static twins: the fit against a dense solution, and the folder against the table that it was made from."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny_sentence import sentence_folder

from nvembed.cli.main import main
from nvembed.compress.static import (
    RIDGE,
    FitTexts,
    counted_shares,
    static_table,
    write_static,
    zipf_shares,
)
from nvembed.encoder import Encoder
from nvembed.weights.checkpoint import open_checkpoint

WORDS = [
    "judge",
    "court",
    "twelve",
    "people",
    "threw",
    "apples",
    "return",
    "spaces",
    "law",
    "third",
    "it's",
    "x",
]


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 8))) for _ in range(count)]


def test_the_fit_is_the_ridge_solution() -> None:
    rng = np.random.default_rng(0)
    size, count, dims = 9, 40, 4
    lengths = rng.integers(1, 6, count)
    ids = rng.integers(0, size, lengths.sum())
    vectors, shares = (
        rng.normal(size=(size, 7)).astype(np.float32),
        counted_shares(np.bincount(ids, minlength=size)),
    )
    targets = rng.normal(size=(count, 7)).astype(np.float32)
    plain = static_table(vectors, shares, dims).astype(np.float64)
    fitted = static_table(vectors, shares, dims, FitTexts(ids, lengths, targets))

    means = np.zeros((count, size))
    for row, part in enumerate(np.split(ids, np.cumsum(lengths)[:-1])):
        np.add.at(means[row], part, 1 / len(part))
    centred = vectors - vectors.mean(0)
    weights = (1e-4 / (1e-4 + shares))[:, None]
    rotation = np.linalg.lstsq(centred, plain / weights, rcond=None)[0]
    expected = (targets - targets.mean(0)) @ rotation
    start = plain * ((means @ plain * expected).sum() / np.square(means @ plain).sum())
    change = np.linalg.solve(means.T @ means + RIDGE * np.eye(size), means.T @ (expected - means @ start))
    np.testing.assert_allclose(fitted, start + change, atol=1e-4)


def test_rare_tokens_weigh_more() -> None:
    shares = zipf_shares(1000)
    assert shares.sum() == pytest.approx(1)
    assert (np.diff(shares) < 0).all()
    vectors = np.random.default_rng(0).normal(size=(1000, 8)).astype(np.float32)
    norms = np.linalg.norm(static_table(vectors, shares, 8), axis=1)
    assert norms[-100:].mean() > 2 * norms[:10].mean()


@pytest.mark.parametrize("bits", [None, "int8"])
def test_the_folder_opens_here_and_in_sentence_transformers(tmp_path: Path, bits: None) -> None:
    sentence_folder(tmp_path / "model", "bert")
    source = open_checkpoint(tmp_path / "model")
    table = np.random.default_rng(0).normal(size=(source.config.backbone.vocab_size, 12)).astype(np.float32)
    write_static(tmp_path / "twin", source, table, tokens=None, bits=bits)
    ours, theirs = (
        Encoder.from_pretrained(tmp_path / "twin"),
        SentenceTransformer(str(tmp_path / "twin"), device="cpu"),
    )
    some = ["The judge threw 12 people out of 345 courts.", "it's", "law law law"]
    vectors = ours.encode(some)
    np.testing.assert_allclose(vectors, theirs.encode(some), atol=1e-5)
    for row, tokens in enumerate(ours.tokenizer(some)):
        mean = table[tokens.input_ids].mean(0)
        assert vectors[row] @ mean / np.linalg.norm(mean) > (0.99999 if bits is None else 0.999)
    again = tmp_path / "again"
    ours.save_pretrained(again)
    np.testing.assert_array_equal(Encoder.from_pretrained(again).encode(some), vectors)


def similarities(vectors: np.ndarray) -> np.ndarray:
    """Return the cosines of centred vectors, which are what a twin learns."""
    vectors = vectors - vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray((vectors @ vectors.T)[np.triu_indices(len(vectors), 1)])


@pytest.mark.parametrize("vocabulary", [False, True])
def test_the_twin_is_near_its_model(tmp_path: Path, vocabulary: bool) -> None:
    sentence_folder(tmp_path / "model", "bert", prompts={"document": "passage: "}, max_length=64)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts(60)))
    options = ["--vocabulary", str(tmp_path / "corpus.jsonl")] if vocabulary else []
    for name, fit in (("twin", ["--fit", str(tmp_path / "corpus.jsonl")]), ("plain", [])):
        out = str(tmp_path / name)
        arguments = ["compress", str(tmp_path / "model"), out, "--static", "--dims", "16", *options, *fit]
        assert run(*arguments) == 0
    model = Encoder.from_pretrained(tmp_path / "model")
    expected = similarities(model.encode_document(texts(60)))
    near = {}
    for name in ("twin", "plain"):
        twin = similarities(Encoder.from_pretrained(tmp_path / name).encode(texts(60)))
        near[name] = np.corrcoef(twin, expected)[0, 1]
    assert near["twin"] > near["plain"], near  # positions and attention of a random model are noise
    assert near["twin"] > 0.3, near


def test_options_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sentence_folder(tmp_path / "model", "bert")
    for options, noun in (
        (["--static", "--layers", "1"], "--layers"),
        (["--static", "--embedding", "int4"], "--embedding"),
        (["--static", "--dims", "33"], "--dims"),
        (["--fit", str(tmp_path)], "--fit"),
    ):
        assert run("compress", str(tmp_path / "model"), str(tmp_path / "twin"), *options) == 1
        assert noun in capsys.readouterr().err
    assert not (tmp_path / "twin").exists()
