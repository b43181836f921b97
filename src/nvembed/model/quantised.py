"""Linear layers and embeddings with 8- or 4-bit weights, for inference.

Shapes: N tokens, K inputs, M outputs, G groups of ``GROUP`` inputs.

int8   ``y = s_n t_m sum_k q_nk p_mk (+ b_m)``: weights ``p`` are rounded to 8 bits with one scale per output,
       activations ``q`` with one scale per token, while the model runs. A token's values depend on that token
       alone, so a text's vector does not depend on the texts beside it.
int4   ``w_mk = s_mg (c_mk - z_mg)`` with 4-bit codes ``c`` and zero points ``z`` per group. A layer is
       unpacked to bfloat16 when it runs; activations are not rounded. Layers whose inputs are not a multiple
       of ``GROUP`` are int8.

fp8    as int8, with float8_e4m3fn in place of integers (`model.float8`); only in memory, and only on CUDA.

On CPU everything but int8 products and attention is float32: conversions to bfloat16 cost more there than
they save. Products use oneDNN's (AMX, AVX512-VNNI, AVX2-VNNI); on CUDA ``torch._int_mm``.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.errors import NumericsError
from nvembed.model.attention import WHOLE, Reach, Segments, attention
from nvembed.model.bert import BertLayer
from nvembed.model.decoder import DecoderLayer, RMSNorm
from nvembed.model.float8 import Float8Linear, Float8Rows, fits_float8, float8_rows
from nvembed.model.gemma import GemmaLayer, GemmaNorm
from nvembed.model.latent import FoldedLatentAttention
from nvembed.model.layers import GatedMLP
from nvembed.model.modernbert import ModernBertLayer
from nvembed.model.nv_embed import NVEmbed
from nvembed.model.pooling import FeedForward

Scheme = Literal["int8", "int4"]  # of stored weights
Products = Literal["int8", "int4", "fp8"]  # of a model in memory
GROUP = 32  # inputs that share a scale and a zero point in int4
ZERO_POINT = 128  # what is added to activations on CPU: VNNI multiplies unsigned by signed
_TINY = 1e-30  # smallest scale: a row of zeros stays zero


class Rows:
    """Token states rounded to 8 bits with one scale per token; stands in for the (N, K) tensor."""

    def __init__(self, codes_NK: Tensor, scale_N1: Tensor) -> None:
        self.codes_NK = codes_NK  # uint8 around ZERO_POINT on CPU, int8 on CUDA
        self.scale_N1 = scale_N1  # float32

    def __len__(self) -> int:
        return len(self.codes_NK)

    @classmethod
    def of(cls, x_NK: Tensor) -> "Rows":
        """Round to the nearest of 255 steps between minus and plus the row's largest magnitude."""
        x_NK = x_NK.float()
        largest_N1 = torch.maximum(x_NK.amax(1, keepdim=True), x_NK.amin(1, keepdim=True).neg_())
        scale_N1 = (largest_N1 / 127).clamp_min_(_TINY)
        codes_NK = (x_NK * scale_N1.reciprocal()).round_().to(torch.int8)
        if codes_NK.device.type == "cpu":  # minus 128 to plus 127 becomes 0 to 255
            codes_NK = codes_NK.view(torch.uint8).bitwise_xor_(ZERO_POINT)
        return cls(codes_NK, scale_N1)


AnyRows = Rows | Float8Rows


class ToRows(nn.Module):
    """``Rows.of`` as a module: what several layers read is rounded once."""

    def __init__(self, kind: type[AnyRows]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x_NK: Tensor) -> AnyRows:
        return self.kind.of(x_NK)


class NormToRows(nn.Module):
    """A norm whose result is read by quantised layers alone, as rows of ``kind``.

    Of an RMS norm the division by the mean square goes into the scale, which saves a pass.
    """

    def __init__(self, kind: type[AnyRows], norm: nn.Module | None, gain: Tensor | None, eps: float) -> None:
        super().__init__()
        self.kind = kind
        self.norm = norm  # a LayerNorm, or none in a model's first layer
        self.gain = None if gain is None else nn.Parameter(gain, requires_grad=False)  # of an RMS norm
        self.eps = eps

    def forward(self, x_NK: Tensor) -> AnyRows:
        if self.gain is None:
            return self.kind.of(x_NK if self.norm is None else self.norm(x_NK))
        x_NK = x_NK.float()
        rows = self.kind.of(x_NK * self.gain)
        rows.scale_N1 *= _inverse_rms(x_NK, self.eps)
        return rows


