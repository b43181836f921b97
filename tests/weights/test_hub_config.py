"""Backbone sizes from and to the hub's config form, with transformers' defaults as the oracle."""

import dataclasses

import pytest

from nvembed.errors import ConfigError
from nvembed.model.config import NV_EMBED_V2, BackboneConfig, RopeScaling
from nvembed.weights.hub_config import backbone_config, hub_config_dict

SIZES: dict[str, object] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
RELEASED: dict[str, object] = {
    "model_type": "bidir_mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


def test_released_config_is_nv_embed_v2() -> None:
    assert backbone_config({**RELEASED, "sliding_window": 4096}) == NV_EMBED_V2.backbone


def test_nv_embed_v2_is_written_with_the_released_keys() -> None:
    written = hub_config_dict(NV_EMBED_V2.backbone, bos_token_id=1, eos_token_id=2)
    assert {key: written[key] for key in RELEASED} == RELEASED
    assert (written["bos_token_id"], written["eos_token_id"]) == (1, 2)
    assert written["architectures"] == ["MistralModel"]
    assert written["sliding_window"] is None
    assert "head_dim" not in written


@pytest.mark.parametrize("model_type", ["mistral", "llama", "qwen2", "qwen3"])
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model(model_type, **SIZES)
    ours = backbone_config({"model_type": model_type, **SIZES})
    assert ours.num_kv_heads == theirs.num_key_value_heads
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or theirs.hidden_size // 32)
    assert ours.max_position == theirs.max_position_embeddings
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert backbone_config(theirs.to_dict()) == ours


def test_old_and_new_rotary_keys_agree() -> None:
    base = {"model_type": "llama", **SIZES}
    old = backbone_config({**base, "rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = backbone_config({**base, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}})
    assert old == new
    assert (new.rope_theta, new.rope_scaling) == (5e5, RopeScaling(8.0, 1.0, 4.0, 8192))
    mixed = backbone_config({**base, "rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}})
    assert (mixed.rope_theta, mixed.rope_scaling) == (5e5, None)
    assert backbone_config({**base, "rope_theta": 5e5, "rope_scaling": None}) == mixed


@pytest.mark.parametrize("architecture", ["mistral", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("head_dim", [16, 24])
@pytest.mark.parametrize("scaling", [None, RopeScaling(8.0, 1.0, 4.0, 8192)])
def test_round_trip(architecture: str, head_dim: int, scaling: RopeScaling | None) -> None:
    config = BackboneConfig(
        architecture=architecture,  # type: ignore[arg-type]
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        max_position=512,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        rope_scaling=scaling,
    )
    written = hub_config_dict(config)
    same_function = architecture == "llama" and head_dim == 16 and scaling is None
    expected = dataclasses.replace(config, architecture="mistral") if same_function else config
    assert backbone_config(written) == expected
    assert (written["model_type"] == "bidir_mistral") == (architecture == "mistral" or same_function)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma2"}, "got model_type 'gemma2'; expected mistral, llama .* qwen2, qwen3"),
        ({"model_type": None}, "got model_type None; expected"),
        ({"vocab_size": None, "hidden_size": None}, "lacks vocab_size, hidden_size"),
        ({"hidden_size": 66}, r"hidden_size \(66\) is not a multiple of num_attention_heads \(32\)"),
        ({"num_key_value_heads": 3}, r"num_attention_heads \(32\) must be a multiple .* \(3\)"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers must be a whole number above 0; got '2'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number above 0; got True"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps must be a number above 0; got -1.0"),
        ({"head_dim": 3}, "head_dim is 3; rotary embeddings need an even number"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "attention_bias is True, which is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config of another library"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary scaling of type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor, high_freq_factor"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, r"low_freq_factor \(4.0\) must be below"),
        ({"rope_parameters": [1]}, r"must be an object; got \[1\]"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        backbone_config({"model_type": "llama", **SIZES, **change})
