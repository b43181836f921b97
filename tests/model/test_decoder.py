"""The decoder against transformers' own models of a tiny random config, read in both directions."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from conftest import tiny_backbone
from nvembed.model.attention import Segments
from nvembed.model.config import BackboneConfig, RopeScaling
from nvembed.model.decoder import Decoder
from nvembed.model.layers import embedding

transformers = pytest.importorskip("transformers", reason="transformers is the oracle of this test")

LLAMA3 = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=64)
CASES = {
    "mistral": tiny_backbone("mistral"),
    "mistral-head-dim": tiny_backbone("mistral", head_dim=16),
    "llama-smollm2-shape": tiny_backbone(
        "llama", hidden_size=72, num_heads=9, num_kv_heads=3, rope_theta=1e5
    ),
    "llama-3.1-rope": tiny_backbone("llama", rope_scaling=LLAMA3, rope_theta=5e5, head_dim=16),
    "qwen2": tiny_backbone("qwen2", rope_theta=1e6, rms_norm_eps=1e-6),
    "qwen3": tiny_backbone("qwen3", rope_theta=1e6, rms_norm_eps=1e-6, head_dim=16),
}


def oracle(config: BackboneConfig) -> nn.Module:
    kind = {"mistral": "Mistral", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[config.architecture]
    rope: dict[str, object] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_position,
        }
    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters=rope,
        sliding_window=None,
        use_cache=False,
        attn_implementation="eager",
    )
    return getattr(transformers, f"{kind}Model")(settings).eval()


@pytest.mark.parametrize("name", CASES)
def test_matches_transformers_read_in_both_directions(name: str) -> None:
    config = CASES[name]
    torch.manual_seed(1)
    theirs, ours = oracle(config), Decoder(config).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(1.0 if weight.ndim == 1 else 0.0, 0.2)
    ours.load_state_dict(theirs.state_dict())  # the names are the same

    lengths = (17, 17, 5, 1, 90)
    ids = torch.randint(0, config.vocab_size, (sum(lengths),))
    with torch.no_grad():
        packed = ours(ids, Segments.of(lengths, torch.device("cpu")))
        start = 0
        for length in lengths:
            text = slice(start, start + length)
            everything = torch.zeros(1, 1, length, length)  # an additive mask that hides nothing
            expected = theirs(input_ids=ids[text][None], attention_mask=everything).last_hidden_state[0]
            torch.testing.assert_close(packed[text], expected, atol=1e-5, rtol=1e-5)
            start += length


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(2)
    decoder = Decoder(tiny_backbone("mistral"))
    ids, segments = torch.randint(0, 32000, (40,)), Segments.of((40,), torch.device("cpu"))
    with torch.no_grad():
        exact = decoder(ids, segments)
        half = decoder.to(dtype)(ids, segments)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), exact, atol=0.15 if dtype == torch.bfloat16 else 0.02, rtol=0)


def test_embedding_is_torchs() -> None:
    """The same values from the same seed; on the meta device nothing slow is imported for it."""
    torch.manual_seed(3)
    plain = torch.nn.Embedding(5, 4)
    torch.manual_seed(3)
    ours = embedding(5, 4)
    assert torch.equal(plain.weight, ours.weight)
    assert ours.weight.requires_grad
    code = "import sys, torch; from nvembed.model.layers import embedding\n"
    code += "with torch.device('meta'): embedding(5, 4)\nassert 'sympy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
