"""Folders that we write in the layout of sentence-transformers, opened by that library and by us."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_lm
from sentence_transformers import SentenceTransformer
from tiny_sentence import transformer_folder
from transformers import AutoTokenizer

from conftest import TINY_A
from nvembed.cli.main import main
from nvembed.encoder import Encoder
from nvembed.errors import InputError, OutputError
from nvembed.text.prompt import format_prompt, instruction_for

pytestmark = pytest.mark.filterwarnings("ignore:.*of . texts:")

TEXTS = [
    "The judge threw 12 people out of 345 courts.",
    "",
    "it's",
    "Étude naïve — déjà vu, 日本語のテキスト",
    "apples; we'll see! " * 12,  # longer than the limit
    "a text with <|im_end|> and <|endoftext|> in it",
    "  spaces before and after  ",
    "3 apples",
]
PROMPT = format_prompt("Given a question, retrieve passages")


def run(*words: object) -> None:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    assert left.value.code == 0


def model(path: Path, architecture: Any = "llama", *options: object, **sizes: Any) -> Path:
    """Write an embedding model of ours, with random weights."""
    tiny_lm.folder(path.with_name(f"{path.name}-lm"), tiny_lm.sizes(architecture, **sizes))
    run("init", path.with_name(f"{path.name}-lm"), path, "--max-length", 60, *options)
    return path


def types(folder: Path) -> list[str]:
    return [entry["type"] for entry in json.loads((folder / "modules.json").read_text())]


def same(ours: Encoder, theirs: SentenceTransformer, again: Encoder, prompt: str = "") -> None:
    expected = ours.encode(TEXTS, prompt=prompt)
    np.testing.assert_allclose(theirs.encode(TEXTS, prompt=prompt), expected, atol=1e-5)
    np.testing.assert_allclose(again.encode(TEXTS, prompt=prompt), expected, atol=1e-5)
    one_by_one = np.concatenate([theirs.encode([text], prompt=prompt) for text in TEXTS])
    np.testing.assert_allclose(one_by_one, expected, atol=1e-5)  # batches without padding take another path


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", ["mean", "eos"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_stock_modules(tmp_path: Path, architecture: str, pooling: str, causal: bool) -> None:
    sizes = {} if architecture != "mistral" else {"rope_theta": 10000.0}
    options = ["--pooling", pooling, *(["--causal"] if causal else [])]
    ours = Encoder.from_pretrained(model(tmp_path / "ours", architecture, *options, **sizes), device="cpu")
    ours.save_pretrained(tmp_path / "out", layout="sentence-transformers")
    assert all(kind.startswith("sentence_transformers.") for kind in types(tmp_path / "out"))
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    again = Encoder.from_pretrained(tmp_path / "out", device="cpu")
    assert again.max_length == ours.max_length == theirs.max_seq_length == 60
    same(ours, theirs, again)
    if pooling == "eos":
        same(ours, theirs, again, PROMPT)


def test_prompts_of_last_token_pooling(tmp_path: Path) -> None:
    folder = model(tmp_path / "ours", "llama", "--pooling", "eos")
    out = tmp_path / "out"
    run("export", folder, out, "--layout", "sentence-transformers", "--task", "STS22")
    prompt = format_prompt(instruction_for("STS22"))
    theirs, again = SentenceTransformer(str(out), device="cpu"), Encoder.from_pretrained(out, device="cpu")
    ours = Encoder.from_pretrained(folder, device="cpu")
    assert theirs.prompts == {"query": prompt, "document": prompt}  # a symmetric task
    expected = ours.encode(TEXTS, prompt=prompt)
    for vectors in (theirs.encode_query(TEXTS), theirs.encode_document(TEXTS), again.encode_query(TEXTS)):
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_prompt_that_is_not_pooled_needs_our_module(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library counts the prompt's tokens without the text: one too many where "Query: " meets a word."""
    folder = model(tmp_path / "ours", "llama", "--pooling", "mean")
    out = tmp_path / "out"
    words = ("--layout", "sentence-transformers", "--instruction", "Given a question, retrieve passages")
    run("export", folder, out, *words)
    assert "prompt" in capsys.readouterr().err
    theirs = SentenceTransformer(str(out), device="cpu", trust_remote_code=True)
    ours = Encoder.from_pretrained(folder, device="cpu")
    assert theirs.prompts == {"query": PROMPT, "document": ""}
    np.testing.assert_array_equal(theirs.encode_query(TEXTS), ours.encode(TEXTS, prompt=PROMPT))
    np.testing.assert_array_equal(theirs.encode_document(TEXTS), ours.encode(TEXTS))


