"""How fast a training step is on CPU, variant by variant, against a plain padded loop on the same model.

    python benchmarks/train_cpu.py MODEL [--threads 2] [--variants name;name] [--out FILE]

MODEL is a checkpoint (`nvembed init`). Texts are of mixed lengths, as in training: log-normal, median 32
tokens, at most 128. A step is a whole one: both passes, loss, optimizer. Speeds are real tokens (no padding)
per second of CPU time of one thread times the threads, which other work on the machine disturbs least, and
per wall second.
"""

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nvembed.model.attention import Segments
from nvembed.model.nv_embed import NVEmbed, PackedBatch
from nvembed.text.tokenize import Tokens
from nvembed.train.adapt import adapt, frozen_layers, trained
from nvembed.train.grad_cache import backward, embed
from nvembed.train.loss import loss_and_gradient
from nvembed.train.optim import Optimizer
from nvembed.train.recipe import AdapterSection, OptimizerSection
from nvembed.train.step_batch import MicroBatch, micro_batches
from nvembed.weights.checkpoint import load_model, open_checkpoint

CPU = torch.device("cpu")
OPTIMIZER = OptimizerSection(
    steps=100,
    learning_rate=1e-4,
    pooler_learning_rate=1e-4,
    warmup_steps=1,
    schedule="linear",
    weight_decay=0.03,
    betas=(0.9, 0.999),
    epsilon=1e-8,
    max_grad_norm=1.0,
)


@dataclass(frozen=True)
class Variant:
    dtype: str = "bfloat16"
    kind: str = "lora"
    dropout: float = 0.0
    layers: int = 30
    frozen: int = 0
    micro_batch_tokens: int = 2048
    graph: bool = True
    padded: bool = False


VARIANTS = {
    "padded loop, float32, LoRA": Variant("float32", padded=True),
    "padded loop, bfloat16, LoRA": Variant(padded=True),
    "packed, float32, LoRA with dropout": Variant("float32", dropout=0.1),
    "packed, float32, LoRA": Variant("float32"),
    "packed, bfloat16, LoRA with dropout": Variant(dropout=0.1),
    "packed, bfloat16, LoRA": Variant(),
    "the same, two passes": Variant(graph=False),
    "the same, micro-batches of 512": Variant(micro_batch_tokens=512),
    "the same, micro-batches of 1,024": Variant(micro_batch_tokens=1024),
    "packed, bfloat16, full fine-tuning": Variant(kind="full"),
    "packed, float32, full fine-tuning": Variant("float32", kind="full"),
    "LoRA, 10 of 30 layers frozen": Variant(frozen=10),
    "LoRA, 15 of 30 layers frozen": Variant(frozen=15),
    "LoRA, 20 of 30 layers frozen": Variant(frozen=20),
    "full, 15 of 30 layers frozen": Variant(kind="full", frozen=15),
    "LoRA, 20 layers kept": Variant(layers=20),
    "LoRA, 12 layers kept": Variant(layers=12),
    "pooler only": Variant(kind="none"),
}


def texts(total_tokens: int, vocabulary: int) -> list[Tokens]:
    rng = np.random.default_rng(0)
    tokens: list[Tokens] = []
    used = 0
    while used < total_tokens:
        length = int(np.clip(rng.lognormal(np.log(32), 0.8), 4, 128))
        ids = rng.integers(0, vocabulary, length).astype(np.int32)
        tokens.append(Tokens(ids, int(length > 40 and rng.random() < 0.3) * 18, length))
        used += length
    return tokens


def padded(tokens: list[Tokens], texts_at_once: int) -> list[MicroBatch]:
    """Micro-batches in the order texts come, each padded to its longest; all tokens go through the pooler."""
    batches = []
    for start in range(0, len(tokens), texts_at_once):
        chosen = tokens[start : start + texts_at_once]
        longest = max(len(item.input_ids) for item in chosen)
        ids = np.zeros((len(chosen), longest), dtype=np.int64)
        for row, item in enumerate(chosen):
            ids[row, : len(item.input_ids)] = item.input_ids
        lengths = (longest,) * len(chosen)
        packed = PackedBatch(
            torch.from_numpy(ids.ravel()), Segments.of(lengths, CPU), torch.arange(ids.size), lengths
        )
        batches.append(MicroBatch(packed, torch.arange(start, start + len(chosen))))
    return batches


def prepare(path: str, variant: Variant) -> tuple[NVEmbed, AdapterSection]:
    checkpoint = open_checkpoint(path)
    model = load_model(checkpoint, device="cpu", dtype=getattr(torch, variant.dtype), fold=False)
    model.embedding_model.layers = nn.ModuleList(list(model.embedding_model.layers)[: variant.layers])
    settings = AdapterSection(kind=variant.kind, dropout=variant.dropout, frozen_layers=variant.frozen)
    adapt(model, settings, seed=0)
    return model, settings


def steps(path: str, variant: Variant, tokens: list[Tokens], repeats: int) -> tuple[float, float]:
    """Return CPU and wall seconds of one step, the best of some."""
    model, settings = prepare(path, variant)
    optimizer = Optimizer(trained(model), OPTIMIZER)
    run: Callable[[MicroBatch], torch.Tensor] = partial(
        embed, model, frozen_layers=frozen_layers(model, settings)
    )
    count = len(tokens)
    queries = torch.arange(0, count, 4)
    gradient = partial(
        loss_and_gradient,
        query_rows=queries,
        passage_rows=torch.arange(count),
        positive_Q=(queries + 1) % count,
        allowed_QC=torch.arange(count)[None, :] != queries[:, None],
        temperature=0.05,
    )
    best_cpu = best_wall = float("inf")
    for number in range(repeats + 1):
        work = (
            padded(tokens, 32) if variant.padded else micro_batches(tokens, variant.micro_batch_tokens, CPU)
        )
        cpu, wall = time.process_time(), time.perf_counter()
        backward(
            run,
            work,
            lambda vectors: gradient(vectors)[1],
            seed=number,
            graph_tokens=10**9 if variant.graph else 0,
            done=optimizer.collect,
        )
        optimizer.step(number)
        if number:  # the first one warms up
            best_cpu = min(best_cpu, time.process_time() - cpu)
            best_wall = min(best_wall, time.perf_counter() - wall)
    return best_cpu, best_wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--variants", default="")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokens = texts(options.tokens, 30_000)
    total = sum(len(item.input_ids) for item in tokens)
    lines = [
        "| variant | tokens per CPU second, x threads | tokens per wall second | against the first |",
        "|---|---|---|---|",
    ]
    first = 0.0
    chosen = [name for name in VARIANTS if not options.variants or name in options.variants.split(";")]
    for name in chosen:
        cpu, wall = steps(options.model, VARIANTS[name], tokens, options.repeats)
        speed = total / cpu * options.threads
        first = first or speed
        lines.append(f"| {name} | {speed:,.0f} | {total / wall:,.0f} | {speed / first:.2f} |")
        print(lines[-1], flush=True)
    if options.out:
        page = [
            "# Training speed on CPU",
            "",
            f"`python benchmarks/train_cpu.py MODEL --threads {options.threads} --tokens {options.tokens}`; "
            "SmolLM2-135M with latent pooling (128 latents, 8 heads of 72); "
            f"torch {torch.__version__}, Python {platform.python_version()}, {processor()}, "
            f"{options.threads} threads; best of {options.repeats} steps of {total:,} tokens in "
            f"{len(tokens):,} texts, log-normal lengths (median 32, at most 128).",
            "",
            *lines,
            "",
        ]
        options.out.write_text("\n".join(page))


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
