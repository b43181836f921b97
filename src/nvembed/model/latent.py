"""Latent attention, the pooling layer of NV-Embed: the plain form, and the folded form for inference.

Shapes: P pooled tokens, B texts, D hidden size, H heads, L latents, E head size, F feed-forward width.
The tokens are the queries; the latents are keys and values. For each token ``x``:

    y = x + to_out(concat_h softmax(q_h k_h^T / sqrt(E)) v_h)
        q = to_q(LN(x)), [k | v] = to_kv(LN(latents))
    z = y + W2 (a * gelu(g)) + b2,   [a | g] = W1 LN(y) + b1
    text vector = mean of z over the text's pooled tokens

Paper: section 3.2 and Fig. 2, which omit the norms, the residuals, the gate and the separate projections.
Released: as above; ``E`` is the full 4,096 for each of 8 heads; gelu is exact; LayerNorms have biases.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvembed.model.config import PoolerConfig
from nvembed.model.device import randn, to_device
from nvembed.model.pooling import FeedForward, mean_pool


class CrossAttention(nn.Module):
    def __init__(self, hidden_size: int, config: PoolerConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.to_q = nn.Linear(hidden_size, inner, bias=False)
        self.to_kv = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, x_PD: Tensor, latents_LD: Tensor) -> Tensor:
        k_LI, v_LI = self.to_kv(latents_LD).chunk(2, -1)
        q_HPE, k_HLE, v_HLE = (
            x.reshape(len(x), self.num_heads, -1).transpose(0, 1) for x in (self.to_q(x_PD), k_LI, v_LI)
        )
        out_HPE = F.scaled_dot_product_attention(q_HPE, k_HLE, v_HLE)
        out: Tensor = self.to_out(out_HPE.transpose(0, 1).flatten(1))
        return out


class CrossBlock(nn.Module):
    """Cross attention after a norm of the tokens (``norm``) and of the latents (``norm_context``)."""

    def __init__(self, hidden_size: int, config: PoolerConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.norm_context = nn.LayerNorm(hidden_size)
        self.fn = CrossAttention(hidden_size, config)

    def forward(self, x_PD: Tensor, latents_LD: Tensor) -> Tensor:
        out: Tensor = self.fn(self.norm(x_PD), self.norm_context(latents_LD))
        return x_PD + out


class LatentAttention(nn.Module):
    """The plain form, which training uses, and which is the oracle of the folded form."""

    def __init__(self, hidden_size: int, config: PoolerConfig) -> None:
        super().__init__()
        self.latents = nn.Parameter(randn(config.num_latents, hidden_size))
        self.cross_attend_blocks = nn.ModuleList(
            [CrossBlock(hidden_size, config), FeedForward(hidden_size, config.ffn_mult)]
        )

    def token_states(self, x_PD: Tensor) -> Tensor:
        cross, feed_forward = self.cross_attend_blocks
        y_PD: Tensor = cross(x_PD, self.latents)
        z_PD: Tensor = y_PD + feed_forward(y_PD)
        return z_PD

    def forward(self, x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Return each text's mean token state, (B, D) float32; ``lengths`` has each text's pooled tokens."""
        return mean_pool(self.token_states(x_PD), lengths)


