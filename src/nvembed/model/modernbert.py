"""ModernBERT: rotary positions, norms before each block, a gated GELU, local and global layers.

Shapes: N packed tokens, D hidden size.
Module names are the published checkpoints' own, so that a state dict needs no translation.
"""

from torch import Tensor, nn

from nvembed.model.attention import Reach, Segments, attention
from nvembed.model.config import ModernBertConfig
from nvembed.model.layers import Backbone, Pause, Rotary, activate, embedding, windowed_rotary


class ModernBertAttention(nn.Module):
    def __init__(self, config: ModernBertConfig, window: int | None) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.attention_bias)
        self.Wo = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.attend = attention  # compiled layers have a function that is not compiled with them
        self.reach = Reach(window=window)

    def forward(self, x_ND: Tensor, rotary: Rotary, segments: Segments) -> Tensor:
        q, k, v = self.Wqkv(x_ND).view(len(x_ND), 3, self.num_heads, -1).unbind(1)
        q, k = rotary.rotate(q), rotary.rotate(k)
        out: Tensor = self.Wo(self.attend(q, k, v, segments, self.reach).flatten(1))
        return out


class ModernBertMLP(nn.Module):
    """``Wo(act(a) * g)`` of ``[a | g] = Wi x``."""

    def __init__(self, config: ModernBertConfig) -> None:
        super().__init__()
        self.Wi = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.Wo = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = config.activation

    def forward(self, x_ND: Tensor) -> Tensor:
        value, gate = self.Wi(x_ND).chunk(2, -1)
        out: Tensor = self.Wo(activate(self.activation, value) * gate)
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

    def forward(self, x_ND: Tensor, rotary: Rotary, segments: Segments, pause: Pause) -> Tensor:
        x_ND = x_ND + self.attn(self.attn_norm(x_ND), rotary, segments)
        pause()
        out: Tensor = x_ND + self.mlp(self.mlp_norm(x_ND))
        return out


class ModernBert(Backbone):
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
    def embed_tokens(self) -> nn.Module:  # type: ignore[override]
        return self.embeddings["tok_embeddings"]

    @property
    def norm(self) -> nn.Module:  # type: ignore[override]
        return self.final_norm

    def embed(self, input_ids_N: Tensor, segments: Segments) -> Tensor:
        out: Tensor = self.embeddings["norm"](super().embed(input_ids_N, segments))
        return out

    def positions(self, x_ND: Tensor, segments: Segments) -> list[Rotary]:
        return windowed_rotary(self.config, x_ND, segments)
