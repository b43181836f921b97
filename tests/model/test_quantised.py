"""8- and 4-bit layers against their oracle: dequantise, multiply in float64."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conftest import tiny_model
from nvembed.errors import InputError, NumericsError
from nvembed.model.attention import Segments
from nvembed.model.decoder import RMSNorm
from nvembed.model.float8 import LARGEST, Float8Linear, Float8Rows, check_float8, float8_rows
from nvembed.model.gemma import GemmaNorm
from nvembed.model.layers import frequencies, rotary
from nvembed.model.nv_embed import PackedBatch
from nvembed.model.quantised import (
    GROUP,
    FastRMSNorm,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    NormToRows,
    Rows,
    dequantise_groups,
    dequantise_rows,
    int8_product,
    quantise,
    quantise_groups,
    quantise_rows,
    scheme_of,
)


def values(seed: int, rows: int, columns: int, outliers: int, zero_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, columns, generator=generator)
    made[:, torch.randperm(columns, generator=generator)[:outliers]] *= 500
    made[:zero_rows] = 0
    return made


shapes = partial(
    given,
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 40),
    inputs=st.integers(1, 5).map(lambda groups: groups * GROUP),
    outputs=st.integers(1, 70),
    outliers=st.integers(0, 3),
    zero_rows=st.integers(0, 3),
)


def rounding(x: Tensor) -> Tensor:
    """Half of a step: the most that 8 bits move a number of each row."""
    return x.double().abs().amax(1, keepdim=True) / 127 / 2


@shapes()
@settings(max_examples=40, deadline=None)
def test_int8_product(
    seed: int, tokens: int, inputs: int, outputs: int, outliers: int, zero_rows: int
) -> None:
    x, weight = (
        values(seed, tokens, inputs, outliers, zero_rows),
        values(seed + 1, outputs, inputs, outliers, 1),
    )
    bias = nn.Parameter(torch.randn(outputs))
    layer = Int8Linear(bias)
    layer.load(*quantise_rows(weight))
    y = layer(x).double()
    rounded = dequantise_rows(*quantise_rows(weight)).double()
    assert (rounded - weight).abs().le(rounding(weight) * 1.001).all()
    rows = Rows.of(x)
    codes = (rows.codes_NK.int() - 128).double()
    exact = codes * rows.scale_N1.double() @ rounded.T + bias.double()
    size = codes.abs() * rows.scale_N1.double() @ rounded.abs().T + bias.abs()
    assert (y - exact).abs().le(size * 1e-6).all()  # float32 holds the sum of 8-bit products
    bound = rounding(x) * rounded.abs().sum(1) * 1.001 + size * 1e-6
    assert (y - (x.double() @ rounded.T + bias)).abs().le(bound).all()
    on_cuda = int8_product(Rows(codes.to(torch.int8), rows.scale_N1), *quantise_rows(weight), bias)
    assert (on_cuda.double() - exact).abs().le(size * 2**-7).all()


@shapes()
@settings(max_examples=40, deadline=None)
def test_int4_product(
    seed: int, tokens: int, inputs: int, outputs: int, outliers: int, zero_rows: int
) -> None:
    x, weight = values(seed, tokens, inputs, outliers, zero_rows), values(seed + 1, outputs, inputs, 0, 1)
    packed, scale, zero = quantise_groups(weight)
    rounded = dequantise_groups(packed, scale, zero).double()
    groups = weight.view(outputs, -1, GROUP).double()
    spread = groups.amax(2).clamp_min(0) - groups.amin(2).clamp_max(0)
    error = (rounded.view_as(groups) - groups).square().mean(2).sqrt()
    assert error.le(spread / 15 + 1e-4).all()
    layer = Int4Linear(None, torch.float32)
    layer.load(packed, scale, zero)
    exact = x.double() @ rounded.T
    size = x.double().abs() @ rounded.abs().T
    assert (layer(x).double() - exact).abs().le(size * 2**-6 + 1e-9).all()  # operands in bfloat16


def test_int4_keeps_what_16_levels_can_hold() -> None:
    codes = torch.arange(GROUP).remainder(16).float()
    weight = torch.stack([(codes - 5) * 0.25, (codes - 15) * 0.5, codes * 2, torch.zeros(GROUP)])
    assert torch.equal(dequantise_groups(*quantise_groups(weight)), weight)


@pytest.mark.parametrize("quantise", [quantise_rows, quantise_groups])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(quantise: object, value: float) -> None:
    weight = torch.ones(3, GROUP)
    weight[1, 2] = value
    assert callable(quantise)
    with pytest.raises(NumericsError, match="finite"):
        quantise(weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_activation_that_is_not_finite_is_not_hidden(value: float) -> None:
    layer = Int8Linear(None)
    layer.load(*quantise_rows(torch.randn(8, GROUP)))
    x = torch.ones(2, GROUP)
    x[1, 3] = value
    y = layer(x)
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(y[1]).any()


def test_a_row_does_not_depend_on_the_others() -> None:
    x = values(0, 30, 96, 3, 2)
    layer = Int8Linear(None)
    layer.load(*quantise_rows(torch.randn(40, 96)))
    alone = torch.cat([layer(row[None]) for row in x])
    assert torch.equal(layer(x), alone)


def test_embedding() -> None:
    weight = values(3, 50, 32, 1, 1)
    layer = Int8Embedding(torch.float32)
    layer.load(*quantise_rows(weight))
    ids = torch.tensor([4, 0, 49, 4])
    assert (layer(ids) - weight[ids]).abs().le(rounding(weight)[ids] * 1.001).all()


@pytest.mark.parametrize("kind", [RMSNorm, GemmaNorm])
def test_norms(kind: type[RMSNorm | GemmaNorm]) -> None:
    norm = kind(64, 1e-6)
    nn.init.normal_(norm.weight)
    gain = norm.weight.detach() + (1 if kind is GemmaNorm else 0)
    x = values(1, 9, 64, 2, 1)
    exact = norm(x).detach()
    np.testing.assert_allclose(FastRMSNorm(gain, 1e-6)(x), exact, atol=2e-5)
    rows = NormToRows(Rows, None, gain, 1e-6)(x)
    decoded = (rows.codes_NK.float() - 128) * rows.scale_N1
    assert (decoded - exact).abs().le(rounding(exact) * 1.01 + 1e-6).all()


def test_rotation_without_gradients_has_the_same_bits() -> None:
    x = torch.randn(7, 3, 16)
    turned = rotary(torch.arange(7), frequencies(1e4, 16, torch.device("cpu")), torch.float32)
    expected = turned.rotate(x)
    with torch.no_grad():
        assert torch.equal(turned.rotate(x), expected)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
def test_fp8_products_are_those_of_the_rounded_numbers(rows: int, bias: bool) -> None:
    x, weight = values(1, rows, 64, 2, rows // 5), values(2, 48, 64, 1, 1)
    layer = Float8Linear(nn.Parameter(torch.randn(48).bfloat16(), requires_grad=False) if bias else None)
    layer.load(*float8_rows(weight))
    codes, scale = float8_rows(x)
    weight_codes, weight_scale = float8_rows(weight)
    assert codes.float().abs().amax(1).tolist() == [LARGEST if row.any() else 0 for row in x]
    torch.testing.assert_close(codes.float() * scale, x, rtol=2**-4, atol=float(scale.max()) * 2**-10)
    expected = (codes.double() * scale) @ (weight_codes.double() * weight_scale).t()
    if layer.bias is not None:
        expected += layer.bias.double()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    bound = 2e-2 * float(expected.abs().max())
    torch.testing.assert_close(out.double(), expected, rtol=1e-2, atol=bound)
    torch.testing.assert_close(layer(Float8Rows.of(x)), out, rtol=0, atol=0)


@torch.inference_mode()
def test_a_model_in_fp8_is_near_the_model() -> None:
    model, other = tiny_model().eval(), tiny_model().eval()
    for each in (model, other):
        each.requires_grad_(False).fold_pooler()
    quantise(other, "fp8")
    assert scheme_of(other) == "fp8"
    assert not any(type(part) is nn.Linear for part in other.embedding_model.modules())
    ids = torch.arange(30)
    lengths = (20, 10)
    segments = Segments.of(lengths, torch.device("cpu"))
    batch = PackedBatch(ids, segments, ids, lengths)
    cosine = (model(batch) * other(batch)).sum(1)
    assert 0.97 < cosine.min() < 1 - 1e-6


def test_fp8_is_refused_where_a_device_has_no_products() -> None:
    with pytest.raises(InputError, match="FP8 products"):
        check_float8(torch.device("cpu"))
