"""Ids, lengths and vectors of the published code, on tiny random checkpoints in the released layout.

``tiny-a`` lies here: random weights made for this purpose, the tokenizer of Mistral-7B-v0.1 (Apache-2.0), and
the published code's outputs. ``tiny-b`` is the second opinion and stays beside the checkout.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import TINY_A, beside_checkout
from nvembed.encoder import Encoder

IDS = [case["id"] for case in json.loads((TINY_A / "cases.json").read_text())]


@pytest.fixture(scope="module", params=["tiny-a", "tiny-b"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    return TINY_A if request.param == "tiny-a" else beside_checkout("parity/tiny-b")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Encoder:
    return Encoder.from_pretrained(checkpoint, device="cpu", dtype="float32")


def case_of(checkpoint: Path, case_id: str) -> tuple[dict[str, Any], np.ndarray]:
    cases = json.loads((checkpoint / "cases.json").read_text())
    case_id = case_id.replace("5000", "4500") if checkpoint.name == "tiny-b" else case_id
    case = next(case for case in cases if case["id"] == case_id)
    return case, np.load(checkpoint / "embeddings.npz")[case_id]


@pytest.mark.parametrize("case_id", IDS)
def test_ids_and_lengths(checkpoint: Path, model: Encoder, case_id: str) -> None:
    case, _ = case_of(checkpoint, case_id)
    tokens = model.tokenizer(case["texts"], prompt=case["instruction"], max_length=case["max_length"])
    assert [len(item.input_ids) for item in tokens] == case["input_ids_len"]
    if "input_ids" in case:
        assert [item.input_ids.tolist() for item in tokens] == case["input_ids"]
    assert {item.pool_start for item in tokens} == {case["instruction_token_count"]}


@pytest.mark.filterwarnings("ignore:.* texts. (cut|empty)")
@pytest.mark.parametrize("case_id", IDS)
def test_vectors(checkpoint: Path, model: Encoder, case_id: str) -> None:
    case, expected = case_of(checkpoint, case_id)
    texts, options = case["texts"], {"prompt": case["instruction"], "max_length": case["max_length"]}
    together = model.encode(texts, **options)
    np.testing.assert_allclose(together, expected, atol=1e-5, rtol=0)
    alone = np.concatenate([model.encode([text], **options) for text in texts])
    np.testing.assert_allclose(alone, expected, atol=1e-5, rtol=0)


def test_a_saved_checkpoint_reloads_to_identical_vectors(model: Encoder, tmp_path: Path) -> None:
    texts = ["are judo throws allowed in wrestling?", "Emoji 😀 and </s> inside", "x" * 300]
    model.save_pretrained(tmp_path / "again")
    again = Encoder.from_pretrained(tmp_path / "again", device="cpu", dtype="float32")
    assert again.tokenizer.settings == model.tokenizer.settings
    prompt = "Instruct: Retrieve semantically similar text\nQuery: "
    np.testing.assert_array_equal(again.encode(texts, prompt=prompt), model.encode(texts, prompt=prompt))
