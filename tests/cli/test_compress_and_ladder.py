"""The commands ``compress`` and ``ladder`` on tiny models."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_folders import make_pairs, make_retrieval
from tiny_sentence import sentence_folder

from nvembed.cli.main import main
from nvembed.encoder import Encoder

TEXTS = ["The judge threw 12 people out of 345 courts.", "it's the third time"]


def run(*words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("name", ["bert", "gemma3", "xlm-roberta"])
def test_a_vocabulary_is_trimmed(tmp_path: Path, capsys: Any, name: str) -> None:
    sentence_folder(tmp_path / "model", name, max_length=64, prompts={"query": "query: ", "document": ""})
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(TEXTS) + "\n")
    out = tmp_path / "small"
    assert run("compress", tmp_path / "model", out, "--vocabulary", corpus) == 0
    assert "tokens are kept" in capsys.readouterr().err
    whole, small = Encoder.from_pretrained(tmp_path / "model"), Encoder.from_pretrained(out)
    np.testing.assert_allclose(small.encode(TEXTS), whole.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(small.encode_query(TEXTS), whole.encode_query(TEXTS), atol=1e-5)
    assert small.tokenizer.vocab_size < whole.tokenizer.vocab_size
    assert np.isfinite(small.encode(["日本語のテキスト déjà vu zzz"])).all()


def test_a_rotation_is_fitted_on_a_corpus(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "bert", max_length=64)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"{text} {i}" for i in range(20) for text in TEXTS))
    out = tmp_path / "small"
    assert run("compress", tmp_path / "model", out, "--dims", 8, "--fit", corpus, "--scheme", "int8") == 0
    assert Encoder.from_pretrained(out).encode(TEXTS).shape == (2, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to make smaller"),
        (["--tokens", 300], "--vocabulary"),
        (["--fit", "x.txt"], "--dims"),
        (["--layers", 9], "layers is 9"),
        (["--vocabulary", "nosuch.txt"], "nosuch.txt"),
    ],
)
def test_mistakes(tmp_path: Path, capsys: Any, options: list[Any], message: str) -> None:
    sentence_folder(tmp_path / "model", "bert")
    assert run("compress", tmp_path / "model", tmp_path / "small", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


def test_ladder(tmp_path: Path, capsys: Any) -> None:
    sentence_folder(tmp_path / "model", "bert", max_length=64)
    make_pairs(tmp_path / "data" / "pairs", binary=False)
    make_retrieval(tmp_path / "data" / "find")
    assert run("compress", tmp_path / "model", tmp_path / "small", "--dims", 8) == 0
    words = ["--data", tmp_path / "data", "--tasks", "all", "--out", tmp_path / "out"]
    options = ["--precisions", "float32,int8", "--texts", 20]
    assert run("ladder", tmp_path / "model", tmp_path / "small", *words, *options) == 0
    assert "int8" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "ladder.json").read_text())
    first, eight, short = content["rungs"]
    assert (first["precision"], eight["precision"], short["dim"]) == ("float32", "int8", 8)
    assert first["cosine_min"] == pytest.approx(1, abs=1e-5)
    assert 0.99 < eight["cosine_min"] <= eight["cosine_mean"] < 1
    assert short["cosine_mean"] is None
    assert set(first["scores"]) == {"pairs", "find"}
    assert all(rung["tokens_per_second"] > 0 and rung["disk_bytes"] > 1000 for rung in content["rungs"])
    assert (tmp_path / "out" / "ladder.png").stat().st_size > 1000
    assert "| float32 |" in (tmp_path / "out" / "ladder.md").read_text()
    assert run("ladder", tmp_path / "model", *words, "--precisions", "int7") == 1
    assert "int7" in capsys.readouterr().err
