"""One unit vector per text from packed tokens: backbone, pooling, dense layers if any, L2 norm.

Shapes: N packed tokens, P pooled tokens, B texts, D hidden size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.attention import Segments
from nvembed.model.bert import Bert
from nvembed.model.config import (
    AnyBackbone,
    BackboneConfig,
    BertConfig,
    DenseConfig,
    EmbeddingGemma2Config,
    GemmaConfig,
    ModelConfig,
    StaticConfig,
)
from nvembed.model.decoder import Decoder
from nvembed.model.device import no_pause, to_device
from nvembed.model.embedding_gemma2 import EmbeddingGemma2
from nvembed.model.gemma import Gemma
from nvembed.model.latent import FoldedLatentAttention, LatentAttention, fold
from nvembed.model.layers import ACTIVATIONS, Backbone, Pause
from nvembed.model.modernbert import ModernBert
from nvembed.model.pooling import POOLINGS, SelfAttentionPooler
from nvembed.model.static import StaticTokens


@dataclass(frozen=True)
class PackedBatch:
    """Texts end to end, without padding: the model's only input form."""

    input_ids: Tensor  # (N,) int64
    segments: Segments
    pool_index: Tensor  # (P,) int64: the tokens that are averaged, in order
    pool_lengths: tuple[int, ...]  # pooled tokens of each vector, each at least 1; a text may have several

    @classmethod
    def of(
        cls,
        input_ids: np.ndarray,
        lengths: tuple[int, ...],
        pool_index: np.ndarray,
        pool_lengths: tuple[int, ...],
        device: torch.device,
    ) -> "PackedBatch":
        """Send a batch to a device. ``input_ids`` (N,) and ``pool_index`` (P,) are int64."""
        return cls(
            to_device(torch.from_numpy(input_ids), device),
            Segments.of(lengths, device),
            to_device(torch.from_numpy(pool_index), device),
            pool_lengths,
        )


def build_backbone(config: AnyBackbone) -> Backbone:
    """Build the module of a backbone's config."""
    if isinstance(config, BackboneConfig):
        return Decoder(config)
    if isinstance(config, GemmaConfig):
        return Gemma(config)
    if isinstance(config, EmbeddingGemma2Config):
        return EmbeddingGemma2(config)
    if isinstance(config, StaticConfig):
        return StaticTokens(config)
    return Bert(config) if isinstance(config, BertConfig) else ModernBert(config)


class Dense(nn.Module):
    """``act(W x + b)`` of pooled vectors, computed in float32."""

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.in_size, config.out_size, bias=config.bias)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x_BD: Tensor) -> Tensor:
        bias = None if self.linear.bias is None else self.linear.bias.float()
        return self.act(F.linear(x_BD, self.linear.weight.float(), bias))


class NVEmbed(nn.Module):
    """The whole model. ``fold_pooler`` makes it smaller and faster, for inference only."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        size, pooler = config.backbone.hidden_size, config.pooler
        self.embedding_model = build_backbone(config.backbone)
        self.dense = nn.ModuleList(map(Dense, config.dense))
        self.latent_attention_model: LatentAttention | FoldedLatentAttention | None = None
        self.self_attention_model: SelfAttentionPooler | None = None
        # The backbone's states of a batch from a recorded graph; None for a batch that has none.
        self.graphs: Callable[[PackedBatch], Tensor | None] | None = None
        if config.pooling == "latent":
            self.latent_attention_model = LatentAttention(size, pooler)
        elif config.pooling == "self":
            self.self_attention_model = SelfAttentionPooler(size, pooler.num_heads, pooler.ffn_mult)

    def forward(self, batch: PackedBatch, pause: Pause = no_pause) -> Tensor:
        """Return unit vectors, (B, D) float32; pooling and norm are computed in float32.

        The pooler reads only the tokens that are pooled. ``pause`` is called within each layer.
        """
        x_ND = self.graphs(batch) if self.graphs is not None and pause is no_pause else None
        if x_ND is None:
            x_ND = self.embedding_model(batch.input_ids, batch.segments, pause)
        return self.pool(x_ND, batch)

    def pool(self, x_ND: Tensor, batch: PackedBatch) -> Tensor:
        """Return the unit vectors (B, D) float32 of the backbone's last hidden states."""
        if self.self_attention_model is not None:
            x_ND = self.self_attention_model(x_ND, batch.segments)
        every_token = len(batch.pool_index) == len(x_ND) and len(batch.pool_lengths) == len(
            batch.segments.lengths
        )
        x_PD = x_ND if every_token else x_ND[batch.pool_index]
        if self.latent_attention_model is not None:
            pooled_BD = self.latent_attention_model(x_PD, batch.pool_lengths)
        else:
            pooled_BD = POOLINGS[self.config.pooling](x_PD, batch.pool_lengths)
        for dense in self.dense:
            pooled_BD = dense(pooled_BD)
        return F.normalize(pooled_BD, dim=-1)

    def fold_pooler(self) -> None:
        """Replace plain latent attention by its folded form, in place; no effect on other poolings."""
        plain = self.latent_attention_model
        if isinstance(plain, LatentAttention):
            self.latent_attention_model = fold(plain, self.config.backbone.hidden_size, self.config.pooler)

    @property
    def device(self) -> torch.device:
        return next(self._values()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(value for value in self._values() if value.is_floating_point()).dtype

    def _values(self) -> Iterator[Tensor]:
        """Yield the backbone's parameters and buffers; a static one in 8 bits has buffers alone."""
        return chain(self.embedding_model.parameters(), self.embedding_model.buffers())
