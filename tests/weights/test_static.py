"""Static embeddings, against sentence-transformers on the same folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, StaticEmbedding
from tiny_sentence import byte_level, wordpiece
from tokenizers import Tokenizer

from nvembed.encoder import Encoder
from nvembed.errors import ConfigError, WeightsError
from nvembed.weights.checkpoint import content_digest, open_checkpoint

TEXTS = [
    "The judge threw 12 people out of 345 courts.",
    "it's",
    "Étude naïve — déjà vu, 日本語のテキスト",
    "apples; we'll see! " * 300,
    "a [SEP] b",
]


def static_folder(
    folder: Path, *, dense: int | None = None, tokenizer: str = "wordpiece"
) -> SentenceTransformer:
    torch.manual_seed(0)
    made = StaticEmbedding({"wordpiece": wordpiece, "byte_level": byte_level}[tokenizer](), embedding_dim=24)
    layers = [] if dense is None else [Dense(24, dense)]
    prompts = {"query": "query: ", "document": ""}
    model = SentenceTransformer(modules=[made, *layers, Normalize()], prompts=prompts, device="cpu")
    model.save_pretrained(str(folder))
    return model


def model2vec(folder: Path, parts: dict[str, torch.Tensor]) -> Path:
    """Replace the table of a folder by the parts that model2vec stores."""
    [path] = folder.rglob("model.safetensors")
    save_file(parts, path)
    return path


@pytest.mark.parametrize("tokenizer", ["wordpiece", "byte_level"])
@pytest.mark.parametrize("dense", [None, 10])
def test_the_vectors_of_sentence_transformers(tmp_path: Path, dense: int | None, tokenizer: str) -> None:
    theirs = static_folder(tmp_path / "model", dense=dense, tokenizer=tokenizer)
    ours = Encoder.from_pretrained(tmp_path / "model")
    assert ours.dim == (dense or 24)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.encode_query(TEXTS), theirs.encode(TEXTS, prompt_name="query"), atol=1e-5)
    alone = np.concatenate([ours.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(ours.encode(TEXTS), alone, atol=1e-6)


@pytest.mark.parametrize("codes", ["float", "int8"])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("weighted", [None, torch.float32, torch.float64])
def test_the_parts_of_model2vec(
    tmp_path: Path, codes: str, mapped: bool, weighted: torch.dtype | None
) -> None:
    static_folder(tmp_path / "model")
    [path] = (tmp_path / "model").rglob("model.safetensors")
    table = load_file(path)["embedding.weight"]
    generator = torch.Generator().manual_seed(1)
    parts = {"embeddings": table if codes == "float" else (table * 30).round().to(torch.int8)}
    if mapped:
        parts["mapping"] = torch.randperm(len(table), generator=generator)
    if weighted is not None:
        parts["weights"] = torch.rand(len(table), generator=generator).to(weighted)
    model2vec(tmp_path / "model", parts)
    if codes == "int8" and weighted is None:
        values = parts["embeddings"].float()
        expected_table = values[parts["mapping"]] if mapped else values
        tokenizer = Tokenizer.from_file(str(path.parent / "tokenizer.json"))
        static = StaticEmbedding(tokenizer, embedding_weights=expected_table)
        theirs = SentenceTransformer(modules=[static, Normalize()], device="cpu")
    else:
        theirs = SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = Encoder.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    eight = Encoder.from_pretrained(tmp_path / "model", dtype="int8")
    assert eight.dtype == "int8"
    assert (eight.encode(TEXTS) * ours.encode(TEXTS)).sum(1).min() > 0.9995


def test_a_folder_of_model2vec_without_modules(tmp_path: Path) -> None:
    theirs = static_folder(tmp_path / "model")
    [path] = (tmp_path / "model").rglob("model.safetensors")
    folder = tmp_path / "model2vec"
    folder.mkdir()
    save_file({"embeddings": load_file(path)["embedding.weight"]}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_bytes((path.parent / "tokenizer.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": "model2vec", "normalize": True}))
    ours = Encoder.from_pretrained(folder)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    assert content_digest(open_checkpoint(folder), cache=None)
    assert ours.fingerprint


@pytest.mark.filterwarnings("ignore:.*of . texts:")
def test_a_text_without_tokens_has_a_vector(tmp_path: Path) -> None:
    static_folder(tmp_path / "model")
    ours = Encoder.from_pretrained(tmp_path / "model")
    vectors = ours.encode(["", "  ", "it's"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1])
    [part] = ours.stream(["", "it's"])
    assert part.empty.tolist() == [True, False]
    assert not part.truncated.any()


def test_damage_is_reported(tmp_path: Path) -> None:
    static_folder(tmp_path / "model")
    [path] = (tmp_path / "model").rglob("model.safetensors")
    table = load_file(path)["embedding.weight"]
    model2vec(tmp_path / "model", {"other": table})
    with pytest.raises(WeightsError, match="table of token vectors"):
        open_checkpoint(tmp_path / "model")
    model2vec(tmp_path / "model", {"embeddings": table, "weights": torch.ones(3)})
    with pytest.raises(WeightsError, match="weights is"):
        open_checkpoint(tmp_path / "model")
    mapping = torch.full((len(table),), len(table))
    model2vec(tmp_path / "model", {"embeddings": table, "mapping": mapping})
    with pytest.raises(WeightsError, match="mapping"):
        Encoder.from_pretrained(tmp_path / "model")
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    modules.append({**modules[0], "idx": 2})
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match="StaticEmbedding"):
        open_checkpoint(tmp_path / "model")
