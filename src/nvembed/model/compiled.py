"""Compiled layers, and CUDA graphs of the backbone for single short texts.

Shapes: N tokens of a text, C capacity of a graph, D hidden size.
"""

import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nvembed.model.attention import VARLEN_HEAD_DIM, Segments
from nvembed.model.bert import Bert
from nvembed.model.device import no_pause, to_device
from nvembed.model.embedding_gemma2 import EmbeddingGemma2
from nvembed.model.layers import Backbone, Pause
from nvembed.model.nv_embed import NVEmbed, PackedBatch

# A text is computed in the smallest capacity that holds it. Up to some 200 tokens a layer takes as long as
# reading its weights, so padding is free; above, the steps keep it below a third.
CAPACITIES = (16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 896, 1024)

# Runs a function, records its work on the device, and returns what repeats it and where its result lies.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


def compile_layers(model: NVEmbed, backend: str = "inductor") -> None:
    """Compile each layer except its attention, for batches of any size; results change only by rounding.

    This fuses the operations between matrix products, which on a CPU in bfloat16 cost more than the products
    (docs/log.md). Attention depends on the lengths of the texts and would be compiled for every batch.
    """
    for layer in model.embedding_model.layers:
        for module in layer.modules():
            if hasattr(module, "attend"):
                eager = torch.compiler.disable(module.attend)  # type: ignore[no-untyped-call]
                object.__setattr__(module, "attend", eager)
        layer.forward = _pausing(torch.compile(layer.forward, dynamic=True, backend=backend))


def _pausing(compiled: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a compiled layer one and the same pause for all batches: for another one it is compiled again."""
    current = threading.local()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def pause_now() -> None:
        current.pause()

    def forward(x_ND: Tensor, position: Any, segments: Segments, pause: Pause = no_pause) -> Tensor:
        if pause is no_pause:
            return compiled(x_ND, position, segments, no_pause)
        outer = getattr(current, "pause", no_pause)  # of a batch that computes this one in its pause
        current.pause = pause
        try:
            return compiled(x_ND, position, segments, pause_now)
        finally:
            current.pause = outer

    return forward


class Graphs:
    """The backbone's work for one text, recorded once for each capacity and replayed.

    A short text's time on a GPU is mostly the launching of some thousand kernels; a graph launches them at
    once. The text is followed by padding, which is a text of its own, so that it changes nothing: the states
    are those of an eager pass over the same padded batch, to the last bit.
    """

    def __init__(self, backbone: Backbone, record: Record) -> None:
        self.backbone = backbone
        self.record = record
        self._graphs: dict[int, _Graph] = {}

    def __call__(self, batch: PackedBatch) -> Tensor | None:
        """Return the states of a batch of one short text, valid until the next call; None for others.

        They are (N, D) in the weights' dtype. The first text of a capacity takes some passes longer.
        """
        size = len(batch.input_ids)
        if len(batch.segments.lengths) != 1 or size > CAPACITIES[-1]:
            return None
        capacity = CAPACITIES[bisect_left(CAPACITIES, size)]
        if capacity not in self._graphs:
            self._graphs[capacity] = _Graph(self.backbone, capacity, batch.input_ids.device, self.record)
        return self._graphs[capacity].run(batch.input_ids)


class _Graph:
    def __init__(self, backbone: Backbone, capacity: int, device: torch.device, record: Record) -> None:
        self.capacity = capacity
        self.ids_C = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.offsets = torch.tensor([0, capacity, capacity], dtype=torch.int32, device=device)
        # The kernels read the offsets; the lengths say how much at most is in front of each.
        segments = Segments((capacity, 0), self.offsets)
        self.replay, self.states_CD = record(lambda: backbone(self.ids_C, segments))

    def run(self, ids_N: Tensor) -> Tensor:
        size = len(ids_N)
        self.ids_C[:size].copy_(ids_N)
        offsets = torch.tensor([0, size, self.capacity], dtype=torch.int32)
        self.offsets.copy_(to_device(offsets, self.offsets.device))
        self.replay()
        return self.states_CD[:size]


def cuda_record(device: torch.device) -> Record:
    """Return the ``Record`` of a CUDA device; its graphs share their memory, so one runs at a time."""
    pool = torch.cuda.graph_pool_handle()

    def record(body: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # compiles, chooses kernels and takes their workspace
                for _ in range(2):
                    body()
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # other threads may allocate meanwhile
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                states = body()
        return graph.replay, states

    return record


def graph_short_texts(model: NVEmbed) -> None:
    """Use graphs for single short texts, where the model's attention runs on one kernel for all lengths."""
    backbone = model.embedding_model
    half = model.dtype in (torch.float16, torch.bfloat16)
    biased = isinstance(backbone, Bert) and backbone.relative_bias is not None
    wide = isinstance(backbone, EmbeddingGemma2) and backbone.config.global_head_dim > VARLEN_HEAD_DIM
    if model.device.type == "cuda" and half and not biased and not wide:
        model.graphs = Graphs(backbone, cuda_record(model.device))
