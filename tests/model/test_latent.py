import numpy as np
import pytest
import torch
from torch.nn import functional as F

from conftest import TINY_POOLER, tiny_model
from nvembed.model.config import NV_EMBED_V2, PoolerConfig
from nvembed.model.latent import FoldedLatentAttention, LatentAttention, _chunks, fold
from nvembed.model.nv_embed import NVEmbed


def random_pooler(config: PoolerConfig = TINY_POOLER, size: int = 32) -> LatentAttention:
    torch.manual_seed(3)
    pooler = LatentAttention(size, config)
    with torch.no_grad():
        for weight in pooler.parameters():
            if weight.ndim == 1:
                weight.normal_(1.0, 0.5)
    return pooler


def slow(pooler: LatentAttention, x_D: torch.Tensor, heads: int) -> torch.Tensor:
    """One token's state, in float64, head by head and latent by latent, as the facts state it."""
    weights = {name: value.detach().double() for name, value in pooler.named_parameters()}
    block, x = "cross_attend_blocks.0.", x_D.double()
    size = x.shape[0]

    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(value, (size,), weights[name + ".weight"], weights[name + ".bias"])

    query = weights[block + "fn.to_q.weight"] @ norm(x, block + "norm")
    kv = norm(weights["latents"], block + "norm_context") @ weights[block + "fn.to_kv.weight"].T
    keys, values = kv[:, : len(query)], kv[:, len(query) :]
    width = len(query) // heads
    answer = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.stack([query[part] @ key / width**0.5 for key in keys[:, part]])
        answer.append(sum(p * value for p, value in zip(scores.softmax(0), values[:, part], strict=True)))
    y = x + weights[block + "fn.to_out.weight"] @ torch.cat(answer)
    block = "cross_attend_blocks.1."
    hidden = weights[block + "fn.net.0.weight"] @ norm(y, block + "norm") + weights[block + "fn.net.0.bias"]
    value, gate = hidden.chunk(2)
    gelu = gate * 0.5 * (1 + torch.erf(gate / 2**0.5))
    out = weights[block + "fn.net.2.weight"] @ (value * gelu) + weights[block + "fn.net.2.bias"]
    return y + out


def test_plain_form_matches_the_slow_one() -> None:
    pooler = random_pooler()
    x = torch.randn(5, 32)
    expected = torch.stack([slow(pooler, row, TINY_POOLER.num_heads) for row in x])
    torch.testing.assert_close(pooler.token_states(x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 2, 7, 4096])
def test_fold_is_exact(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FoldedLatentAttention, "chunk_tokens", chunk)
    lengths = (4, 1, 9, 3)
    x = torch.randn(sum(lengths), 32)
    pooler = random_pooler()
    with torch.no_grad():
        plain = pooler(x, lengths)
        folded = fold(pooler, 32, TINY_POOLER)(x, lengths)
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=1e-5)


def test_fold_in_float64_is_algebra() -> None:
    pooler = random_pooler().double()
    x, lengths = torch.randn(6, 32, dtype=torch.float64), (6,)
    with torch.no_grad():
        folded = fold(pooler, 32, TINY_POOLER)
        keys = folded.keys.view(2, 6, 32)
        cross = pooler.cross_attend_blocks[0]
        y = x.clone()
        for head in range(2):
            scores = F.layer_norm(x, (32,), cross.norm.weight, cross.norm.bias) @ keys[head].T
            y += scores.softmax(-1) @ folded.values.view(2, 6, 32)[head]
        torch.testing.assert_close(y, cross(x, pooler.latents), atol=1e-13, rtol=1e-13)
        assert folded(x, lengths).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fold_in_half_precision(dtype: torch.dtype) -> None:
    pooler, lengths = random_pooler(), (5, 2)
    x = torch.randn(7, 32)
    with torch.no_grad():
        exact = pooler(x, lengths)
        folded = fold(pooler.to(dtype), 32, TINY_POOLER)
        assert folded.keys.dtype == dtype
        assert folded(x.to(dtype), lengths).dtype == torch.float32
        torch.testing.assert_close(folded(x.to(dtype), lengths), exact, atol=0.06, rtol=0.02)


def test_chunks_cover_every_token_once() -> None:
    chunks = _chunks((3, 1, 6), 4)
    assert chunks == [
        (slice(0, 4), slice(0, 2), [3, 1]),
        (slice(4, 8), slice(2, 3), [4]),
        (slice(8, 10), slice(2, 3), [2]),
    ]


def test_sizes_of_the_released_model() -> None:
    """Facts 1.2: 304 tensors, 7,851,016,192 parameters, 740,356,096 of them in the pooler."""
    with torch.device("meta"):
        model = NVEmbed(NV_EMBED_V2)
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    assert len(shapes) == 304
    assert sum(shape.numel() for shape in shapes.values()) == 7_851_016_192
    pooler = {k: v for k, v in shapes.items() if k.startswith("latent_attention_model.")}
    assert len(pooler) == 14
    assert sum(shape.numel() for shape in pooler.values()) == 740_356_096


def test_folding_a_whole_model_keeps_its_vectors() -> None:
    from nvembed.encoder import _forward
    from nvembed.text.pack import pack
    from nvembed.text.tokenize import Tokens

    model = tiny_model().eval()
    batch = pack([Tokens(torch.arange(n).int().numpy(), s, n) for n, s in ((9, 4), (3, 0))], [0, 1])
    plain = _forward(model, batch).numpy()
    model.fold_pooler()
    assert isinstance(model.latent_attention_model, FoldedLatentAttention)
    np.testing.assert_allclose(_forward(model, batch).numpy(), plain, atol=1e-6)
