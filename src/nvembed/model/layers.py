"""What the backbones share: the loop over layers, rotary positions, attention and gated layers, activations.

Shapes: N packed tokens, D hidden size, H heads, K key-value heads, E head size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.attention import Reach, Segments, attention
from nvembed.model.config import (
    Activation,
    BackboneConfig,
    EmbeddingGemma2Config,
    GemmaConfig,
    ModernBertConfig,
)
from nvembed.model.device import no_pause, randn

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
_IN_PLACE: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "relu": torch.relu_,
    "silu": partial(F.silu, inplace=True),
    "tanh": torch.tanh_,
}


def activate(name: Activation, x: Tensor) -> Tensor:
    """Return the activation of ``x``, in its memory where no gradient is recorded.

    Fresh memory of this size costs more than the arithmetic.
    """
    in_place = None if torch.is_grad_enabled() else _IN_PLACE.get(name)
    return ACTIVATIONS[name](x) if in_place is None else in_place(x)


Pause = Callable[[], None]


class Backbone(nn.Module):
    """Token ids to normalised hidden states.

    Each family builds ``embed_tokens``, ``layers`` and ``norm``. A layer takes the states (N, D), what
    ``positions`` returns for it, the segments, and a function to call in its middle.
    """

    embed_tokens: nn.Module
    layers: nn.ModuleList
    norm: nn.Module

    def forward(self, input_ids_N: Tensor, segments: Segments, pause: Pause = no_pause) -> Tensor:
        """Return the last hidden states, (N, D) in the weights' dtype.

        ``pause`` is called twice in each layer. It may compute another batch.
        """
        x_ND = self.run(self.embed(input_ids_N, segments), segments, range(len(self.layers)), pause)
        out: Tensor = self.norm(x_ND)
        return out

    def embed(self, input_ids_N: Tensor, segments: Segments) -> Tensor:  # noqa: ARG002 (BERT needs them)
        """Return the input of the first layer, (N, D)."""
        out: Tensor = self.embed_tokens(input_ids_N)
        return out

    def positions(self, x_ND: Tensor, segments: Segments) -> Sequence[Any]:
        """Return what each layer knows about the tokens' positions."""
        raise NotImplementedError

    def run(self, x_ND: Tensor, segments: Segments, layers: range, pause: Pause = no_pause) -> Tensor:
        """Return the output of the last of ``layers`` for the input ``x_ND``, without the final norm."""
        positions = self.positions(x_ND, segments)
        for number in layers:
            x_ND = self.layers[number](x_ND, positions[number], segments, pause)
            pause()
        return x_ND


def embedding(rows: int, size: int) -> nn.Embedding:
    """Return ``nn.Embedding(rows, size)`` with the same random values, fast on the meta device."""
    return nn.Embedding(rows, size, _weight=randn(rows, size))


class Rotary(NamedTuple):
    """Cosines and sines of each token's angles, and Ministral 3's factor of its queries."""

    cos: Tensor  # (N, 1, E)
    sin: Tensor  # (N, 1, E)
    query_scale: Tensor | None = None  # (N, 1, 1)

    def rotate(self, x_NHE: Tensor) -> Tensor:
        """Rotate the two halves of each head by its token's angle (half-split style, as in Mistral)."""
        low, high = x_NHE.chunk(2, -1)
        if torch.is_grad_enabled():
            return x_NHE * self.cos + torch.cat((-high, low), -1) * self.sin
        turned, sin = x_NHE * self.cos, self.sin[..., : low.shape[-1]]  # both halves have the same angles
        first, second = turned.chunk(2, -1)
        first.sub_(high * sin)
        second.add_(low * sin)
        return turned


def frequencies(theta: float, head_dim: int, device: torch.device) -> Tensor:
    """Return ``theta^(-2i/E)``, (E/2,) float32."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponents


def rotary(positions_N: Tensor, frequencies: Tensor, dtype: torch.dtype, factor: float = 1.0) -> Rotary:
    """Return ``factor`` times cosines and sines, (N, 1, E) each; angles are computed in float32."""
    angles = positions_N.float()[:, None, None] * frequencies
    cos, sin = (torch.cat((half, half), -1).to(dtype) for half in (angles.cos(), angles.sin()))
    return Rotary(cos, sin) if factor == 1 else Rotary(cos * factor, sin * factor)


def windowed_rotary(
    config: GemmaConfig | ModernBertConfig, x_ND: Tensor, segments: Segments, factor: float = 1.0
) -> list[Rotary]:
    """Return each layer's rotary positions: one base for global layers, another for local ones.

    Args:
        factor: linear scaling of the positions in global layers.
    """
    positions, size, device = segments.positions(), config.head_dim, x_ND.device
    whole = rotary(positions, frequencies(config.global_theta, size, device) / factor, x_ND.dtype)
    local = rotary(positions, frequencies(config.local_theta, size, device), x_ND.dtype)
    return [whole if window is None else local for window in config.windows]


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions.

    Args:
        bias: of the projections of queries, keys and values.
        norm: makes the norms of each query's and key's heads from their size; None is no norm.
        value_norm: as ``norm``, of the values.
    """

    def __init__(
        self,
        config: BackboneConfig | GemmaConfig | EmbeddingGemma2Config,
        reach: Reach,
        *,
        bias: bool = False,
        norm: Callable[[int, float], nn.Module] | None = None,
        value_norm: Callable[[int, float], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        heads, kv_heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, heads, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_heads, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_heads, bias=bias)
        self.o_proj = nn.Linear(heads, config.hidden_size, bias=False)
        self.q_norm = nn.Identity() if norm is None else norm(config.head_dim, config.rms_norm_eps)
        self.k_norm = nn.Identity() if norm is None else norm(config.head_dim, config.rms_norm_eps)
        self.v_norm = None if value_norm is None else value_norm(config.head_dim, config.rms_norm_eps)
        self.attend = attention  # compiled layers have a function that is not compiled with them
        self.reach = reach

    def forward(self, x_ND: Tensor, rotary: Rotary, segments: Segments) -> Tensor:
        q, k, v = (
            proj(x_ND).view(len(x_ND), -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotary.rotate(self.q_norm(q)), rotary.rotate(self.k_norm(k))
        if self.v_norm is not None:
            v = self.v_norm(v)
        if rotary.query_scale is not None:
            q = q * rotary.query_scale
        out: Tensor = self.o_proj(self.attend(q, k, v, segments, self.reach).flatten(1))
        return out


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``."""

    def __init__(
        self, config: BackboneConfig | GemmaConfig | EmbeddingGemma2Config, activation: Activation
    ) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.activation = activation

    def forward(self, x_ND: Tensor) -> Tensor:
        gate, up = activate(self.activation, self.gate_proj(x_ND)), self.up_proj(x_ND)
        out: Tensor = self.down_proj(gate * up if torch.is_grad_enabled() else gate.mul_(up))
        return out
