"""Every backbone against transformers' own model of a tiny random config, packed and padded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from nvembed.model.attention import Segments
from nvembed.model.config import (
    BackboneConfig,
    BertConfig,
    EmbeddingGemma2Config,
    GemmaConfig,
    ModernBertConfig,
    YarnScaling,
)
from nvembed.model.nv_embed import build_backbone

LENGTHS = (1, 3, 40, 7, 40)


def randomised(model: nn.Module) -> nn.Module:
    """Norms and biases are random too, so that none of them is without effect."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0.3 if value.ndim == 1 else 0.0, 0.2 if "embed" not in name else 1.0)
    return model.eval()


def expected_states(model: nn.Module, texts: list[torch.Tensor]) -> torch.Tensor:
    """One text at a time, without padding."""
    with torch.no_grad():
        return torch.cat([model(input_ids=ids[None]).last_hidden_state[0] for ids in texts])


def packed_states(backbone: nn.Module, texts: list[torch.Tensor]) -> torch.Tensor:
    segments = Segments.of(tuple(map(len, texts)), torch.device("cpu"))
    with torch.no_grad():
        return backbone(torch.cat(texts), segments)


def some_texts() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randint(5, 90, (length,)) for length in LENGTHS]


def compare(ours: nn.Module, model: nn.Module, texts: list[torch.Tensor]) -> None:
    packed = packed_states(ours, texts)
    torch.testing.assert_close(packed, expected_states(model, texts), atol=1e-5, rtol=1e-5)


COMMON = {
    "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4,
}  # fmt: skip
OURS = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_layers": 3, "num_heads": 4}


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
def test_gemma3(causal: bool) -> None:
    """The window of 8 is a radius of 4 where both directions are read, and 7 tokens back where one is."""
    config = transformers.Gemma3TextConfig(
        **COMMON, num_key_value_heads=2, head_dim=16, sliding_window=8, query_pre_attn_scalar=24,
        use_bidirectional_attention=not causal, sliding_window_pattern=2, attn_implementation="eager",
    )  # fmt: skip
    model = randomised(transformers.Gemma3TextModel(config))
    radius = 7 if causal else 4
    ours = build_backbone(
        GemmaConfig(
            **OURS,
            num_kv_heads=2,
            head_dim=16,
            max_position=512,
            windows=(radius, None, radius),
            query_scale=24**-0.5,
            causal=causal,
        )
    )
    ours.load_state_dict(model.state_dict())
    texts = some_texts()
    torch.testing.assert_close(
        packed_states(ours, texts), expected_states(model, texts), atol=1e-5, rtol=1e-5
    )


