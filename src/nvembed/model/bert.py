"""BERT, XLM-RoBERTa and MPNet: learned positions, attention, a GELU layer, norms after each block.

Shapes: N packed tokens, D hidden size, H heads, E head size, T tokens of the longest text.
Module names are ours; ``weights`` translates the published checkpoints' names.
"""

import math

import torch
from torch import Tensor, nn

from nvembed.model.attention import Segments, attention
from nvembed.model.config import BertConfig
from nvembed.model.layers import Backbone, Pause, activate, embedding


class BertLayer(nn.Module):
    """``h = LN(x + attention(x))``, then ``LN(h + W2 act(W1 h))``."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.num_heads = config.num_heads
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.o_proj = nn.Linear(size, size)
        self.attention_norm = nn.LayerNorm(size, eps)
        self.up_proj = nn.Linear(size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, size)
        self.mlp_norm = nn.LayerNorm(size, eps)
        self.activation = config.activation
        self.attend = attention  # compiled layers have a function that is not compiled with them
        self.to_rows: nn.Module = nn.Identity()  # replaced where the projections are quantised

    def forward(self, x_ND: Tensor, bias_HTT: Tensor | None, segments: Segments, pause: Pause) -> Tensor:
        rows = self.to_rows(x_ND)
        q, k, v = (
            proj(rows).view(len(x_ND), self.num_heads, -1) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = self.attend(q, k, v, segments, bias_HTT=bias_HTT).flatten(1)
        x_ND = self.attention_norm(self.o_proj(attended).add_(x_ND))
        pause()
        hidden = activate(self.activation, self.up_proj(x_ND))
        out: Tensor = self.mlp_norm(self.down_proj(hidden).add_(x_ND))
        return out


class Bert(Backbone):
    """Every token has type 0."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.embed_tokens = embedding(config.vocab_size, size)
        self.position_embeddings = embedding(config.position_rows, size)
        self.token_types = embedding(config.token_types, size) if config.token_types else None
        self.embedding_norm = nn.LayerNorm(size, config.layer_norm_eps)
        buckets = config.relative_buckets
        self.relative_bias = embedding(buckets, config.num_heads) if buckets else None
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_layers))
        self.norm = nn.Identity()  # each layer ends with its norm

    def embed(self, input_ids_N: Tensor, segments: Segments) -> Tensor:
        positions = segments.positions() + self.config.first_position
        x_ND = self.embed_tokens(input_ids_N) + self.position_embeddings(positions)
        if self.token_types is not None:
            x_ND = x_ND + self.token_types.weight[0]
        out: Tensor = self.embedding_norm(x_ND)
        return out

    def positions(self, x_ND: Tensor, segments: Segments) -> list[Tensor | None]:
        """Return for each layer what is added to the scores of two positions, (H, T, T), or None."""
        return [self._relative_bias(max(segments.lengths), x_ND.device)] * len(self.layers)

    def _relative_bias(self, length: int, device: torch.device) -> Tensor | None:
        if self.relative_bias is None:
            return None
        positions = torch.arange(length, device=device)
        # every row of the (T, T) table is a slice of one row of 2 T - 1 distances
        distances = torch.arange(1 - length, length, device=device)
        buckets = relative_bucket(distances, self.config.relative_buckets, self.config.relative_distance)
        values_DH = self.relative_bias(buckets)
        index_TT = positions[None] - positions[:, None] + length - 1
        bias: Tensor = values_DH.T[:, index_TT]
        return bias


def relative_bucket(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of ``key position - query position``, int64.

    Half of the buckets are for keys after the query. In each half, the first half of the buckets hold one
    distance each, and the others grow logarithmically up to ``max_distance``.

    Paper: Raffel et al. 2020 (T5), section 2.1; MPNet uses the same.
    """
    half = buckets // 2
    exact = half // 2
    size = distance.abs()
    growth = torch.log(size.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (growth * (half - exact)).long()).clamp(max=half - 1)
    return (distance > 0).long() * half + torch.where(size < exact, size, far)
