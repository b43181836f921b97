"""Causal LM folders: every layout gives the tensors that were written; the rest is refused with a reason."""

import json
from pathlib import Path

import pytest
import tiny_lm
import torch
from safetensors.torch import load_file, save_file

from nvembed.errors import ConfigError, WeightsError
from nvembed.model.config import Architecture
from nvembed.weights.base import read_causal_lm


@pytest.mark.parametrize("architecture", ["mistral", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("prefix", "shards"), [("model.", 1), ("", 1), ("model.", 3)])
def test_folder(tmp_path: Path, architecture: Architecture, prefix: str, shards: int) -> None:
    config = tiny_lm.sizes(architecture)
    written = tiny_lm.folder(tmp_path / "lm", config, prefix=prefix, shards=shards)
    lm = read_causal_lm(tmp_path / "lm")
    assert lm.config.hidden_size == 64
    assert lm.config.qkv_bias == (architecture == "qwen2")
    for _ in range(2):  # each pass starts afresh
        read = dict(lm.tensors())
        assert read.keys() == written.keys()
        assert all(torch.equal(read[name], written[name]) for name in written)
    assert set(lm.tokenizer_files) == {"tokenizer.json", "tokenizer_config.json"}
    assert lm.tokenizer_files["tokenizer.json"] == (tmp_path / "lm" / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("model_type", ["mistral", "llama", "qwen2", "qwen3"])
def test_folder_written_by_transformers(tmp_path: Path, model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=model_type == "qwen2",
    )
    theirs = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    tiny_lm.tokenizer().save(str(tmp_path / "tokenizer.json"))
    read = dict(read_causal_lm(tmp_path).tensors())
    expected = theirs.model.state_dict()
    assert read.keys() == expected.keys()
    assert all(read[name].dtype == torch.bfloat16 for name in read)
    assert all(torch.equal(read[name], expected[name]) for name in expected)


def test_faults_of_tensors_are_all_named(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    file = tmp_path / "lm" / "model.safetensors"
    stored = load_file(file)
    del stored["model.norm.weight"], stored["model.layers.1.mlp.up_proj.weight"]
    stored["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)
    stored["model.layers.0.mlp.gate_proj.weight"] = torch.zeros(3, 4)
    save_file(stored, file)
    with pytest.raises(WeightsError) as caught:
        read_causal_lm(tmp_path / "lm")
    message = str(caught.value)
    for part in (
        "norm.weight",
        "layers.1.mlp.up_proj.weight",
        "layers.0.self_attn.q_proj.bias",
        "layers.0.mlp.gate_proj.weight is (3, 4), expected (96, 64)",
    ):
        assert part in message


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    file = tmp_path / "lm" / "model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"] = stored["model.norm.weight"].to(torch.int8)
    save_file(stored, file)
    with pytest.raises(WeightsError, match=r"not floats: norm\.weight is I8, expected F64, F32, F16, BF16"):
        read_causal_lm(tmp_path / "lm")


def test_pickles_are_refused(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    (tmp_path / "lm" / "model.safetensors").rename(tmp_path / "lm" / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"only pickled weights \(pytorch_model.bin\)"):
        read_causal_lm(tmp_path / "lm")


def test_missing_shard(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes(), shards=3)
    (tmp_path / "lm" / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model-00002-of-00003.safetensors"):
        read_causal_lm(tmp_path / "lm")


def test_truncated_file(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    file = tmp_path / "lm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"model.safetensors .*truncated or corrupt"):
        read_causal_lm(tmp_path / "lm")


def test_no_tokenizer(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    (tmp_path / "lm" / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match=r"has no tokenizer.json: make one with transformers'"):
        read_causal_lm(tmp_path / "lm")


def test_unknown_architecture(tmp_path: Path) -> None:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    (tmp_path / "lm" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ConfigError, match=r"got model_type 'gpt2'; expected mistral, llama"):
        read_causal_lm(tmp_path / "lm")


@pytest.mark.parametrize("name", ["absent", "absent.gguf", "notes.txt"])
def test_neither_folder_nor_gguf(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=rf"{name} is not a \.gguf file or a causal LM's folder"):
        read_causal_lm(tmp_path / name)
