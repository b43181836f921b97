"""ModernBERT: rotary positions, norms before each block, a gated GELU, local and global layers.

Shapes: N packed tokens, D hidden size, H heads, E head size.
Module names are the published checkpoints' own, so that a state dict needs no translation.
"""

from collections.abc import Callable

from torch import Tensor, nn

from nvembed.model.activation import FUNCTIONS
from nvembed.model.attention import Reach, Segments, attention
from nvembed.model.config import ModernBertConfig
from nvembed.model.decoder import cos_sin, embedding, plain_frequencies, rotate


class ModernBertAttention(nn.Module):
    def __init__(self, config: ModernBertConfig, window: int | None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.attend = attention  # training replaces it by one that is not compiled with the layer
        self.reach = Reach(window=window)

    def forward(self, x_ND: Tensor, cos_N1E: Tensor, sin_N1E: Tensor, segments: Segments) -> Tensor:
        q, k, v = self.Wqkv(x_ND).view(len(x_ND), 3, self.num_heads, -1).unbind(1)
        q, k = rotate(q, cos_N1E, sin_N1E), rotate(k, cos_N1E, sin_N1E)
        out: Tensor = self.Wo(self.attend(q, k, v, segments, self.reach).flatten(1))
        return out


class ModernBertMLP(nn.Module):
    """``Wo(act(a) * g)`` of ``[a | g] = Wi x``."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.act = FUNCTIONS[config.activation]

    def forward(self, x_ND: Tensor) -> Tensor:
        value, gate = self.Wi(x_ND).chunk(2, -1)
        out: Tensor = self.Wo(self.act(value) * gate)
        return out


class ModernBertLayer(nn.Module):
    def __init__(self, config: ModernBertConfig, number: int) -> None:
        super().__init__()
        size, eps, bias = config.hidden_size, config.layer_norm_eps, config.norm_bias
        # the embeddings end with a norm, so the first layer has none
        self.attn_norm = nn.LayerNorm(size, eps, bias=bias) if number else nn.Identity()
        self.attn = ModernBertAttention(config, config.windows[number])
        self.mlp_norm = nn.LayerNorm(size, eps, bias=bias)
        self.mlp = ModernBertMLP(config)

    def forward(
        self,
        x_ND: Tensor,
        cos_N1E: Tensor,
        sin_N1E: Tensor,
        segments: Segments,
        pause: Callable[[], None] = lambda: None,
    ) -> Tensor:
        x_ND = x_ND + self.attn(self.attn_norm(x_ND), cos_N1E, sin_N1E, segments)
        pause()
        out: Tensor = x_ND + self.mlp(self.mlp_norm(x_ND))
        return out


class ModernBert(nn.Module):
    """Token ids to normalised hidden states."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.config = config
        size, eps, bias = config.hidden_size, config.layer_norm_eps, config.norm_bias
        self.embeddings = nn.ModuleDict(
            {
                "tok_embeddings": embedding(config.vocab_size, size),
                "norm": nn.LayerNorm(size, eps, bias=bias),
            }
        )
        self.layers = nn.ModuleList(ModernBertLayer(config, number) for number in range(config.num_layers))
        self.final_norm = nn.LayerNorm(size, eps, bias=bias)

    @property
    def embed_tokens(self) -> nn.Module:
        return self.embeddings["tok_embeddings"]

    @property
    def norm(self) -> nn.Module:
        return self.final_norm

    def forward(
        self, input_ids_N: Tensor, segments: Segments, pause: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return the last hidden states, (N, D); ``pause`` is called twice per layer."""
        x_ND = self.embed(input_ids_N, segments)
        out: Tensor = self.final_norm(self.run(x_ND, segments, range(len(self.layers)), pause))
        return out

    def embed(self, input_ids_N: Tensor, _segments: Segments) -> Tensor:
        """Return what the first layer reads, (N, D)."""
        out: Tensor = self.embeddings["norm"](self.embed_tokens(input_ids_N))
        return out

    def run(
        self, x_ND: Tensor, segments: Segments, layers: range, pause: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Return what these layers make of ``x_ND``, without the final norm."""
        config, positions = self.config, segments.positions()
        whole, local = (
            cos_sin(positions, plain_frequencies(theta, config.head_dim, x_ND.device), x_ND.dtype)
            for theta in (config.global_theta, config.local_theta)
        )
        for number in layers:
            cos, sin = whole if config.windows[number] is None else local
            x_ND = self.layers[number](x_ND, cos, sin, segments, pause)
            pause()
        return x_ND
