"""Tokens per second of the full-size model on a GPU, random weights, against its own matrix products.

For texts of 16 to 32,768 tokens, and for a mix of lengths, three things are timed in turn on the same tokens:

ours          packed tokens, varlen attention, folded pooler
transformers  transformers' own Mistral on the same weights: bidirectional, padded, sdpa, sorted by length,
              and the plain unfolded pooler
ceiling       nothing but the same matrix products: every linear layer on as many rows, and attention's two
              products at the rate that the linear layers reach

    python benchmarks/encode_gpu.py [--device cpu --tiny] [--variant compiled]

A variant of ours is timed alone, and its vectors are compared with those of the plain layers.

Without CUDA the script only shows that it runs: the result files then say "not measured".
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from memory import hardware
from nvembed.model.attention import Segments
from nvembed.model.compiled import compile_layers
from nvembed.model.config import NV_EMBED_V2, ModelConfig
from nvembed.model.latent import FoldedLatentAttention, LatentAttention, fold
from nvembed.model.nv_embed import NVEmbed, PackedBatch
from nvembed.model.quantised import activation_dtype, quantise
from nvembed.text.pack import batches
from nvembed.text.tokenize import Tokens
from sizes import tiny

RESULTS = Path(__file__).parent / "results"
LENGTHS = (16, 128, 512, 2048, 8192, 32768)
BATCH_TOKENS = 32768
VARIANTS = ("plain", "compiled", "fp8")  # fp8: compiled too
LOWEST = {"compiled": 0.99, "fp8": 0.5}  # cosine to the plain layers; below, something is wrong
BATCH_TEXTS = 32  # of transformers, on the mix
MIX = "512 texts, log-normal lengths: median 120 tokens, sigma 1, 8 to 4,096"


@dataclass
class Models:
    """Ours and transformers' on the same tensors, and the plain pooler that ours was folded from."""

    ours: NVEmbed
    plain: LatentAttention | None  # None, as transformers', where ours is timed alone
    mistral: torch.nn.Module | None


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> NVEmbed:
    """Random weights that keep every layer's output near the size of its input; norms ones, biases zeros."""
    with torch.device("meta"):
        model = NVEmbed(config).to(dtype)
    model = model.to_empty(device=device)
    torch.manual_seed(1)
    for name, value in model.named_parameters():
        if value.dim() > 1:
            value.data.normal_(0, value.shape[1] ** -0.5)
        else:
            value.data.fill_(0.0 if name.endswith("bias") else 1.0)
    return model


