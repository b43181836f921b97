"""Compressed folders: opened like any model, and equal to quantising the source when it is loaded."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_sentence import MODELS, sentence_folder

from conftest import TINY_A
from nvembed.compress.folder import Reduction, compress, principal_rotation
from nvembed.encoder import Encoder
from nvembed.errors import ConfigError, InputError, WeightsError
from nvembed.weights.check import check_folder
from nvembed.weights.checkpoint import open_checkpoint
from nvembed.weights.tensors import SCALE

TEXTS = ["The judge threw 12 people out of 345 courts.", "it's", "def f(x):\n    return x ** 2"]


def written(folder: Path, source: Path, **changes: object) -> Path:
    compress(folder, open_checkpoint(source), Reduction(**changes))  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(tmp_path: Path, name: str, scheme: str) -> None:
    dense = () if name == "embedding_gemma2_text" else (48,)  # its own projection sets the size
    sentence_folder(tmp_path / "model", name, dense=dense, max_length=64)
    out = written(tmp_path / "small", tmp_path / "model", scheme=scheme, embedding="int8")
    stored, loaded = Encoder.from_pretrained(out), Encoder.from_pretrained(tmp_path / "model", dtype=scheme)
    assert stored.dtype == scheme
    # of the layers after pooling, only the stored ones are rounded
    assert (stored.encode(TEXTS) * loaded.encode(TEXTS)).sum(1).min() > 0.999
    exact = Encoder.from_pretrained(out, dtype="float32")
    assert (stored.encode(TEXTS) * exact.encode(TEXTS)).sum(1).min() > 0.995
    assert stored.fingerprint != loaded.fingerprint


def test_the_layout_of_nv_embed(tmp_path: Path) -> None:
    out = written(tmp_path / "small", TINY_A, scheme="int8", embedding="int8", dims=8)
    stored, whole = Encoder.from_pretrained(out), Encoder.from_pretrained(TINY_A)
    assert stored.dim == 8
    vectors = Encoder.from_pretrained(out).encode(TEXTS)
    assert (vectors * whole.encode(TEXTS, truncate_dim=8)).sum(1).min() > 0.98
    report = check_folder(
        out, device=torch.device("cpu"), dtype="int8", hash_files=False, advance=lambda _: None
    )
    assert report.ok, report.findings
    stored.save_pretrained(tmp_path / "copy")
    np.testing.assert_array_equal(Encoder.from_pretrained(tmp_path / "copy").encode(TEXTS), vectors)


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    source = open_checkpoint(TINY_A)
    one, many = tmp_path / "one", tmp_path / "many"
    reduction = Reduction(scheme="int4", embedding="int8")
    compress(one, source, reduction)
    compress(many, source, reduction, shard_bytes=3000)
    assert len(list(many.glob("*.safetensors"))) > 3
    np.testing.assert_array_equal(
        Encoder.from_pretrained(one).encode(TEXTS), Encoder.from_pretrained(many).encode(TEXTS)
    )


@pytest.mark.parametrize("name", ["bert", "gemma3", "qwen3", "modernbert"])
def test_fewer_layers_tokens_and_neurons(tmp_path: Path, name: str) -> None:
    sentence_folder(tmp_path / "model", name, max_length=64)
    source = open_checkpoint(tmp_path / "model")
    kept = np.arange(source.config.backbone.vocab_size)
    out = written(tmp_path / "small", tmp_path / "model", layers=1, mlp_width=32, tokens=kept)
    config = open_checkpoint(out).config.backbone
    assert (config.num_layers, config.intermediate_size, config.vocab_size) == (1, 32, len(kept))
    vectors = Encoder.from_pretrained(out).encode(TEXTS)
    assert np.isfinite(vectors).all()
    first = written(tmp_path / "first", tmp_path / "model", layers=1)
    whole = Encoder.from_pretrained(first).encode(TEXTS)
    assert 0.3 < (vectors * whole).sum(1).min() < 0.9999


@pytest.mark.parametrize("name", ["bert", "gemma3", "modernbert"])
def test_neurons_without_weights_can_be_left_out(tmp_path: Path, name: str) -> None:
    """Neurons of weight zero are the smallest; without them the vectors stay."""
    sentence_folder(tmp_path / "model", name, max_length=64)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    ends = ("intermediate.dense.weight", "gate_proj.weight", "mlp.Wi.weight", "intermediate.dense.bias")
    width = open_checkpoint(tmp_path / "model").config.backbone.intermediate_size
    for key in tensors:
        if key.endswith(ends):
            tensors[key][[3, width - 2]] = 0  # of [values | gates] the values
    save_file(tensors, path, metadata={"format": "pt"})
    out = written(tmp_path / "small", tmp_path / "model", mlp_width=width - 2)
    expected = Encoder.from_pretrained(tmp_path / "model").encode(TEXTS)
    np.testing.assert_allclose(Encoder.from_pretrained(out).encode(TEXTS), expected, atol=1e-5)


def test_a_backbone_in_a_folder_of_its_own_comes_to_the_top(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "bert", dense=(16,), prompts={"query": "query: "})
    inner = tmp_path / "model" / "0_Transformer"
    inner.mkdir()
    for path in list((tmp_path / "model").iterdir()):
        if path.is_file() and path.name not in ("modules.json", "config_sentence_transformers.json"):
            path.rename(inner / path.name)
    modules = json.loads((tmp_path / "model" / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (tmp_path / "model" / "modules.json").write_text(json.dumps(modules))
    out = written(tmp_path / "small", tmp_path / "model", scheme="int8", embedding="int8", dims=8)
    small, whole = Encoder.from_pretrained(out), Encoder.from_pretrained(tmp_path / "model")
    assert (small.encode_query(TEXTS) * whole.encode_query(TEXTS, truncate_dim=8)).sum(1).min() > 0.98
    assert not (out / "0_Transformer").exists()


@pytest.mark.parametrize("layout", ["nv-embed", "sentence-transformers"])
def test_a_rotation_keeps_most_of_the_cosines(tmp_path: Path, layout: str) -> None:
    if layout == "sentence-transformers":
        sentence_folder(tmp_path / "model", "bert")
    source = TINY_A if layout == "nv-embed" else tmp_path / "model"
    model = Encoder.from_pretrained(source)
    vectors = model.encode([" ".join(TEXTS[i % 3].split()[i % 5 :]) + f" {i}" for i in range(60)])
    rotation = principal_rotation(vectors, 6)
    out = written(tmp_path / "small", source, dims=6, rotation=rotation)
    short = Encoder.from_pretrained(out)
    assert short.dim == 6
    expected = model.encode(TEXTS) @ rotation.T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(short.encode(TEXTS), expected, atol=1e-5)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(6), atol=1e-5)


def test_sizes_out_of_range_are_refused(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "bert")
    for name, value in (("layers", 3), ("mlp_width", 0), ("dims", 33)):
        with pytest.raises(InputError, match=name):
            written(tmp_path / "small", tmp_path / "model", **{name: value})
    with pytest.raises(InputError, match="at least as many"):
        principal_rotation(np.eye(4, dtype=np.float32), 5)


def test_damage_is_reported(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "bert")
    out = written(tmp_path / "small", tmp_path / "model", scheme="int8", embedding="int8")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ConfigError, match="another library"):
        open_checkpoint(out)
    config["quantization_config"]["scheme"] = "int3"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="scheme"):
        open_checkpoint(out)


def test_codes_without_scales_are_not_weights(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "model", "bert")
    out = written(tmp_path / "small", tmp_path / "model", scheme="int8", embedding="int8")
    tensors = load_file(out / "model.safetensors")
    name = "layers.0.q_proj.weight"
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.get_slice(name).get_dtype() == "I8"
    scale = tensors.pop(name + SCALE)
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(WeightsError, match=r"q_proj\.weight is I8"):
        open_checkpoint(out)
    save_file({**tensors, name + SCALE: scale[:-1]}, out / "model.safetensors")
    with pytest.raises(WeightsError, match="scales"):
        open_checkpoint(out)