class FastRMSNorm(nn.Module):
    """An RMS norm of float32 in two passes over its input instead of four."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(gain, requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.gain).mul_(_inverse_rms(x, self.eps))


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """``1 / sqrt(mean(x^2) + eps)`` over the last dimension, which is kept."""
    length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return (length.square_() / x.shape[-1] + eps).rsqrt_()


def quantise_rows(weight_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Return int8 codes (M, K) and float32 scales (M,): ``weight`` is within half a scale of their product.

    Raises:
        NumericsError: a weight is not finite.
    """
    codes_MK = torch.empty(weight_MK.shape, dtype=torch.int8, device=weight_MK.device)
    scale_M = torch.empty(len(weight_MK), device=weight_MK.device)
    for first in range(0, len(weight_MK), _ROWS):  # a vocabulary's floats would take gigabytes
        block = slice(first, first + _ROWS)
        rows_MK = _finite(weight_MK[block].float())
        scale_M[block] = (rows_MK.abs().amax(1) / 127).clamp_min_(_TINY)
        codes_MK[block] = (rows_MK / scale_M[block, None]).round_().to(torch.int8)
    return codes_MK, scale_M


def quantise_groups(weight_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return packed codes (M, K/2) uint8, scales (M, G) float16 and zero points (M, G) uint8, both of groups.

    Per group the 16 levels span its smallest to its largest weight, zero included, shrunk by the factor in
    ``_SHRINK`` with the least squared error. Input ``k`` of the first half of a group is the low half of a
    byte, input ``k + GROUP / 2`` the high half.

    Raises:
        NumericsError: a weight is not finite.
    """
    size, inputs = weight_MK.shape
    x_MGI = _finite(weight_MK.float()).view(size, inputs // GROUP, GROUP)
    scale_MG1, zero_MG1 = group_levels(x_MGI)
    return pack_groups(nearest_codes(x_MGI, scale_MG1, zero_MG1), scale_MG1, zero_MG1)


def group_levels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return scales and zero points, (..., 1) float32, of groups (..., I), with the least squared error."""
    low = x.amin(-1, keepdim=True).clamp_max_(0)
    high = x.amax(-1, keepdim=True).clamp_min_(0)
    best: tuple[Tensor, Tensor] | None = None
    least = torch.full_like(low, torch.inf)
    for shrink in _SHRINK:
        scale = ((high - low) * (shrink / 15)).clamp_min_(_SMALLEST_HALF).half().float()
        zero = (-low * shrink / scale).round_().clamp_(0, 15)
        error = ((nearest_codes(x, scale, zero) - zero) * scale - x).square_().sum(-1, keepdim=True)
        if best is None:
            best, least = (scale, zero), error
            continue
        better = error < least
        best = torch.where(better, scale, best[0]), torch.where(better, zero, best[1])
        least = torch.minimum(error, least)
    assert best is not None
    return best


def nearest_codes(x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return the codes, 0 to 15, whose levels are nearest to ``x``."""
    return (x / scale + zero).round_().clamp_(0, 15)


def pack_groups(codes_MGI: Tensor, scale_MG1: Tensor, zero_MG1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and zero points as ``quantise_groups`` does."""
    first, second = codes_MGI.to(torch.uint8).chunk(2, 2)
    packed = (first | second << 4).view(len(codes_MGI), -1)
    return packed, scale_MG1[..., 0].half(), zero_MG1[..., 0].to(torch.uint8)


_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8)
_ROWS = 16_384  # quantised at once
_SMALLEST_HALF = 6.2e-5  # below it float16 loses digits


def dequantise_rows(codes_MK: Tensor, scale_M: Tensor) -> Tensor:
    """Undo ``quantise_rows``, in float32."""
    return codes_MK.float() * scale_M[:, None]


def dequantise_groups(packed: Tensor, scale_MG: Tensor, zero_MG: Tensor) -> Tensor:
    """Undo ``quantise_groups``: (M, K) float32."""
    size = len(packed)
    pairs = packed.view(size, -1, GROUP // 2)
    codes_MGI = torch.cat((pairs & 15, pairs >> 4), 2).float()
    return codes_MGI.sub_(zero_MG[..., None]).mul_(scale_MG[..., None]).view(size, -1)


def _finite(weight: Tensor) -> Tensor:
    if not bool(torch.isfinite(weight).all()):
        raise NumericsError("a weight is not finite: expected numbers; check the model with `nvembed check`")
    return weight


class Int8Linear(nn.Module):
    """``nn.Linear`` with 8-bit weights; takes float states or ``Rows``."""

    stored = "INT8"

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.bias = bias
        self.register_buffer("codes", None)
        self.register_buffer("scale", None)
        self.register_buffer("zeros", None)

    def load(self, codes_MK: Tensor, scale_M: Tensor) -> None:
        """Take the weights; on CPU in the layout of oneDNN's products, so that they are held once."""
        self.scale = scale_M
        self.zeros = torch.zeros(len(codes_MK), dtype=torch.int64)
        on_cpu = codes_MK.device.type == "cpu"
        self.codes = torch.ops.onednn.qlinear_prepack(codes_MK, None) if on_cpu else codes_MK

    def forward(self, x: Tensor | Rows) -> Tensor:
        rows = x if isinstance(x, Rows) else Rows.of(x)
        if rows.codes_NK.device.type != "cpu":
            return int8_product(rows, self.codes, self.scale, self.bias)
        y_NM: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rows.codes_NK, 1.0, ZERO_POINT, self.codes, self.scale, self.zeros),
            *(None, 1.0, 0, torch.float32, "none", [], ""),
        )
        y_NM.mul_(rows.scale_N1)
        return y_NM if self.bias is None else y_NM.add_(self.bias)


