"""Calibrated rounding: less error for the inputs that occur, and nearest rounding where all occur alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_sentence import sentence_folder

from nvembed.compress.calibrate import calibrated_groups, input_products
from nvembed.compress.folder import Reduction, compress
from nvembed.encoder import Encoder
from nvembed.errors import InputError
from nvembed.model.nv_embed import PackedBatch
from nvembed.model.quantised import dequantise_groups, quantise_groups
from nvembed.text.pack import batches
from nvembed.weights.checkpoint import open_checkpoint

WORDS = ["judge", "court", "twelve", "people", "threw", "apples", "return", "spaces", "law", "third", "it's"]


def error(weight: torch.Tensor, groups: tuple[torch.Tensor, ...], product: torch.Tensor) -> float:
    rest = (weight - dequantise_groups(*groups)).double()  # type: ignore[arg-type]
    return float(torch.trace(rest @ product.double() @ rest.t()))


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 40), groups=st.integers(1, 4), rank=st.integers(1, 64), seed=st.integers(0, 999))
def test_inputs_that_occur_have_less_error(size: int, groups: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, 32 * groups, generator=generator)
    inputs = torch.randn(200, rank, generator=generator) @ torch.randn(rank, 32 * groups, generator=generator)
    product = inputs.t() @ inputs
    ours = error(weight, calibrated_groups(weight, product), product)
    nearest = error(weight, quantise_groups(weight), product)
    assert ours < nearest * (1.05 if size < 4 else 1.0)


@pytest.mark.parametrize("product", [torch.eye(64), torch.zeros(64, 64)])
def test_without_correlation_it_is_the_nearest_level(product: torch.Tensor) -> None:
    weight = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    for ours, nearest in zip(calibrated_groups(weight, product), quantise_groups(weight), strict=True):
        torch.testing.assert_close(ours, nearest, rtol=0, atol=0)


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(4, 12))) for _ in range(count)]


def products(encoder: Encoder, some: list[str]) -> dict[str, torch.Tensor]:
    model = encoder.replicas[0]
    packed = [
        PackedBatch.of(b.input_ids, b.lengths, b.pool_index, b.pool_lengths, model.device)
        for b in batches(encoder.tokenizer(some), 200)
    ]
    return input_products(model, packed)


@pytest.mark.parametrize("name", ["bert", "gemma3", "modernbert", "qwen3"])
def test_vectors_are_nearer_to_the_model(tmp_path: Path, name: str) -> None:
    sentence_folder(tmp_path / "model", name, max_length=64)
    whole = Encoder.from_pretrained(tmp_path / "model")
    source = open_checkpoint(tmp_path / "model")
    vectors = whole.encode(texts(40))
    distances = {}
    for kind, found in (("nearest", None), ("calibrated", products(whole, texts(40)))):
        reduction = Reduction(scheme="int4", embedding="int8", dtype="float32", products=found)
        compress(tmp_path / kind, source, reduction)
        rounded = Encoder.from_pretrained(tmp_path / kind).encode(texts(40))
        distances[kind] = float(1 - (rounded * vectors).sum(1).mean())
    assert distances["calibrated"] < 0.9 * distances["nearest"], distances


def test_a_model_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence_folder(tmp_path / "model", "bert")
    monkeypatch.setattr("nvembed.compress.calibrate.LARGEST_BYTES", 1000)
    with pytest.raises(InputError, match="calibration needs"):
        products(Encoder.from_pretrained(tmp_path / "model"), ["a"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nvembed.cli.main import main

    sentence_folder(tmp_path / "model", "bert", max_length=64)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts(20)))
    model, out, corpus = str(tmp_path / "model"), str(tmp_path / "out"), str(tmp_path / "corpus.jsonl")
    with pytest.raises(SystemExit, match="1"):
        main(["compress", model, out, "--scheme", "int8", "--calibrate", corpus])
    assert "--calibrate" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["compress", model, out, "--scheme", "int4", "--calibrate", corpus])
    assert Encoder.from_pretrained(out).dtype == "int4"
