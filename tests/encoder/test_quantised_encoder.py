"""``dtype="int8"`` and ``"int4"`` of whole models, beside float32 and alone."""

from pathlib import Path

import numpy as np
import pytest
from tiny_sentence import MODELS, sentence_folder

from conftest import TINY_A
from nvembed.encoder import Encoder
from nvembed.errors import InputError

TEXTS = [
    "The judge threw 12 people out of 345 courts.",
    "it's",
    "Étude naïve — déjà vu, 日本語のテキスト",
    "apples; we'll see! " * 3,
    "def f(x):\n    return x ** 2",
]
NEAR = {"int8": 0.995, "int4": 0.96}  # least cosine to float32 with random weights


def check(folder: Path, dtype: str) -> None:
    exact, model = Encoder.from_pretrained(folder), Encoder.from_pretrained(folder, dtype=dtype)
    assert model.dtype == dtype
    vectors, expected = model.encode(TEXTS), exact.encode(TEXTS)
    assert (vectors * expected).sum(1).min() > NEAR[dtype]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    alone = np.concatenate([model.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, vectors, atol=2e-3)


@pytest.mark.parametrize("dtype", NEAR)
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(tmp_path: Path, name: str, dtype: str) -> None:
    dense = () if name == "embedding_gemma2_text" else (48,)  # its own projection sets the size
    sentence_folder(tmp_path / "model", name, max_length=64, dense=dense)
    check(tmp_path / "model", dtype)


def test_a_latent_pooler() -> None:
    check(TINY_A, "int8")


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(InputError, match="int8"):
        Encoder.from_pretrained(TINY_A, dtype="int7")
