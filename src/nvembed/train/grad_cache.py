"""Gradient cache: the exact gradient of a large batch, with the activations of one micro-batch in memory.

Two passes (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"). The
first embeds every text without keeping activations; the loss of all vectors gives the gradient of each. The
second embeds each micro-batch again and propagates these gradients into the weights. The loss depends on the
texts only through their vectors, so the sum is the gradient of plain backpropagation.

Shapes: U distinct texts of a share, D hidden size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor

from nvembed.model.nv_embed import NVEmbed
from nvembed.train.step_batch import MicroBatch

Embed = Callable[[MicroBatch], Tensor]


def embed(model: NVEmbed, batch: MicroBatch, *, frozen_layers: int = 0) -> Tensor:
    """Return a micro-batch's unit vectors; its first ``frozen_layers`` layers run once for both passes."""
    if not frozen_layers:
        vectors: Tensor = model(batch.packed)
        return vectors
    decoder, packed = model.embedding_model, batch.packed
    if batch.states is None:
        with torch.no_grad():
            states = decoder.embed(packed.input_ids, packed.segments)
            batch.states = decoder.run(states, packed.segments, range(frozen_layers))
    states = decoder.run(batch.states, packed.segments, range(frozen_layers, len(decoder.layers)))
    return model.pool(decoder.norm(states), packed)


def backward(
    embed: Embed,
    work: Sequence[MicroBatch],
    gradient_of: Callable[[Tensor], Tensor],
    *,
    seed: int,
    graph_tokens: int = 0,
    done: Callable[[], None] = lambda: None,
) -> None:
    """Add the gradient of a whole batch to the parameters.

    Args:
        embed: returns the vectors of a micro-batch. It may use torch's random state (dropout): both passes
            seed it equally, by ``seed`` and the number of the micro-batch.
        work: the micro-batches, at least one; their ``rows`` together are 0 to U - 1. One without rows exists
            because ranks that shard a model must run it equally often, and keep equally many graphs
            (``kept_graphs``).
        gradient_of: all vectors (U, D) -> the gradient of the loss with respect to them (U, D).
        graph_tokens: the first micro-batches, of at most so many tokens together, keep their activations and
            skip the second pass: faster, for more memory. With all of them it is plain backpropagation.
        done: called after each micro-batch has added its gradients.
    """
    kept: dict[int, Tensor] = {}
    parts: list[Tensor] = []
    graphs = kept_graphs(work, graph_tokens)
    for number, batch in enumerate(work):
        with seeded(seed, number, batch), torch.set_grad_enabled(number < graphs):
            vectors = embed(batch)[: len(batch.rows)]
        if number < graphs:
            kept[number] = vectors
        parts.append(vectors.detach())
    joined = torch.cat(parts)
    rows = torch.cat([batch.rows for batch in work])
    gradient = gradient_of(torch.empty_like(joined).index_copy_(0, rows, joined))
    for number, batch in enumerate(work):
        vectors_or_none = kept.pop(number, None)
        if vectors_or_none is None:
            with seeded(seed, number, batch), torch.enable_grad():
                vectors_or_none = embed(batch)[: len(batch.rows)]
        torch.autograd.backward(vectors_or_none, gradient[batch.rows])
        batch.states = None
        done()


def kept_graphs(work: Sequence[MicroBatch], graph_tokens: int) -> int:
    """Return how many of the first micro-batches have at most ``graph_tokens`` tokens together."""
    return sum(total <= graph_tokens for total in accumulate(batch.num_tokens for batch in work))


@contextmanager
def seeded(seed: int, number: int, batch: MicroBatch) -> Iterator[None]:
    """Seed torch's random state for one micro-batch, and restore it afterwards.

    With seeds instead of stored states, a resumed run needs only the number of the step.
    """
    device = batch.packed.input_ids.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((seed * 1_000_003 + number) % 2**63)
        yield