@pytest.mark.parametrize("source", ["released", "clean"])
def test_latent_attention(tmp_path: Path, source: str) -> None:
    folder = TINY_A if source == "released" else model(tmp_path / "ours", "llama", "--num-latents", 8)
    ours = Encoder.from_pretrained(folder, device="cpu")
    ours.save_pretrained(tmp_path / "out", layout="sentence-transformers", prompts={"query": PROMPT})
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu", trust_remote_code=True)
    again = Encoder.from_pretrained(tmp_path / "out", device="cpu")
    for prompt, vectors in ((PROMPT, theirs.encode_query(TEXTS)), ("", theirs.encode_document(TEXTS))):
        expected = ours.encode(TEXTS, prompt=prompt)
        np.testing.assert_array_equal(vectors, expected)
        np.testing.assert_array_equal(again.encode(TEXTS, prompt=prompt), expected)
    assert again.fingerprint == ours.fingerprint
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    saved = SentenceTransformer(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    np.testing.assert_array_equal(saved.encode_query(TEXTS), theirs.encode_query(TEXTS))


@pytest.mark.parametrize("pooling", ["latent", "mean"])
def test_nothing_asks_for_code_that_is_not_there(tmp_path: Path, pooling: str) -> None:
    ours = Encoder.from_pretrained(
        model(tmp_path / "ours", "llama", "--pooling", pooling, "--num-latents", 8)
    )
    ours.save_pretrained(tmp_path / "out", layout="sentence-transformers")
    for folder in (tmp_path / "ours", tmp_path / "out"):
        for path in folder.rglob("*.json"):
            assert "auto_map" not in path.read_text(), path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        [tokens] = ours.tokenizer(["it's the third"])
        ids = tokenizer("it's the third")["input_ids"]
        assert ids == tokens.input_ids.tolist()[: len(ids)]  # EOS is in the template of stock folders only


def test_a_plain_folder_of_transformers(tmp_path: Path) -> None:
    folder = transformer_folder(tmp_path / "plain", "bert")
    ours = Encoder.from_pretrained(folder, device="cpu", pooling="cls")
    ours.save_pretrained(tmp_path / "out", layout="sentence-transformers", prompts={"query": "query: "})
    theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    again = Encoder.from_pretrained(tmp_path / "out", device="cpu")
    assert again.prompts is not None
    assert dict(again.prompts.texts) == {"query": "query: "}
    same(ours, theirs, again)
    same(ours, theirs, again, "query: ")


def test_a_copied_folder_leaves_code_and_its_names_behind(tmp_path: Path) -> None:
    folder = transformer_folder(tmp_path / "plain", "llama")
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoModel": "modeling_x.Bidirectional"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": code, "is_causal": False}))
    (folder / "modeling_x.py").write_text("raise SystemExit")
    ours = Encoder.from_pretrained(folder, device="cpu", pooling="last")
    ours.save_pretrained(tmp_path / "out", layout="sentence-transformers")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not list((tmp_path / "out").rglob("*.py"))
    same(
        ours,
        SentenceTransformer(str(tmp_path / "out"), device="cpu"),
        Encoder.from_pretrained(tmp_path / "out"),
    )


def test_refused(tmp_path: Path, tiny_encoder: Encoder) -> None:
    with pytest.raises(InputError, match="layout"):
        tiny_encoder.save_pretrained(tmp_path / "out", layout="onnx")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="prompts"):
        tiny_encoder.save_pretrained(tmp_path / "out", prompts={"query": "q: "})
    plain = Encoder.from_pretrained(transformer_folder(tmp_path / "plain", "bert"), pooling="mean")
    with pytest.raises(InputError, match="NV-Embed's layout"):
        plain.save_pretrained(tmp_path / "out", layout="nvembed")
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="exists"):
        tiny_encoder.save_pretrained(tmp_path / "out", layout="sentence-transformers")
