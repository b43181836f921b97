"""Compiled layers and graphs, as far as a CPU shows them: tests/gpu has the rest."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from conftest import tiny_model
from helpers.attention_oracle import attention_oracle
from nvembed.model.attention import WHOLE, Reach, Segments
from nvembed.model.compiled import CAPACITIES, Graphs, compile_layers
from nvembed.model.device import no_pause
from nvembed.model.nv_embed import NVEmbed, PackedBatch


def batch_of(*lengths: int, seed: int = 1) -> PackedBatch:
    total = sum(lengths)
    ids = torch.randint(0, 300, (total,), generator=torch.Generator().manual_seed(seed))
    return PackedBatch(ids, Segments.of(lengths, torch.device("cpu")), torch.arange(total), lengths)


@pytest.fixture
def model() -> NVEmbed:
    return tiny_model().requires_grad_(False).eval()


@pytest.mark.filterwarnings("ignore")  # of the compiler
@torch.inference_mode()
def test_compiled_layers_give_the_same_vectors_and_pause(model: NVEmbed) -> None:
    first, second = batch_of(3, 17, 5), batch_of(40, 2, seed=2)
    expected = model(first), model(second)
    compile_layers(model, backend="aot_eager")
    torch.testing.assert_close(model(first), expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(model(second), expected[1], atol=1e-6, rtol=0)

    inner: list[Tensor] = []
    pauses = []

    def pause() -> None:
        pauses.append(1)
        inner.append(model(second))  # an urgent batch, itself without a pause

    for _ in range(2):  # with another function each time, as a server has
        around = model(first, lambda: pause())
        torch.testing.assert_close(around, expected[0], atol=1e-6, rtol=0)
    assert len(pauses) == 2 * 2 * len(model.embedding_model.layers)
    for vectors in inner:
        torch.testing.assert_close(vectors, expected[1], atol=1e-6, rtol=0)


class Recorder:
    """Stands in for CUDA's graphs: what is recorded runs again into the same memory."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, body: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.recorded += 1
        states = torch.full_like(body(), torch.nan)

        def replay() -> None:
            self.replayed += 1
            states.copy_(body())

        return replay, states


def by_offsets(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, reach: Reach = WHOLE, **_: object
) -> Tensor:
    """Attention that knows the texts by their offsets alone, as CUDA's kernel does."""
    lengths = tuple(segments.cu_seqlens.diff().tolist())
    kept = tuple(length for length in lengths if length)
    return attention_oracle(q, k, v, Segments.of(kept, q.device), reach).to(q.dtype)


@torch.inference_mode()
def test_a_graph_gives_what_the_text_alone_gives(model: NVEmbed) -> None:
    for layer in model.embedding_model.layers:
        layer.get_submodule("self_attn").attend = by_offsets
    record = Recorder()
    graphs = Graphs(model.embedding_model, record)
    texts = [batch_of(length, seed=length) for length in (3, 16, 9, 17, 1, 60, 3)]
    expected = [model(text) for text in texts]
    model.graphs = graphs
    for text, vector in zip(texts, expected, strict=True):
        torch.testing.assert_close(model(text), vector, atol=1e-6, rtol=0)
    assert record.recorded == 3, "capacities of 16, 32 and 64 tokens, each recorded once"
    assert record.replayed == len(texts)


@torch.inference_mode()
def test_what_a_graph_computed_before_changes_nothing(model: NVEmbed) -> None:
    """The rest of an earlier text is the padding of a later one."""
    for layer in model.embedding_model.layers:
        layer.get_submodule("self_attn").attend = by_offsets
    short, long = batch_of(5, seed=5), batch_of(15, seed=6)
    model.graphs = Graphs(model.embedding_model, Recorder())
    before = model(short)
    model(long)
    torch.testing.assert_close(model(short), before, atol=0, rtol=0)


@torch.inference_mode()
def test_graphs_are_for_single_short_texts_without_a_pause(model: NVEmbed) -> None:
    record = Recorder()
    model.graphs = graphs = Graphs(model.embedding_model, record)
    assert graphs(batch_of(3, 4)) is None
    assert graphs(batch_of(CAPACITIES[-1] + 1)) is None
    model(batch_of(3), lambda: None)
    assert record.recorded == 0
    assert max(b - a for a, b in pairwise(CAPACITIES)) <= 128
    assert no_pause() is None