class FoldedLatentAttention(nn.Module):
    """The same function; everything that does not depend on the text is computed once.

    The latents are constant, so in each head ``keys = k Wq / sqrt(E)`` and ``values = v Wo^T`` are constant
    too: two (H L, D) matrices replace to_q, to_kv and to_out (536.9 M parameters become 33.6 M in NV-Embed
    v2). The last linear layer commutes with the mean over tokens, so it runs once per text.
    """

    keys: Tensor
    values: Tensor

    # Pooled tokens computed at a time: limits the (tokens, 2 F) hidden states of a very long text.
    chunk_tokens = 4096

    def __init__(self, hidden_size: int, config: PoolerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        rows = config.num_heads * config.num_latents
        self.norm = nn.LayerNorm(hidden_size)
        self.register_buffer("keys", torch.empty(rows, hidden_size))
        self.register_buffer("values", torch.empty(rows, hidden_size))
        self.feed_forward = FeedForward(hidden_size, config.ffn_mult)

    def forward(self, x_PD: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Return what ``LatentAttention`` returns, (B, D) float32; for inference only."""
        first, gate, last = self.feed_forward.fn.net
        assert isinstance(last, nn.Linear)
        mean_y = x_PD.new_zeros(len(lengths), x_PD.shape[1], dtype=torch.float32)
        mean_hidden = x_PD.new_zeros(len(lengths), last.in_features, dtype=torch.float32)
        for tokens, texts, pieces in _chunks(lengths, self.chunk_tokens):
            x = x_PD[tokens]
            scores = F.linear(self.norm(x), self.keys).view(len(x), self.num_heads, -1)
            y = torch.addmm(x, scores.softmax(-1).flatten(1), self.values)
            hidden = gate(first(self.feed_forward.norm(y)))
            mean_y[texts] += _sums(y, pieces)
            mean_hidden[texts] += _sums(hidden, pieces)
        counts = to_device(torch.tensor(lengths, dtype=torch.float32), x_PD.device)[:, None]
        mean_y /= counts
        mean_hidden /= counts
        return mean_y + F.linear(mean_hidden, last.weight.float(), last.bias.float())


def _sums(x_PD: Tensor, lengths: list[int]) -> Tensor:
    sizes = to_device(torch.tensor(lengths), x_PD.device)
    return torch.segment_reduce(x_PD.float(), "sum", lengths=sizes, unsafe=True)


def _chunks(lengths: tuple[int, ...], size: int) -> list[tuple[slice, slice, list[int]]]:
    """Cut P pooled tokens into chunks: (tokens of the chunk, its texts, tokens of each text in it)."""
    chunks = []
    start, text, used = 0, 0, 0
    total = sum(lengths)
    while start < total:
        first, pieces, room = text, [], min(size, total - start)
        while room:
            take = min(lengths[text] - used, room)
            pieces.append(take)
            room -= take
            used += take
            if used == lengths[text]:
                text, used = text + 1, 0
        chunks.append((slice(start, start + sum(pieces)), slice(first, first + len(pieces)), pieces))
        start += sum(pieces)
    return chunks


@torch.no_grad()
def fold(plain: LatentAttention, hidden_size: int, config: PoolerConfig) -> FoldedLatentAttention:
    """Fold ``plain`` exactly, head by head in float32; the result has its dtype and device.

    Differs: only in speed (float64: relative difference 1e-15).
    """
    cross, feed_forward = plain.cross_attend_blocks
    assert isinstance(cross, CrossBlock)
    assert isinstance(feed_forward, FeedForward)
    dtype, device = plain.latents.dtype, plain.latents.device
    precise = torch.promote_types(dtype, torch.float32)  # float64 stays itself
    with torch.device("meta"):
        folded = FoldedLatentAttention(hidden_size, config).to(dtype)
    folded.norm, folded.feed_forward = cross.norm, feed_forward
    folded.keys = torch.empty(folded.keys.shape, dtype=dtype, device=device)
    folded.values = torch.empty(folded.values.shape, dtype=dtype, device=device)

    context = cross.norm_context
    latents_LD = F.layer_norm(
        plain.latents.to(precise), (hidden_size,), context.weight.to(precise), context.bias.to(precise)
    )
    width, size = config.head_dim, config.num_latents
    inner = config.num_heads * width
    for head in range(config.num_heads):
        inside = slice(head * width, (head + 1) * width)
        rows = slice(head * size, (head + 1) * size)
        k_LE = latents_LD @ cross.fn.to_kv.weight[inside].to(precise).T
        folded.keys[rows] = (k_LE @ cross.fn.to_q.weight[inside].to(precise) / width**0.5).to(dtype)
        v_LE = latents_LD @ cross.fn.to_kv.weight[inner:][inside].to(precise).T
        folded.values[rows] = (v_LE @ cross.fn.to_out.weight[:, inside].to(precise).T).to(dtype)
    return folded
