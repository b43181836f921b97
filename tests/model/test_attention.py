from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.attention_oracle import attention_oracle
from nvembed.errors import InputError, MissingExtraError
from nvembed.model.attention import (
    WHOLE,
    Reach,
    Segments,
    _attention_varlen,
    attention,
    is_dense,
    use_flash_attention,
)

LENGTHS = [(1,), (5,), (3, 3, 3), (7, 7, 2, 1, 1), (1, 9, 4, 4, 130)]
# atol against float64, for values of order 1: half precision rounds inputs, weights and outputs
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def inputs(lengths: tuple[int, ...], dtype: torch.dtype, heads: int = 4, kv_heads: int = 2):
    torch.manual_seed(len(lengths))
    total = sum(lengths)
    q, k, v = (torch.randn(total, n, 8, dtype=torch.float64) for n in (heads, kv_heads, kv_heads))
    return [x.to(dtype).requires_grad_() for x in (q, k, v)], Segments.of(lengths, torch.device("cpu"))


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_matches_float64_forward_and_backward(
    lengths: tuple[int, ...], dtype: torch.dtype, causal: bool
) -> None:
    (q, k, v), segments = inputs(lengths, dtype)
    out = attention(q, k, v, segments, Reach(causal))
    assert out.dtype == dtype
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), (q, k, v))

    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = attention_oracle(*exact, segments, Reach(causal))
    expected_gradients = torch.autograd.grad((expected * weight.double()).sum(), exact)

    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    for got, want in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(got.double(), want, atol=8 * tolerance, rtol=tolerance)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (9, 3), (4, 1)])
def test_grouped_heads(heads: int, kv_heads: int) -> None:
    (q, k, v), segments = inputs((4, 6), torch.float32, heads, kv_heads)
    expected = attention_oracle(q, k, v, segments).float()
    torch.testing.assert_close(attention(q, k, v, segments), expected, atol=2e-6, rtol=0)


def test_every_token_sees_its_own_text_and_no_other() -> None:
    (q, k, v), segments = inputs((3, 4), torch.float32)
    for changed in range(7):
        other = v.detach().clone()
        other[changed] += 1
        moved = (attention(q, k, other, segments) != attention(q, k, v, segments)).flatten(1).any(1)
        own = slice(0, 3) if changed < 3 else slice(3, 7)
        assert moved[own].all()
        assert moved.sum() == own.stop - own.start


def test_a_causal_token_sees_what_came_before_it() -> None:
    (q, k, v), segments = inputs((3, 4), torch.float32)
    for changed in range(7):
        other = v.detach().clone()
        other[changed] += 1
        before = attention(q, k, v, segments, Reach(causal=True))
        moved = (attention(q, k, other, segments, Reach(causal=True)) != before).flatten(1).any(1)
        assert moved.nonzero().flatten().tolist() == list(range(changed, 3 if changed < 3 else 7))


def test_positions_restart_with_each_text() -> None:
    segments = Segments.of((2, 1, 4), torch.device("cpu"))
    assert segments.positions().tolist() == [0, 1, 0, 0, 1, 2, 3]
    assert segments.cu_seqlens.tolist() == [0, 2, 3, 7]
    assert segments.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("later", [True, False], ids=["torch 2.12", "torch 2.11"])
def test_options_of_the_varlen_kernel_follow_its_release(
    later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From torch 2.12 on, grouped heads need a flag, and results independent of the batch another one."""
    segments = Segments.of((3, 5), torch.device("cpu"))
    q, k, v = (torch.randn(8, heads, 16) for heads in (4, 2, 2))

    def kernel(
        q: Tensor, k: Tensor, v: Tensor, *_: object, window_size: tuple[int, int], scale: float | None
    ) -> Tensor:
        assert window_size == (-1, -1)
        assert scale is None
        return attention_oracle(q, k, v, segments)

    def later_kernel(
        *args: Any, enable_gqa: bool = False, num_splits: int | None = None, **named: Any
    ) -> Tensor:
        assert enable_gqa
        assert num_splits == 1
        return kernel(*args, **named)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", later_kernel if later else kernel)
    out = _attention_varlen(q, k, v, segments, WHOLE)
    torch.testing.assert_close(out, attention_oracle(q, k, v, segments))


@pytest.mark.parametrize(
    ("lengths", "reach", "dense"),
    [
        ((1024,), WHOLE, True),
        ((2048, 2048, 2048), Reach(causal=True), True),
        ((2048, 2048), Reach(window=4000), True),
        ((2048, 2048), Reach(window=512), False),  # SDPA has no window
        ((2048, 2047), WHOLE, False),
        ((1023, 1023), WHOLE, False),
        ((2048, 0), WHOLE, False),  # what a graph of 2,048 tokens is recorded with
    ],
    ids=str,
)
def test_long_texts_of_equal_length_are_dense(lengths: tuple[int, ...], reach: Reach, dense: bool) -> None:
    assert is_dense(Segments.of(lengths, torch.device("cpu")), reach) == dense


def test_flash_attention_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="FA3, FA4"):
        use_flash_attention("FA5")
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", None, raising=False)
    with pytest.raises(MissingExtraError, match="torch"):
        use_flash_attention("FA3")
    names: list[str] = []
    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", names.append)
    use_flash_attention("FA4")
    assert names == ["FA4"]

    def absent(_: str) -> None:
        raise ImportError("No module named 'flash_attn'")

    monkeypatch.setattr("torch.nn.attention.activate_flash_attention_impl", absent)
    with pytest.raises(MissingExtraError, match="flash_attn"):
        use_flash_attention("FA4")


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("window", [0, 1, 3, 20, 200])
@pytest.mark.parametrize("lengths", [(1,), (2, 5), (9, 9, 4), (300, 3, 130)], ids=str)
def test_windows(lengths: tuple[int, ...], window: int, causal: bool) -> None:
    (q, k, v), segments = inputs(lengths, torch.float32)
    reach = Reach(causal, window, 0.3)
    out = attention(q, k, v, segments, reach)
    expected = attention_oracle(q, k, v, segments, reach)
    torch.testing.assert_close(out.double(), expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("reach", [WHOLE, Reach(window=2), Reach(causal=True)], ids=str)
def test_bias(reach: Reach) -> None:
    (q, k, v), segments = inputs((5, 5, 3), torch.float32, 4, 4)
    bias = torch.randn(4, 5, 5)
    out = attention(q, k, v, segments, reach, bias_HTT=bias)
    expected = attention_oracle(q, k, v, segments, reach, bias_HTT=bias)
    torch.testing.assert_close(out.double(), expected, atol=3e-6, rtol=0)
