"""How fast a LoRA step of the full-size model is on one GPU, with random weights, and what memory it takes.

Rank 16, the pooler trained in full, bfloat16, texts of 512 tokens. Each case is the real step: forward,
InfoNCE, backward, AdamW. Its ceiling is the same matrix products at the rate that the backbone's linear
layers reach alone: two passes over the backbone (forward, and backward to the inputs), a third with
activation checkpointing, a fourth with the gradient cache; the pooler has one more, for its weights'
gradients.

    python benchmarks/train_gpu.py [--device cpu --tiny] [--repeats 3] [--without-batch]

The last case is the paper's whole batch, 128 queries with a positive and 7 negatives each, once.
Without CUDA the script only shows that it runs: the result files then say "not measured".
"""

import gc
import json
import re
import statistics
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from encode_gpu import Clock, device_of, ending, gpu_parser, random_model, report, rows
from nvembed.files import data_path
from nvembed.model.config import NV_EMBED_V2, ModelConfig
from nvembed.model.nv_embed import NVEmbed
from nvembed.recipe import read_recipe
from nvembed.text.tokenize import Tokens
from nvembed.train.adapt import adapt, checkpoint_activations, trained
from nvembed.train.grad_cache import backward, embed
from nvembed.train.loss import Terms, loss_and_gradient
from nvembed.train.optim import Optimizer
from nvembed.train.recipe import StageRecipe
from nvembed.train.step_batch import micro_batches
from sizes import tiny

LENGTH = 512
STAGE = read_recipe(data_path("recipes") / "nv_embed_v2" / "stage1.toml", StageRecipe)


@dataclass(frozen=True)
class Case:
    queries: int
    texts_each: int  # a query, its positive, its negatives
    micro_batch_tokens: int
    checkpointing: bool
    cache: bool  # gradient cache; else the graph of the whole batch is kept
    offload: bool = False

    @property
    def texts(self) -> int:
        return self.queries * self.texts_each

    @property
    def passes(self) -> int:
        """Passes over the backbone: forward, backward to the inputs, and what is computed again."""
        return 2 + self.checkpointing + self.cache


CASES = {
    "activations kept": Case(8, 2, 8_192, False, False),
    "checkpointing": Case(8, 8, 16_384, True, False),
    "checkpointing, gradient cache": Case(16, 8, 16_384, True, True),
}
WHOLE = "the same, the whole batch of 128 x 9, 4,096 tokens at once, offload"


def step(model: NVEmbed, optimizer: Optimizer, case: Case, tokens: list[Tokens], number: int) -> float:
    """Take one step and return its loss."""
    count, losses = len(tokens), []
    queries = torch.arange(0, count, case.texts_each, device=model.device)
    passages = torch.tensor([row for row in range(count) if row % case.texts_each], device=model.device)

    def gradient_of(vectors: torch.Tensor) -> torch.Tensor:
        loss, gradient = loss_and_gradient(
            vectors,
            query_rows=queries,
            passage_rows=passages,
            positive_Q=torch.arange(0, len(passages), case.texts_each - 1, device=model.device),
            allowed_QC=torch.ones(len(queries), len(passages), dtype=torch.bool, device=model.device),
            terms=Terms(temperature=0.02),
        )
        losses.append(loss)
        return gradient

    backward(
        partial(embed, model),
        micro_batches(tokens, case.micro_batch_tokens, model.device),
        gradient_of,
        seed=number,
        graph_tokens=0 if case.cache else sum(len(text.input_ids) for text in tokens),
        done=optimizer.collect,
    )
    optimizer.step(number)
    return losses[0]


def matrices(module: nn.Module, *, without: str) -> list[torch.Tensor]:
    return [
        value for name, value in module.named_parameters() if value.dim() > 1 and not re.search(without, name)
    ]


def rate(model: NVEmbed, rows: int, repeats: int) -> float:
    """Return the operations per second of the backbone's linear layers alone."""
    weights, device = matrices(model.embedding_model.layers, without="lora"), model.device
    inputs = {
        width: torch.randn(rows, width, dtype=torch.bfloat16, device=device)
        for width in {weight.shape[1] for weight in weights}
    }

    def run() -> None:
        with torch.no_grad():
            for weight in weights:
                F.linear(inputs[weight.shape[1]], weight)

    seconds = Clock(device, repeats).median(run)
    return sum(2 * rows * weight.numel() for weight in weights) / seconds


