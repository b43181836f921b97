"""An untrained NV-Embed: fresh pooler values, how it reads text, and the tokenizer other readers get."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import tiny_lm
import torch
from tokenizers import Tokenizer

from nvembed.errors import ConfigError, InputError
from nvembed.model.config import PoolerConfig, PoolingKind
from nvembed.weights.base import embedding_tokenizer_files, read_causal_lm, text_settings, untrained
from nvembed.weights.causal_lm import CausalLM
from nvembed.weights.tensors import expected_tensors

POOLER = PoolerConfig(num_latents=24, num_heads=2, head_dim=64)


@pytest.fixture
def lm(tmp_path: Path) -> CausalLM:
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    return read_causal_lm(tmp_path / "lm")


@pytest.mark.parametrize(("pooling", "count"), [("latent", 14), ("self", 10), ("mean", 0), ("eos", 0)])
def test_names_and_shapes(lm: CausalLM, pooling: PoolingKind, count: int) -> None:
    config, tensors = untrained(lm, POOLER, pooling=pooling, seed=0)
    made = dict(tensors)
    assert {name: tuple(value.shape) for name, value in made.items()} == expected_tensors(config)
    backbone = {f"embedding_model.{name}": value for name, value in lm.tensors()}
    assert all(torch.equal(made[name], value) for name, value in backbone.items())
    assert len(made) - len(backbone) == count


def test_released_pooler_names_scaled_to_the_hidden_size(lm: CausalLM) -> None:
    made = dict(untrained(lm, POOLER, pooling="latent", seed=0)[1])
    prefix = "latent_attention_model."
    shapes = {n.removeprefix(prefix): tuple(v.shape) for n, v in made.items() if n.startswith(prefix)}
    blocks = "cross_attend_blocks."
    assert shapes == {
        "latents": (24, 64),
        **{
            f"{blocks}0.{norm}.{leaf}": (64,)
            for norm in ("norm", "norm_context")
            for leaf in ("weight", "bias")
        },
        f"{blocks}0.fn.to_q.weight": (128, 64),
        f"{blocks}0.fn.to_kv.weight": (256, 64),
        f"{blocks}0.fn.to_out.weight": (64, 128),
        **{f"{blocks}1.norm.{leaf}": (64,) for leaf in ("weight", "bias")},
        f"{blocks}1.fn.net.0.weight": (512, 64),
        f"{blocks}1.fn.net.0.bias": (512,),
        f"{blocks}1.fn.net.2.weight": (64, 256),
        f"{blocks}1.fn.net.2.bias": (64,),
    }


def test_fresh_values(lm: CausalLM) -> None:
    large = PoolerConfig(num_latents=512, num_heads=4, head_dim=64)
    made = dict(untrained(lm, large, pooling="latent", seed=1)[1])
    block = "latent_attention_model.cross_attend_blocks."
    latents = made["latent_attention_model.latents"]
    assert latents.mean().abs() < 0.02
    assert latents.std() == pytest.approx(1, abs=0.02)
    for name in ("0.fn.to_q.weight", "0.fn.to_kv.weight", "1.fn.net.0.weight", "1.fn.net.0.bias"):
        value, bound = made[block + name], 1 / math.sqrt(64)
        assert value.abs().max() <= bound
        assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.05)  # a uniform distribution's
    for name in ("0.fn.to_out.weight", "1.fn.net.2.weight", "1.fn.net.2.bias", "0.norm.bias", "1.norm.bias"):
        assert made[block + name].abs().max() == 0
    for name in ("0.norm.weight", "0.norm_context.weight", "1.norm.weight"):
        assert (made[block + name] == 1).all()


def test_linear_layers_are_drawn_as_torch_draws_them() -> None:
    """The bound above is that of torch's own initialisation."""
    layer = torch.nn.Linear(64, 4096)
    for value in (layer.weight, layer.bias):
        assert value.abs().max() <= 1 / 8
        assert value.abs().max() > 0.99 / 8