def int8_product(rows: Rows, codes_MK: Tensor, scale_M: Tensor, bias_M: Tensor | None) -> Tensor:
    """The product on CUDA, (N, M) in bfloat16; ``_int_mm`` takes 17 rows or more."""
    codes_NK = F.pad(rows.codes_NK, (0, 0, 0, max(0, 17 - len(rows))))
    y_NM = torch._int_mm(codes_NK, codes_MK.t())[: len(rows)].float()
    y_NM.mul_(rows.scale_N1).mul_(scale_M)
    return (y_NM if bias_M is None else y_NM.add_(bias_M)).to(torch.bfloat16)


class Int4Linear(nn.Module):
    """``nn.Linear`` with 4-bit weights, unpacked while it runs; ``dtype`` is the result's.

    They are kept transposed: with the outputs side by side, scales and zero points are applied row by row.
    """

    stored = "INT4"

    def __init__(self, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.bias = bias
        self.dtype = dtype
        self.register_buffer("packed", None)  # (G, GROUP / 2, M)
        self.register_buffer("scale", None)  # (G, 1, M)
        self.register_buffer("zero", None)

    def load(self, packed: Tensor, scale_MG: Tensor, zero_MG: Tensor) -> None:
        self.packed = packed.view(len(packed), -1, GROUP // 2).permute(1, 2, 0).contiguous()
        self.scale, self.zero = scale_MG.t()[:, None].contiguous(), zero_MG.t()[:, None].contiguous()

    def forward(self, x_NK: Tensor) -> Tensor:
        half = torch.bfloat16 if fast_bfloat16(x_NK.device) else torch.float32
        codes = torch.cat((self.packed & 15, self.packed >> 4), 1).sub_(self.zero).view(torch.int8)
        weight_KM = codes.to(half).mul_(self.scale.to(half)).flatten(0, 1)
        y_NM = (x_NK.to(half) @ weight_KM).to(self.dtype)
        return y_NM if self.bias is None else y_NM.add_(self.bias)


class Int8Embedding(nn.Module):
    """``nn.Embedding`` with 8-bit rows, one scale each; ``dtype`` is the result's."""

    stored = "INT8"

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.register_buffer("codes", None)
        self.register_buffer("scale", None)

    def load(self, codes_VD: Tensor, scale_V: Tensor) -> None:
        self.codes, self.scale = codes_VD, scale_V

    def forward(self, ids_N: Tensor) -> Tensor:
        return (self.codes[ids_N].float() * self.scale[ids_N, None]).to(self.dtype)


def half_attention(
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    segments: Segments,
    reach: Reach = WHOLE,
    *,
    bias_HTT: Tensor | None = None,
) -> Tensor:
    """``attention`` in bfloat16, of float32 heads."""
    bias = None if bias_HTT is None else bias_HTT.bfloat16()
    return attention(q_NHE.bfloat16(), k_NKE.bfloat16(), v_NKE.bfloat16(), segments, reach, bias_HTT=bias)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: CUDA, and CPUs with instructions for them."""
    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def activation_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of everything but the products in a quantised model."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def replace_layers(model: NVEmbed, scheme: Products, dtype: torch.dtype) -> None:
    """Put quantised layers, still without weights, in place of the backbone's linear layers and embedding.

    Args:
        dtype: of their results.
    """
    root = model.embedding_model
    for name, module in list(root.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, nn.Linear):
            if scheme == "fp8" and not fits_float8(module):
                continue
            root.get_submodule(parent).register_module(leaf, _empty(module, scheme, dtype))
        elif (
            isinstance(module, nn.Embedding)
            and leaf in ("embed_tokens", "tok_embeddings")
            and scheme != "fp8"  # whose purpose is speed
        ):
            root.get_submodule(parent).register_module(leaf, Int8Embedding(dtype))


def replace_pooler(model: NVEmbed, scheme: Products, dtype: torch.dtype) -> None:
    """Quantise the one large layer of a folded latent pooler that runs once per token."""
    pooler = model.latent_attention_model
    if isinstance(pooler, FoldedLatentAttention):
        net = pooler.feed_forward.fn.net
        assert isinstance(net[0], nn.Linear)
        layer = _empty(net[0], scheme, dtype)
        load_weight(layer, net[0].weight)
        net[0] = layer


def _empty(
    linear: nn.Linear, scheme: Products, dtype: torch.dtype
) -> "Int8Linear | Int4Linear | Float8Linear":
    if scheme == "fp8":
        return Float8Linear(linear.bias)
    if scheme == "int4" and linear.in_features % GROUP == 0:
        return Int4Linear(linear.bias, dtype)
    return Int8Linear(linear.bias)


QUANTISED = (Int8Linear, Int4Linear, Int8Embedding, Float8Linear)


def scheme_of(model: nn.Module) -> Products | None:
    """Return how a model is quantised; None where it is not."""
    kinds = {type(module) for module in model.modules()}
    if Float8Linear in kinds:
        return "fp8"
    return "int4" if Int4Linear in kinds else "int8" if kinds & {Int8Linear, Int8Embedding} else None


def load_weight(layer: nn.Module, weight: Tensor) -> None:
    """Quantise a float weight into one of the ``QUANTISED``."""
    if isinstance(layer, Float8Linear):
        layer.load(*float8_rows(_finite(weight)))
    elif isinstance(layer, Int4Linear):
        layer.load(*quantise_groups(weight))
    else:
        assert isinstance(layer, Int8Linear | Int8Embedding)
        layer.load(*quantise_rows(weight))


def quantise(model: NVEmbed, scheme: Products) -> None:
    """Quantise a model in place that is loaded in ``activation_dtype``, with its pooler folded."""
    weights = {
        name: module.weight
        for name, module in model.embedding_model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    }
    device, dtype = model.device, activation_dtype(model.device)
    replace_layers(model, scheme, dtype)
    for name, weight in weights.items():
        module = model.embedding_model.get_submodule(name)
        if isinstance(module, QUANTISED):
            load_weight(module, weight)
    replace_pooler(model, scheme, dtype)
    prepare(model, device)


def prepare(model: NVEmbed, device: torch.device) -> None:
    """After loading: round what several products read once, within norms, and use the faster functions."""
    for name, module in list(model.named_modules()):
        parent, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        kind = _rows_of(parent)
        shared = leaf in _NORMS.get(type(parent), ()) and kind is not None
        if isinstance(module, RMSNorm | GemmaNorm) and (shared or device.type == "cpu"):
            gain = module.weight.detach().float() + (1 if isinstance(module, GemmaNorm) else 0)
            fast = (
                NormToRows(kind, None, gain, module.eps)
                if kind is not None and shared
                else FastRMSNorm(gain, module.eps)
            )
            setattr(parent, leaf, fast)
        elif kind is not None and shared:
            setattr(parent, leaf, NormToRows(kind, module, None, 0))
        if isinstance(module, BertLayer) and (kind := _rows_of(module)) is not None:
            module.to_rows = ToRows(kind)
        if device.type == "cpu":
            _prepare_for_cpu(module, device)


def _rows_of(layer: nn.Module) -> type[AnyRows] | None:
    """Return the rows that all products of a layer take, but for that of a pooler's mean; None is no rows."""
    parts = [layer.fn.net[0]] if isinstance(layer, FeedForward) else list(layer.modules())
    kinds = {type(part) for part in parts} & {nn.Linear, Int4Linear, Int8Linear, Float8Linear}
    if kinds == {Int8Linear}:
        return Rows
    return Float8Rows if kinds == {Float8Linear} else None


def _prepare_for_cpu(module: nn.Module, device: torch.device) -> None:
    if hasattr(module, "attend") and fast_bfloat16(device):
        object.__setattr__(module, "attend", half_attention)
    if isinstance(module, GatedMLP) and module.activation == "gelu_tanh":
        module.activation = (
            "gelu"  # within 5e-4, which is less than a step of the rounding; four times as fast
        )


# Norms that only linear layers read.
_NORMS: dict[type[nn.Module], tuple[str, ...]] = {
    DecoderLayer: ("input_layernorm", "post_attention_layernorm"),
    GemmaLayer: ("input_layernorm", "pre_feedforward_layernorm"),
    ModernBertLayer: ("attn_norm", "mlp_norm"),
    FeedForward: ("norm",),  # of the folded latent pooler
}
