import pytest
import torch
from torch.nn import functional as F

from conftest import tiny_model
from nvembed.model.attention import Segments
from nvembed.model.nv_embed import NVEmbed, PackedBatch
from nvembed.model.pooling import SelfAttentionPooler, eos_pool, mean_pool

LENGTHS = (3, 1, 4)


def test_mean_and_eos() -> None:
    x = torch.randn(8, 5)
    expected = torch.stack([x[0:3].mean(0), x[3], x[4:8].mean(0)])
    torch.testing.assert_close(mean_pool(x, LENGTHS), expected)
    torch.testing.assert_close(eos_pool(x, LENGTHS), x[[2, 3, 7]])


def test_mean_is_summed_in_float32() -> None:
    x = torch.full((4096, 2), 1.001, dtype=torch.bfloat16)  # a bfloat16 sum stops growing long before 4096
    pooled = mean_pool(x, (4096,))
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, x[:1].float(), atol=1e-5, rtol=0)


def test_mean_passes_gradients() -> None:
    x = torch.randn(8, 5, requires_grad=True)
    mean_pool(x, LENGTHS)[0].sum().backward()
    expected = torch.zeros(8, 5)
    expected[:3] = 1 / 3
    torch.testing.assert_close(x.grad, expected)


def test_self_attention_block_against_torch() -> None:
    """Its attention is torch's own ``MultiheadAttention`` with the same matrices."""
    torch.manual_seed(0)
    pooler = SelfAttentionPooler(32, num_heads=4, ffn_mult=2)
    theirs = torch.nn.MultiheadAttention(32, 4, bias=False, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(pooler.to_qkv.weight)
        theirs.out_proj.weight.copy_(pooler.to_out.weight)
        x = torch.randn(8, 32)
        got = pooler(x, Segments.of(LENGTHS, x.device))
        start = 0
        for length in LENGTHS:
            text = x[start : start + length]
            normed = pooler.norm(text)[None]
            y = text + theirs(normed, normed, normed)[0][0]
            expected = y + pooler.feed_forward(y)
            torch.testing.assert_close(got[start : start + length], expected, atol=1e-5, rtol=1e-5)
            start += length


@pytest.mark.parametrize("pooling", ["latent", "mean", "eos", "self"])
def test_every_pooling_gives_unit_vectors_of_the_pooled_tokens(pooling: str) -> None:
    model: NVEmbed = tiny_model(pooling).eval()
    ids = torch.randint(0, 32000, (8,))
    index = torch.tensor([1, 2, 3, 6, 7])
    with torch.no_grad():
        got = model(PackedBatch(ids, Segments.of(LENGTHS, ids.device), index, (2, 1, 2)))
        states = model.embedding_model(ids, Segments.of(LENGTHS, ids.device))
        if model.self_attention_model is not None:
            states = model.self_attention_model(states, Segments.of(LENGTHS, ids.device))
        elif model.latent_attention_model is not None:
            states = model.latent_attention_model.token_states(states)
        picked = states[[2, 3, 7]] if pooling == "eos" else mean_pool(states[index], (2, 1, 2))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, F.normalize(picked, dim=-1), atol=1e-6, rtol=0)