def test_seed_decides(lm: CausalLM) -> None:
    def latents(seed: int) -> torch.Tensor:
        torch.manual_seed(seed + 100)  # the global generator has no say
        return dict(untrained(lm, POOLER, pooling="latent", seed=seed)[1])["latent_attention_model.latents"]

    assert torch.equal(latents(0), latents(0))
    assert not torch.equal(latents(0), latents(1))


def with_roles(lm: CausalLM, roles: dict[str, object]) -> CausalLM:
    files = {**lm.tokenizer_files, "tokenizer_config.json": json.dumps(roles).encode()}
    return dataclasses.replace(lm, tokenizer_files=files)


def test_text_settings(lm: CausalLM) -> None:
    settings = text_settings(lm)
    assert (settings.mode, settings.max_length) == ("clean", 128)
    assert (settings.eos_token, settings.eos_id) == ("<|im_end|>", 2)
    assert settings.bos_id == 0, "a chat turn's opening gives way to the document separator"
    assert text_settings(lm, bos="<|im_start|>").bos_id == 1
    assert text_settings(lm, bos="").bos_id is None
    assert text_settings(lm, eos="<|endoftext|>", max_length=3).eos_id == 0
    assert text_settings(lm, max_length=3).max_length == 3
    assert text_settings(with_roles(lm, {"eos_token": "<|im_end|>"})).bos_id is None
    plain = with_roles(lm, {"bos_token": {"content": "<|im_end|>"}, "eos_token": "<|endoftext|>"})
    assert (text_settings(plain).bos_id, text_settings(plain).eos_id) == (2, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bos": "<s>"}, "'<s>' is not in this model's vocabulary"),
        ({"eos": "</s>"}, "'</s>' is not in this model's vocabulary"),
        ({"max_length": 129}, "max_length is 129: expected 3 to 128, the backbone's context"),
        ({"max_length": 2}, "max_length is 2: expected 3 to 128"),
    ],
)
def test_text_settings_refused(lm: CausalLM, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        text_settings(lm, **options)  # type: ignore[arg-type]


def test_tokenizers_that_cannot_be_used(lm: CausalLM) -> None:
    with pytest.raises(ConfigError, match=r"names no eos_token"):
        text_settings(with_roles(lm, {"bos_token": "<|im_start|>"}))
    no_roles = {"tokenizer.json": lm.tokenizer_files["tokenizer.json"]}
    with pytest.raises(ConfigError, match=r"names no eos_token"):
        text_settings(dataclasses.replace(lm, tokenizer_files=no_roles))
    broken = {**lm.tokenizer_files, "tokenizer.json": b"{"}
    with pytest.raises(ConfigError, match=r"tokenizer.json is not JSON"):
        text_settings(dataclasses.replace(lm, tokenizer_files=broken))
    unigram = {**lm.tokenizer_files, "tokenizer.json": b'{"model": {"vocab": [["a", -1.0]]}}'}
    with pytest.raises(ConfigError, match=r"not byte-pair encoding"):
        text_settings(dataclasses.replace(lm, tokenizer_files=unigram))


@pytest.mark.parametrize("bos", ["<|endoftext|>", "<|im_start|>", ""])
def test_other_readers_get_the_same_bos(lm: CausalLM, bos: str) -> None:
    lm = dataclasses.replace(
        lm, tokenizer_files={**lm.tokenizer_files, "special_tokens_map.json": b'{"bos_token": "?"}'}
    )
    settings = text_settings(lm, bos=bos)
    files = embedding_tokenizer_files(lm, settings)
    ids = Tokenizer.from_buffer(files["tokenizer.json"]).encode("two judges").ids
    plain = tiny_lm.tokenizer().encode("two judges").ids
    assert ids == ([settings.bos_id] if bos else []) + plain
    roles = json.loads(files["tokenizer_config.json"])
    special = json.loads(files["special_tokens_map.json"])
    for named in (roles, special):
        assert (named["bos_token"], named["eos_token"]) == (bos or None, "<|im_end|>")
        assert named["pad_token"] == "<|im_end|>"
    assert (roles["add_bos_token"], roles["padding_side"]) == (bool(bos), "right")
