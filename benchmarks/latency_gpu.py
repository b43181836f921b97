"""How long one query takes on a GPU, with the full-size model and random weights.

From token ids on the host to the vector on the host, one query at a time, for queries of 16, 64 and 256
tokens: plain layers, compiled layers, and each with CUDA graphs. The floor is the time to read all weights of
the backbone once, at the rate at which the device copies memory.

    python benchmarks/latency_gpu.py [--device cpu --tiny]

Without CUDA there are no graphs, and the script only shows that it runs.
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from encode_gpu import Clock, device_of, ending, gpu_parser, make_variant, random_model, random_texts, report
from encode_gpu import rows as table_rows
from nvembed.model.compiled import graph_short_texts
from nvembed.model.config import NV_EMBED_V2
from nvembed.model.device import OnHost
from nvembed.model.nv_embed import NVEmbed, PackedBatch
from nvembed.text.pack import batches
from sizes import tiny

LENGTHS = (16, 64, 256)
WAYS = ("plain", "plain, graphs", "compiled", "compiled, graphs")


def query(model: NVEmbed, length: int) -> Callable[[], np.ndarray]:
    """Return a function that computes one query from ids on the host."""
    [batch] = batches(random_texts([length], model.config.backbone.vocab_size), length)

    def run() -> np.ndarray:
        with torch.inference_mode():
            packed = PackedBatch.of(
                batch.input_ids, batch.lengths, batch.pool_index, batch.pool_lengths, model.device
            )
            return OnHost(model(packed)).numpy()

    return run


def memory_bytes_per_s(clock: Clock, size_bytes: int) -> float:
    """Return the bytes per second that the device reads and writes, together, while it copies memory."""
    values = torch.empty(size_bytes, dtype=torch.uint8, device=clock.device)
    copy = torch.empty_like(values)

    def run() -> None:
        copy.copy_(values)

    return 2 * size_bytes / clock.median(run)


def measure(model: NVEmbed, length: int, repeats: int, floor_s: float) -> dict[str, Any]:
    run = query(model, length)
    started = time.perf_counter()
    expected = run()
    first_s = time.perf_counter() - started
    for _ in range(min(5, repeats)):
        run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        vector = run()
        seconds.append(time.perf_counter() - started)
    if not np.array_equal(vector, expected):
        raise SystemExit("the same query has two vectors")
    p50, p95 = np.percentile(seconds, [50, 95])
    return {
        "tokens": length,
        "p50_ms": round(1e3 * p50, 2),
        "p95_ms": round(1e3 * p95, 2),
        "floor_ms": round(1e3 * floor_s, 2),
        "times_floor": round(p50 / floor_s, 2),
        "first_s": round(first_s, 2),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = ["# Latency of one query on a GPU: NV-Embed v2's sizes, random weights, bfloat16", ""]
    if not result["measured"]:
        lines += [f"**not measured**: {result['reason']}", ""]
    lines += [
        "| query | p50, ms | p95, ms | floor, ms | times the floor | first, s |",
        "|---|---|---|---|---|---|",
    ]
    lines += table_rows(result["cases"], ("p50_ms", "p95_ms", "floor_ms", "times_floor", "first_s"))
    lines += ["", "Floor: the backbone's weights, read once at the rate of copying memory."]
    return "\n".join([*lines, *ending(result)])


def main() -> None:
    args = gpu_parser(__doc__, repeats=50).parse_args()
    device = device_of(args)
    config = tiny(NV_EMBED_V2) if args.tiny else NV_EMBED_V2
    plain = random_model(config, device, torch.bfloat16).requires_grad_(False).eval()
    plain.fold_pooler()
    names = [f"{length} tokens, {way}" for way in WAYS for length in LENGTHS]
    results: dict[str, dict[str, Any]] = {name: {"case": name} for name in names}
    weights = sum(value.nbytes for value in plain.embedding_model.layers.parameters())
    floor_s = weights / memory_bytes_per_s(Clock(device, 5), 1 << (20 if args.tiny else 32))
    page = ""
    for way in WAYS:
        model = make_variant(plain, way.partition(",")[0])
        if way.endswith("graphs"):
            graph_short_texts(model)
        for length in LENGTHS:
            name = f"{length} tokens, {way}"
            case = {"case": name, **measure(model, length, args.repeats, floor_s)}
            print(json.dumps(case), flush=True)
            if not args.tiny:
                results[name] = case
            page = report("latency_gpu", args, results, markdown)
    print(page)


if __name__ == "__main__":
    main()
