"""Adapters on disk: merged without peft, opened by peft in other tools."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from training import job, recipe, tiny

from conftest import TINY_A
from nvembed.encoder import Encoder
from nvembed.errors import ConfigError, MissingExtraError, WeightsError
from nvembed.train.adapt import adapt
from nvembed.train.loop import encode, train
from nvembed.weights.adapter import Adapter, read_adapter
from nvembed.weights.checkpoint import merged_tensors, open_checkpoint
from nvembed.weights.save import save_checkpoint


def merge(adapter: Path, out: Path) -> Path:
    base = open_checkpoint(TINY_A)
    tensors = merged_tensors(base, read_adapter(adapter), dtype=torch.float32)
    files = base.tokenizer_files()
    save_checkpoint(out, base.config, base.text, tensors, tokenizer_files=files)
    return out


@pytest.mark.parametrize("kind", ["lora", "full", "none"])
def test_a_merged_checkpoint_gives_the_vectors_of_training(tmp_path: Path, kind: str) -> None:
    made = job(tmp_path / "run", recipe(adapter={"kind": kind, "frozen_layers": int(kind == "lora")}))
    train(made)
    merged = Encoder.from_pretrained(merge(tmp_path / "run" / "last", tmp_path / "merged"), device="cpu")
    texts = ["judo mask token", "river " * 20, "x"]
    found = merged.encode(texts)
    np.testing.assert_allclose(found, encode(made, texts, "", max_tokens=100), atol=2e-6)
    assert np.abs(found - Encoder.from_pretrained(TINY_A, device="cpu").encode(texts)).max() > 1e-3


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing:FutureWarning"
)  # peft asks, transformers warns
def test_the_adapter_opens_in_peft(tmp_path: Path) -> None:
    """peft, told to merge it into transformers' own decoder, gives the weights that we give."""
    from peft import PeftModel
    from transformers import AutoConfig, AutoModel

    train(job(tmp_path / "run", recipe()))
    folder = (tmp_path / "run" / "last").resolve()
    base = open_checkpoint(TINY_A)
    text_config = json.loads((TINY_A / "config.json").read_text())["text_config"]
    config = AutoConfig.for_model(
        "mistral",
        **{key: value for key, value in text_config.items() if key not in ("model_type", "architectures")},
    )
    theirs = AutoModel.from_config(config)
    ours = dict(merged_tensors(base, read_adapter(folder), dtype=torch.float32))
    plain = dict(merged_tensors(base, read_adapter_of_pooler(folder, tmp_path), dtype=torch.float32))
    prefix = "embedding_model."
    theirs.load_state_dict(
        {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
    )
    merged = PeftModel.from_pretrained(theirs.float(), str(folder)).merge_and_unload().state_dict()
    changed = 0
    for name, value in merged.items():
        torch.testing.assert_close(value, ours[prefix + name], atol=1e-6, rtol=1e-6, msg=name)
        changed += int(not torch.equal(ours[prefix + name], plain[prefix + name]))
    assert changed == 2 * 7


def read_adapter_of_pooler(folder: Path, tmp_path: Path) -> Adapter:
    """The same state without its adapter: only the pooler is replaced."""
    (tmp_path / "pooler").mkdir()
    (tmp_path / "pooler" / "pooler.safetensors").write_bytes((folder / "pooler.safetensors").read_bytes())
    return read_adapter(tmp_path / "pooler")


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no adapter: expected adapter_model\.safetensors, pooler"):
        read_adapter(tmp_path)
    a, b = torch.ones(2, 3), torch.ones(3, 2)
    name = "base_model.model.layers.0.mlp.up_proj.lora_{}.weight"
    save_file({name.format("A"): a, name.format("B"): b}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json"):
        read_adapter(tmp_path)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4}
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"has adapter_config.json but no adapter_model.safetensors"):
        read_adapter(tmp_path / "gone")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(WeightsError, match=r"plain LoRA|peft_type"):
        read_adapter(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    adapter = read_adapter(tmp_path)
    assert adapter.scale == 2
    with pytest.raises(WeightsError, match=r"embedding_model.layers.0.mlp.up_proj.weight is \(3, 3\)"):
        list(merged_tensors(open_checkpoint(TINY_A), adapter))
    save_file({name.format("A"): a}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match=r"lora_A.weight has no .*lora_B.weight"):
        read_adapter(tmp_path)
    save_file(
        {name.replace("layers.0", "layers.99").format(x): v for x, v in (("A", a), ("B", b))},
        tmp_path / "adapter_model.safetensors",
    )
    with pytest.raises(WeightsError, match=r"changes embedding_model.layers.99.mlp.up_proj.weight, which"):
        list(merged_tensors(open_checkpoint(TINY_A), read_adapter(tmp_path)))


def test_what_cannot_be_adapted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = tiny()
    with pytest.raises(ConfigError, match=r"'q_prj' is not a layer of the backbone: did you mean 'q_proj'"):
        adapt(model, recipe(adapter={"targets": ["q_prj"]}).adapter, seed=0)
    with pytest.raises(ConfigError, match=r"frozen_layers is 9: expected less than 2"):
        adapt(model, recipe(adapter={"frozen_layers": 9}).adapter, seed=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft.*pip install 'nvembed\[train\]'"):
        adapt(model, recipe().adapter, seed=0)