def build(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Models:
    """Return ours and transformers' on the same random weights."""
    ours = random_model(config, device, dtype).requires_grad_(False).eval()
    plain = ours.latent_attention_model
    assert isinstance(plain, LatentAttention)
    mistral = transformers_mistral(ours, config, device, dtype)
    ours.latent_attention_model = fold(plain, config.backbone.hidden_size, config.pooler)
    return Models(ours, plain, mistral)


def transformers_mistral(
    ours: NVEmbed, config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """transformers' Mistral, holding our decoder's very tensors, without its causal mask."""
    from transformers import MistralConfig, MistralModel

    backbone = config.backbone
    with torch.device(device):
        rotary_needs_values = MistralConfig(
            vocab_size=8,
            hidden_size=backbone.hidden_size,
            intermediate_size=8,
            num_hidden_layers=0,
            num_attention_heads=backbone.num_heads,
            num_key_value_heads=backbone.num_kv_heads,
            head_dim=backbone.head_dim,
            rms_norm_eps=backbone.rms_norm_eps,
            max_position_embeddings=backbone.max_position,
            sliding_window=None,
            attn_implementation="sdpa",
            use_cache=False,
        )
        rotary = MistralModel(rotary_needs_values).rotary_emb
    full = MistralConfig(
        **{
            **rotary_needs_values.to_diff_dict(),
            "vocab_size": backbone.vocab_size,
            "intermediate_size": backbone.intermediate_size,
            "num_hidden_layers": backbone.num_layers,
        }
    )
    full._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = MistralModel(full).to(dtype)
    model.load_state_dict(ours.embedding_model.state_dict(), assign=True)
    model.rotary_emb = rotary
    for layer in model.layers:
        layer.self_attn.is_causal = False
    return model.requires_grad_(False).eval()


def random_texts(lengths: list[int], vocab_size: int) -> list[Tokens]:
    generator = np.random.default_rng(1)
    return [
        Tokens(generator.integers(3, vocab_size, length, dtype=np.int32), 0, length) for length in lengths
    ]


def mixed_lengths(count: int) -> list[int]:
    generator = np.random.default_rng(2)
    return np.clip(np.exp(generator.normal(np.log(120), 1.0, count)), 8, 4096).astype(int).tolist()


def packed_batches(texts: list[Tokens], device: torch.device) -> list[tuple[PackedBatch, np.ndarray]]:
    return [
        (
            PackedBatch(
                torch.from_numpy(batch.input_ids).to(device),
                Segments.of(batch.lengths, device),
                torch.from_numpy(batch.pool_index).to(device),
                batch.pool_lengths,
            ),
            batch.rows,
        )
        for batch in batches(texts, BATCH_TOKENS)
    ]


@dataclass
class PaddedBatch:
    ids: Tensor  # (B, T)
    pool_mask: Tensor  # (B, T) bool
    attention_mask: Tensor | None  # (B, 1, 1, T) bool; None without padding, for the fastest kernel
    rows: np.ndarray


def padded_batches(texts: list[Tokens], device: torch.device) -> list[PaddedBatch]:
    """Sorted by length; as many texts as the token budget allows, 32 at most where lengths differ."""
    order = np.argsort([-len(text.input_ids) for text in texts], kind="stable")
    equal = len({len(text.input_ids) for text in texts}) == 1
    size = max(1, BATCH_TOKENS // len(texts[order[0]].input_ids)) if equal else BATCH_TEXTS
    batches = []
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        width = len(texts[rows[0]].input_ids)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for row, text in enumerate(rows):
            length = len(texts[text].input_ids)
            ids[row, :length] = torch.from_numpy(texts[text].input_ids.astype(np.int64))
            mask[row, :length] = True
        attention_mask = None if bool(mask.all()) else mask[:, None, None, :].to(device)
        batches.append(PaddedBatch(ids.to(device), mask.to(device), attention_mask, rows))
    return batches


def run_ours(models: Models, work: list[tuple[PackedBatch, np.ndarray]], out: Tensor) -> None:
    for batch, rows in work:
        out[torch.from_numpy(rows)] = models.ours(batch).cpu()


def run_transformers(models: Models, work: list[PaddedBatch], out: Tensor) -> None:
    assert models.plain is not None
    assert models.mistral is not None
    for batch in work:
        hidden = models.mistral(
            input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        states = models.plain.token_states(hidden.flatten(0, 1)).view(hidden.shape).float()
        weights = batch.pool_mask.float()[:, :, None]
        pooled = (states * weights).sum(1) / weights.sum(1)
        out[torch.from_numpy(batch.rows)] = F.normalize(pooled, dim=-1).cpu()


def linear_products(models: Models, rows: int, texts: int) -> list[tuple[Tensor, Tensor, int]]:
    """Every linear layer's (input, weight, products): the input is shared by layers of equal width."""
    folded = models.ours.latent_attention_model
    assert isinstance(folded, FoldedLatentAttention)
    first, _, last = folded.feed_forward.fn.net
    layers = [
        linear.weight
        for linear in models.ours.embedding_model.layers.modules()
        if isinstance(linear, torch.nn.Linear)
    ]
    pooler = [folded.keys, folded.values.T, first.weight]
    inputs: dict[tuple[int, int], Tensor] = {}
    products = []
    for count, weights in ((rows, layers + pooler), (texts, [last.weight])):
        for weight in weights:
            key = (count, weight.shape[1])
            if key not in inputs:
                inputs[key] = torch.randn(key, dtype=weight.dtype, device=weight.device)
            products.append((inputs[key], weight, 2 * count * weight.numel()))
    return products


def ceiling(models: Models, work: list[tuple[PackedBatch, np.ndarray]], clock: "Clock") -> dict[str, float]:
    """Seconds of the linear layers' products alone, and of attention's at the same rate."""
    backbone = models.ours.config.backbone
    seconds = operations = attention_operations = 0.0
    measured: dict[int, tuple[float, float]] = {}
    for batch, _ in work:
        rows = len(batch.input_ids)
        if rows not in measured:
            products = linear_products(models, rows, len(batch.pool_lengths))

            def run(products: list[tuple[Tensor, Tensor, int]] = products) -> None:
                for x, weight, _ in products:
                    F.linear(x, weight)

            measured[rows] = clock.median(run), float(sum(count for *_, count in products))
        seconds += measured[rows][0]
        operations += measured[rows][1]
        squares = sum(length**2 for length in batch.segments.lengths)
        attention_operations += 4 * backbone.num_layers * backbone.num_heads * backbone.head_dim * squares
    rate = operations / seconds
    return {"seconds": seconds + attention_operations / rate, "tflop_per_s": rate / 1e12}


@dataclass
class Clock:
    device: torch.device
    repeats: int

    def once(self, body: Callable[[], None]) -> float:
        self.wait()
        started = time.perf_counter()
        body()
        self.wait()
        return time.perf_counter() - started

    def median(self, body: Callable[[], None]) -> float:
        body()
        return statistics.median(self.once(body) for _ in range(self.repeats))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def peak_gib(device: torch.device, body: Callable[[], None]) -> float | None:
    """Return what one run allocates at most, the models' weights (both poolers) included."""
    if device.type != "cuda":
        body()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    body()
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


@torch.inference_mode()
def measure(models: Models, lengths: list[int], name: str, clock: Clock) -> dict[str, Any]:
    """Time all three on the same texts, one after the other in each round."""
    config, device = models.ours.config, clock.device
    texts = random_texts(lengths, config.backbone.vocab_size)
    packed, padded = packed_batches(texts, device), padded_batches(texts, device)
    out = {key: torch.empty(len(texts), config.backbone.hidden_size) for key in ("ours", "transformers")}
    bodies = {
        "ours": lambda: run_ours(models, packed, out["ours"]),
        "transformers": lambda: run_transformers(models, padded, out["transformers"]),
    }
    peaks = {key: peak_gib(device, body) for key, body in bodies.items()}  # also the warm-up
    rounds = [{key: clock.once(body) for key, body in bodies.items()} for _ in range(clock.repeats)]
    seconds = {key: statistics.median(each[key] for each in rounds) for key in bodies}
    bound = ceiling(models, packed, clock)
    tokens = sum(lengths)
    return {
        "case": name,
        "texts": len(texts),
        "tokens": tokens,
        "ours_tokens_per_s": round(tokens / seconds["ours"], 1),
        "transformers_tokens_per_s": round(tokens / seconds["transformers"], 1),
        "ceiling_tokens_per_s": round(tokens / bound["seconds"], 1),
        "ceiling_tflop_per_s": round(bound["tflop_per_s"], 3),
        "of_ceiling": round(bound["seconds"] / seconds["ours"], 3),
        "times_transformers": round(seconds["transformers"] / seconds["ours"], 2),
        "ours_peak_gib": peaks["ours"],
        "transformers_peak_gib": peaks["transformers"],
        "lowest_cosine": round(float((out["ours"] * out["transformers"]).sum(1).min()), 5),
    }


@torch.inference_mode()
def measure_variant(
    plain: Callable[[PackedBatch], Tensor], variant: Models, lengths: list[int], name: str, clock: Clock
) -> dict[str, Any]:
    """Time a variant of ours alone, and compare its vectors with the plain model's."""
    config, device = variant.ours.config, clock.device
    packed = packed_batches(random_texts(lengths, config.backbone.vocab_size), device)
    started = time.perf_counter()
    out = torch.empty(len(lengths), config.backbone.hidden_size)
    peak = peak_gib(device, lambda: run_ours(variant, packed, out))
    first_s = time.perf_counter() - started
    seconds = statistics.median(
        clock.once(lambda: run_ours(variant, packed, out)) for _ in range(clock.repeats)
    )
    lowest = min(
        float((out[torch.from_numpy(rows)] * plain(batch).cpu()).sum(1).min()) for batch, rows in packed
    )
    return {
        "case": name,
        "texts": len(lengths),
        "tokens": sum(lengths),
        "ours_tokens_per_s": round(sum(lengths) / seconds, 1),
        "first_s": round(first_s, 2),
        "ours_peak_gib": peak,
        "lowest_cosine": round(lowest, 5),
    }


def cases(small: bool) -> dict[str, list[int]]:
    lengths = (16, 64) if small else LENGTHS
    budget = 256 if small else BATCH_TOKENS
    lengths_of = {f"{length:,} tokens": [length] * max(1, budget // length) for length in lengths}
    lengths_of["mix"] = mixed_lengths(8 if small else 512)
    return lengths_of


def markdown(result: dict[str, Any]) -> str:
    lines = ["# Tokens per second on a GPU: NV-Embed v2's sizes, random weights, bfloat16", ""]
    if not result["measured"]:
        lines += [f"**not measured**: {result['reason']}", ""]
    lines += [
        "| texts of | ours, tokens/s | transformers, tokens/s | ceiling, tokens/s | of the ceiling "
        "| times transformers | peak GiB, ours | peak GiB, transformers |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns = ("ours_tokens_per_s", "transformers_tokens_per_s", "ceiling_tokens_per_s", "of_ceiling")
    columns += ("times_transformers", "ours_peak_gib", "transformers_peak_gib")
    lines += rows(result["cases"], columns)
    lines += [
        "",
        f"Mix: {MIX}. Batches of {BATCH_TOKENS:,} tokens; transformers' mix in sorted batches of 32.",
    ]
    return "\n".join([*lines, *ending(result)])


def rows(cases: list[dict[str, Any]], columns: Iterable[str]) -> list[str]:
    """Return the table's line of each case."""
    shown = [
        ["not measured" if (cell := case.get(column)) is None else f"{cell:,}" for column in columns]
        for case in cases
    ]
    return [f"| {' | '.join([case['case'], *cells])} |" for case, cells in zip(cases, shown, strict=True)]


def ending(result: dict[str, Any]) -> list[str]:
    """Return a result page's last lines: the machine and the command."""
    machine = result["hardware"]
    return [
        "",
        f"Hardware: {machine.get('gpu', 'no GPU')}; {machine['processor']}. torch {machine['torch']}.",
        "",
        f"Command: `{result['command']}`",
        "",
    ]


def gpu_parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser


def device_of(args: argparse.Namespace) -> torch.device:
    device = torch.device(args.device)
    if device.type != "cuda" and not args.tiny:
        raise SystemExit("the full-size model needs CUDA: pass --device cpu --tiny to try the script")
    return device


def report(
    script: str,
    args: argparse.Namespace,
    results: dict[str, dict[str, Any]],
    page: Callable[[dict[str, Any]], str],
    flags: str = "",
) -> str:
    """Write a script's two result files, and return the page.

    Called after every case, so that what is stopped keeps what it has measured.

    Args:
        found: name -> case; of one that is not measured, or of a small model, only its name.
    """
    device = device_of(args)
    measured = not args.tiny
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    variant = {"variant": args.variant} if "variant" in args else {}
    result = {
        **variant,
        "command": f"python benchmarks/{script.removesuffix('_' + variant.get('variant', ''))}.py"
        + f" --device {device.type}" * (device.type != "cuda")
        + " --tiny" * args.tiny
        + f" --repeats {args.repeats}"
        + (f" --variant {args.variant}" if variant and args.variant != "plain" else "")
        + flags,
        "hardware": {**hardware(), **gpu},
        "measured": measured,
        "reason": None if measured else "no CUDA device at hand; the script was only tried on a small model",
        "cases": list(results.values()),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f"{script}.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.results / f"{script}.md").write_text(page(result))
    return page(result)


def variant_markdown(result: dict[str, Any]) -> str:
    lines = [f"# Tokens per second on a GPU: {result['variant']} layers, the same sizes and texts", ""]
    if not result["measured"]:
        lines += [f"**not measured**: {result['reason']}", ""]
    lines += [
        "| texts of | tokens/s | first pass, s | peak GiB | lowest cosine to plain layers |",
        "|---|---|---|---|---|",
    ]
    lines += rows(result["cases"], ("ours_tokens_per_s", "first_s", "ours_peak_gib", "lowest_cosine"))
    return "\n".join([*lines, *ending(result)])


def main_variant(args: argparse.Namespace) -> None:
    device = device_of(args)
    config = tiny(NV_EMBED_V2) if args.tiny else NV_EMBED_V2
    dtype = activation_dtype(device) if args.variant == "fp8" else torch.bfloat16
    plain = random_model(config, device, dtype).requires_grad_(False).eval()
    plain.fold_pooler()
    models = Models(make_variant(plain, args.variant), None, None)
    clock = Clock(device, args.repeats)
    results: dict[str, dict[str, Any]] = {name: {"case": name} for name in cases(False)}
    page = ""
    for name, lengths in cases(args.tiny).items():
        case = measure_variant(plain, models, lengths, name, clock)
        if case["lowest_cosine"] < LOWEST[args.variant]:
            raise SystemExit(f"{name}: other vectors than with plain layers ({case['lowest_cosine']})")
        print(json.dumps(case), flush=True)
        if not args.tiny:
            results[name] = case
        page = report(f"encode_gpu_{args.variant}", args, results, variant_markdown)
    print(page)


def make_variant(plain: NVEmbed, variant: str) -> NVEmbed:
    """Return the model with other layers over the same weights; the plain one stays as it is."""
    ours = copy.deepcopy(plain, {id(value): value for value in (*plain.parameters(), *plain.buffers())})
    if variant == "fp8":
        quantise(ours, "fp8")
    if variant != "plain":
        compile_layers(ours)
    return ours


def main() -> None:
    parser = gpu_parser(__doc__, repeats=5)
    parser.add_argument("--variant", choices=VARIANTS, default=VARIANTS[0])
    args = parser.parse_args()
    if args.variant != "plain":
        main_variant(args)
        return
    device = device_of(args)
    config = tiny(NV_EMBED_V2) if args.tiny else NV_EMBED_V2
    models = build(config, device, torch.bfloat16)
    clock = Clock(device, args.repeats)
    results: dict[str, dict[str, Any]] = {name: {"case": name} for name in cases(False)}
    page = ""
    for name, lengths in cases(args.tiny).items():
        case = measure(models, lengths, name, clock)
        if case["lowest_cosine"] < 0.99:
            raise SystemExit(f"{name}: ours and transformers disagree (cosine {case['lowest_cosine']})")
        print(json.dumps(case), flush=True)
        if not args.tiny:
            results[name] = case
        page = report("encode_gpu", args, results, markdown)
    print(page)


if __name__ == "__main__":
    main()