def test_embedding_gemma2() -> None:
    """The window is a radius; global layers have other heads; the projection follows pooling in ours."""
    config = transformers.EmbeddingGemma2TextConfig(
        **COMMON, num_key_value_heads=2, head_dim=16, global_head_dim=24, num_global_key_value_heads=1,
        sliding_window=4, sliding_window_pattern=3, hidden_size_per_layer_input=12, embedding_dim=40,
        attn_implementation="eager",
    )  # fmt: skip
    model = randomised(transformers.EmbeddingGemma2TextModel(config))
    for layer in model.layers:
        layer.layer_scalar.uniform_(0.5, 1.5)
    ours = build_backbone(
        EmbeddingGemma2Config(
            **OURS, num_kv_heads=2, head_dim=16, global_kv_heads=1, global_head_dim=24, gate_size=12,
            max_position=512, windows=(4, 4, None),
        )
    )  # fmt: skip
    state = model.state_dict()
    projection = state.pop("embedding_projection.weight")
    ours.load_state_dict(state)
    texts = some_texts()
    packed = packed_states(ours, texts) @ projection.T
    torch.testing.assert_close(packed, expected_states(model, texts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("long", [False, True], ids=["short", "beyond the original context"])
def test_ministral3(long: bool) -> None:
    scaling = {
        "rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 16,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    config = transformers.Ministral3Config(
        **COMMON, num_key_value_heads=2, head_dim=16, max_position_embeddings=64, rope_parameters=scaling,
        attn_implementation="eager",
    )  # fmt: skip
    model = randomised(transformers.Ministral3Model(config))
    ours = build_backbone(
        BackboneConfig(
            "ministral3",
            **OURS,
            num_kv_heads=2,
            head_dim=16,
            max_position=64,
            rope_theta=1000.0,
            rope_scaling=YarnScaling(4.0, 16),
            causal=True,
            temperature_beta=0.1,
        )
    )
    ours.load_state_dict(model.state_dict())
    texts = some_texts() if long else [ids[:12] for ids in some_texts()]
    torch.testing.assert_close(
        packed_states(ours, texts), expected_states(model, texts), atol=1e-5, rtol=1e-5
    )


def renamed(state: dict[str, Any], names: dict[str, str], drop: tuple[str, ...] = ()) -> dict[str, Any]:
    found = {}
    for name, value in state.items():
        if not name.startswith(drop):
            for old, new in names.items():
                name = name.replace(old, new)
            found[name] = value
    return found


BERT_NAMES = {
    "embeddings.word_embeddings": "embed_tokens", "embeddings.position_embeddings": "position_embeddings",
    "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "embedding_norm",
    "encoder.relative_attention_bias": "relative_bias", "encoder.layer.": "layers.",
    "attention.self.query": "q_proj", "attention.self.key": "k_proj", "attention.self.value": "v_proj",
    "attention.attn.q": "q_proj", "attention.attn.k": "k_proj", "attention.attn.v": "v_proj",
    "attention.attn.o": "o_proj", "attention.output.dense": "o_proj",
    "attention.output.LayerNorm": "attention_norm", "attention.LayerNorm": "attention_norm",
    "intermediate.dense": "up_proj", "output.dense": "down_proj", "output.LayerNorm": "mlp_norm",
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "config", "sizes"),
    [
        (transformers.BertModel, transformers.BertConfig, {"position_rows": 64}),
        (
            transformers.XLMRobertaModel,
            transformers.XLMRobertaConfig,
            {"position_rows": 64, "first_position": 2, "token_types": 1, "layer_norm_eps": 1e-5},
        ),
        (
            transformers.MPNetModel,
            transformers.MPNetConfig,
            {
                "position_rows": 64,
                "first_position": 2,
                "token_types": 0,
                "layer_norm_eps": 1e-5,
                "relative_buckets": 32,
            },
        ),
    ],
    ids=["bert", "xlm-roberta", "mpnet"],
)
def test_bert(build: Callable[..., nn.Module], config: Callable[..., Any], sizes: dict[str, Any]) -> None:
    types = {"type_vocab_size": sizes["token_types"]} if sizes.get("token_types") else {}
    theirs = config(
        **COMMON, **types, max_position_embeddings=64, layer_norm_eps=sizes.get("layer_norm_eps", 1e-12),
        attn_implementation="eager",
    )  # fmt: skip
    model = randomised(build(theirs))
    ours = build_backbone(BertConfig(**OURS, **sizes))
    ours.load_state_dict(renamed(model.state_dict(), BERT_NAMES, ("pooler.", "embeddings.position_ids")))
    texts = some_texts()
    torch.testing.assert_close(
        packed_states(ours, texts), expected_states(model, texts), atol=1e-5, rtol=1e-5
    )


def test_modernbert() -> None:
    config = transformers.ModernBertConfig(
        **COMMON, local_attention=8, global_attn_every_n_layers=2, attn_implementation="eager",
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    model = randomised(transformers.ModernBertModel(config))
    ours = build_backbone(ModernBertConfig(**OURS, max_position=64, windows=(None, 4, None)))
    ours.load_state_dict(model.state_dict())
    texts = some_texts()
    torch.testing.assert_close(
        packed_states(ours, texts), expected_states(model, texts), atol=1e-5, rtol=1e-5
    )