def operations(model: NVEmbed, case: Case, length: int) -> float:
    """Return the operations of a step's matrix products, LoRA's own left out."""
    config, tokens = model.config, case.texts * length
    backbone, pooler = config.backbone, config.pooler
    linears = sum(value.numel() for value in matrices(model.embedding_model.layers, without="lora"))
    attention = 2 * backbone.num_layers * backbone.num_heads * backbone.head_dim * length
    inner = pooler.num_heads * pooler.head_dim
    # keys and values come from the latents alone: once a micro-batch, not once a token
    head = sum(value.numel() for value in matrices(model.latent_attention_model, without="(latents|to_kv)"))
    head += 2 * pooler.num_latents * inner
    # backward of attention: twice the products of forward, and the scores once more
    attention_passes = case.passes - 1 + 2.5
    return 2.0 * tokens * (case.passes * linears + attention_passes * attention + (case.passes + 1) * head)


def measure(
    config: ModelConfig, name: str, case: Case, device: torch.device, repeats: int, length: int
) -> Any:
    gc.collect()  # checkpointed layers refer to themselves: those of the case before would count in the peak
    model = random_model(config, device, torch.bfloat16)
    adapt(model, STAGE.adapter, seed=1)
    if case.checkpointing:
        checkpoint_activations(model)
    model.train()
    optimizer = Optimizer(trained(model), STAGE.optimizer.model_copy(update={"offload": case.offload}))
    generator = np.random.default_rng(1)
    tokens = [
        Tokens(generator.integers(3, config.backbone.vocab_size, length, dtype=np.int32), 0, length)
        for _ in range(case.texts)
    ]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    losses: list[float] = []

    def once() -> None:
        losses.append(step(model, optimizer, case, tokens, len(losses)))

    clock = Clock(device, repeats)
    seconds = [clock.once(once) for _ in range(repeats + (repeats > 1))]
    if repeats > 1:
        seconds = seconds[1:]  # the first one warms up
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    reached = rate(model, min(case.micro_batch_tokens, case.texts * length), 5)
    median_s = statistics.median(seconds)
    bound = operations(model, case, length) / reached
    return {
        "case": name,
        "texts": case.texts,
        "tokens": case.texts * length,
        "steps_timed": len(seconds),
        "seconds": round(median_s, 3),
        "tokens_per_s": round(case.texts * length / median_s, 1),
        "ceiling_tokens_per_s": round(case.texts * length / bound, 1),
        "of_ceiling": round(bound / median_s, 3),
        "tflop_per_s_of_products": round(reached / 1e12, 1),
        "peak_gib": None if peak is None else round(peak, 2),
        "loss": round(losses[-1], 4),
    }


def markdown(result: dict[str, Any]) -> str:
    lines = ["# A LoRA training step on a GPU: NV-Embed v2's sizes, random weights, bfloat16", ""]
    if not result["measured"]:
        lines += [f"**not measured**: {result['reason']}", ""]
    columns = {
        "texts": "texts of 512 tokens",
        "tokens_per_s": "tokens/s",
        "ceiling_tokens_per_s": "ceiling, tokens/s",
        "of_ceiling": "of the ceiling",
        "peak_gib": "peak GiB",
        "steps_timed": "steps timed",
    }
    lines += [f"| step | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    lines += rows(result["cases"], columns)
    lines += [
        "",
        "LoRA of rank 16 on all linear layers with dropout 0.1, the pooler in full, float32 masters, AdamW. "
        "Ceiling: the step's matrix products (two passes, one more for checkpointing, one more for the "
        "gradient cache; for LoRA's own none) at the rate of the backbone's linear layers alone"
        + (f", {result['cases'][0]['tflop_per_s_of_products']:,} TFLOP/s" if result["measured"] else "")
        + ". Peak: torch's allocations, weights included; offload keeps masters and moments in the host's "
        "memory.",
    ]
    return "\n".join([*lines, *ending(result)])


def main() -> None:
    parser = gpu_parser(__doc__, repeats=3)
    parser.add_argument("--without-batch", action="store_true", help="leave out the whole batch: a minute")
    args = parser.parse_args()
    device = device_of(args)
    config, length = (tiny(NV_EMBED_V2), 16) if args.tiny else (NV_EMBED_V2, LENGTH)
    whole = {} if args.without_batch else {WHOLE: Case(128, 9, 4_096, True, True, True)}
    cases = {**CASES, **whole}
    results: dict[str, dict[str, Any]] = {name: {"case": name} for name in cases}
    page = ""
    for name, case in cases.items():
        case = replace(case, queries=4) if args.tiny else case
        timed = measure(config, name, case, device, 1 if name in whole else args.repeats, length)
        print(json.dumps(timed), flush=True)
        if not args.tiny:
            results[name] = timed
        page = report("train_gpu", args, results, markdown, " --without-batch" * args.without_batch)
    print(page)


if __name__ == "__main__":
    main()
