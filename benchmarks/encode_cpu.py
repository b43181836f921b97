"""How fast is encoding on this CPU, beside what peers reach and what the matrix products alone allow?

500 real passages of mixed lengths, the small backbone in float32, all variants interleaved in one run:

- nvembed     packed batches, folded latent pooler (the default path of ``Encoder.encode``)
- (a1)        sentence-transformers on the same backbone weights, bidirectional, mean pooling
- (a2)        transformers on the same, padded batches of 32 sorted by length, mean pooling
- (b)         transformers, padded batches of 32 in arrival order, plain (unfolded) latent pooler
- products    only the matrix products of nvembed's own batches: the bound

    nvembed init SmolLM2-135M-Instruct.Q4_1.gguf .cache/small
    python benchmarks/encode_cpu.py .cache/small DATA --repeats 3

Peak memory is that of a process that does nothing else (``--only VARIANT`` measures one).
"""

import argparse
import gzip
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from nvembed.encoder import Encoder
from nvembed.model.device import CPU_BATCH_TOKENS
from nvembed.text.pack import batches
from nvembed.text.tokenize import TextTokenizer
from nvembed.weights.checkpoint import load_model, open_checkpoint
from nvembed.weights.tensors import read_tensor

RESULTS = Path(__file__).parent / "results"
VARIANTS = ("nvembed", "a1 sentence-transformers", "a2 transformers", "b padded, plain pooler", "products")
SETS = ("retrieval/scifact", "retrieval/xquad_en_squad_dev_subset", "retrieval/hotpotqa_dev500_pooled")


def passages(data: Path, count: int) -> list[str]:
    """Real texts of mixed lengths: one in six an abstract or paragraph, the rest titles and sentences."""
    long: list[str] = []
    short: list[str] = []
    for name in SETS:
        paths = sorted((data / name).glob("corpus.jsonl*"))
        if not paths:
            sys.exit(f"{data / name}/corpus.jsonl is missing: pass the folder that holds shared/data")
        with (gzip.open if paths[0].suffix == ".gz" else open)(paths[0], "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        long += [row["text"] for row in rows]
        short += [row["title"] for row in rows if row.get("title")]
        short += [row["text"].split(". ")[0] for row in rows]
    generator = random.Random(0)
    texts = generator.sample(long, count // 6) + generator.sample(short, count - count // 6)
    generator.shuffle(texts)
    return texts


class Backbone:
    """The same backbone weights in transformers' Llama, read in both directions."""

    def __init__(self, model: Path) -> None:
        from transformers import LlamaConfig, LlamaModel

        self.folder = Path(tempfile.mkdtemp(prefix="nvembed-bench-"))
        checkpoint = open_checkpoint(model)
        b = checkpoint.config.backbone
        config = LlamaConfig(
            vocab_size=b.vocab_size,
            hidden_size=b.hidden_size,
            intermediate_size=b.intermediate_size,
            num_hidden_layers=b.num_layers,
            num_attention_heads=b.num_heads,
            num_key_value_heads=b.num_kv_heads,
            max_position_embeddings=b.max_position,
            rms_norm_eps=b.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": b.rope_theta},
            use_cache=False,
            is_causal=False,
        )
        self.model = LlamaModel(config).eval()
        prefix = "embedding_model."
        state = {
            name.removeprefix(prefix): read_tensor(stored, name)
            for name, stored in checkpoint.tensors.items()
            if name.startswith(prefix)
        }
        self.model.load_state_dict(state)
        self.model.save_pretrained(self.folder)
        for name, content in checkpoint.tokenizer_files().items():
            (self.folder / name).write_bytes(content)
        self.tokenizer = TextTokenizer(checkpoint.tokenizer_files()["tokenizer.json"], checkpoint.text)
        self.eos = checkpoint.text.eos_id

    def hidden(self, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states of a padded batch, of the same ids that nvembed reads, and its mask."""
        tokens = [torch.from_numpy(item.input_ids).long() for item in self.tokenizer(texts)]
        ids = pad_sequence(tokens, batch_first=True, padding_value=self.eos)
        ones = [torch.ones(len(item), dtype=torch.long) for item in tokens]
        mask = pad_sequence(ones, batch_first=True)
        return self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask


def mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    weights = mask[..., None].float()
    return F.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)


def products(encoder: Encoder, texts: list[str]) -> Callable[[], None]:
    """The matrix products of nvembed's batches, into memory that is there already, and nothing else."""
    model = encoder.replicas[0]
    work = [batch.lengths for batch in batches(encoder.tokenizer(texts), CPU_BATCH_TOKENS)]
    b = model.config.backbone
    layer = model.embedding_model.layers[0]
    pooler = model.latent_attention_model
    linears = [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)] * b.num_layers
    linears += [pooler.keys, pooler.values.T.contiguous(), pooler.feed_forward.fn.net[0].weight]
    largest = max(sum(lengths) for lengths in work)
    inputs = {w.shape[1]: torch.randn(largest, w.shape[1]) for w in linears}
    outputs = {w.shape[0]: torch.empty(largest, w.shape[0]) for w in linears}
    longest = max(max(lengths) for lengths in work)
    head = torch.randn(b.num_heads, longest, b.head_dim)
    scores = torch.empty(b.num_heads * longest * longest)

    def run() -> None:
        for lengths in work:
            total = sum(lengths)
            for weight in linears:
                out = outputs[weight.shape[0]][:total]
                torch.mm(inputs[weight.shape[1]][:total], weight.T, out=out)
            for _ in range(b.num_layers):
                for length in lengths:
                    x = head[:, :length]
                    square = scores[: b.num_heads * length * length].view(b.num_heads, length, length)
                    torch.bmm(x, x.mT, out=square)
                    torch.bmm(square, x)

    return run


def prepare(variant: str, model: Path, texts: list[str]) -> Callable[[], object]:
    if variant in ("nvembed", "products"):
        encoder = Encoder.from_pretrained(model, device="cpu", dtype="float32")
        return products(encoder, texts) if variant == "products" else lambda: encoder.encode(texts)
    backbone = Backbone(model)
    if variant.startswith("a1"):
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        transformer = Transformer(str(backbone.folder), config_kwargs={"is_causal": False})
        transformer.tokenizer.padding_side = "right"
        transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
        peer = SentenceTransformer(modules=[transformer, Pooling(backbone.model.config.hidden_size, "mean")])
        return lambda: peer.encode(texts, batch_size=32, normalize_embeddings=True)
    plain = None
    order = list(range(len(texts)))
    if variant.startswith("a2"):
        order.sort(key=lambda row: -len(texts[row]))
    else:
        checkpoint = open_checkpoint(model)
        whole = load_model(checkpoint, device="cpu", dtype=torch.float32, fold=False)
        plain = whole.latent_attention_model

    def run() -> np.ndarray:
        vectors = np.empty((len(texts), backbone.model.config.hidden_size), np.float32)
        for start in range(0, len(texts), 32):
            rows = order[start : start + 32]
            states, mask = backbone.hidden([texts[row] for row in rows])
            if plain is not None:
                states = plain.token_states(states.flatten(0, 1)).view(states.shape)
            vectors[rows] = mean(states, mask).numpy()
        return vectors

    return run


def peak_memory(variant: str, arguments: argparse.Namespace) -> float:
    """GiB at the highest, of a fresh process that runs one variant once on 64 passages."""
    command = [sys.executable, __file__, str(arguments.model), str(arguments.data), "--only", variant]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def high_water_gib() -> float:
    """This process's own (ru_maxrss would be its parent's, where that was larger)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--passages", type=int, default=500)
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    texts = passages(arguments.data, arguments.passages)
    if arguments.only:
        with torch.inference_mode():
            prepare(arguments.only, arguments.model, texts[:64])()
        print(high_water_gib())
        return

    encoder = Encoder.from_pretrained(arguments.model, device="cpu", dtype="float32")
    lengths = [len(item.input_ids) for item in encoder.tokenizer(texts)]
    total = sum(lengths)
    print(f"{len(texts)} passages, {total:,} tokens, median {np.median(lengths):.0f}, longest {max(lengths)}")
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with torch.inference_mode():
        runs = {variant: prepare(variant, arguments.model, texts) for variant in VARIANTS}
        vectors: dict[str, object] = {}
        for run in (runs["nvembed"], runs["products"]):  # both pay for first pages and thread start here
            run()
        for _ in range(arguments.repeats):
            for variant, run in runs.items():
                start = time.perf_counter()
                vectors[variant] = run()
                seconds[variant].append(time.perf_counter() - start)
                print(f"{variant:28} {total / seconds[variant][-1]:8,.0f} tokens/s", flush=True)
    ours, theirs = (np.asarray(vectors[variant]) for variant in (VARIANTS[0], VARIANTS[3]))
    report(arguments, lengths, seconds, float(np.abs(ours - theirs).max()))


def report(
    arguments: argparse.Namespace, lengths: list[int], seconds: dict[str, list[float]], difference: float
) -> None:
    rates = {variant: sum(lengths) / float(np.median(times)) for variant, times in seconds.items()}
    result = {
        "question": "tokens per second of encoding on CPU, float32, SmolLM2-135M with the latent pooler",
        "command": f"python benchmarks/encode_cpu.py MODEL DATA --repeats {arguments.repeats}",
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), "torch": torch.__version__} | peers(),
        "threads": torch.get_num_threads(),
        "passages": len(lengths),
        "tokens": {"total": sum(lengths), "median": int(np.median(lengths)), "longest": max(lengths)},
        "seconds": seconds,
        "tokens_per_second": rates,
        "nvembed_over": {variant: rates["nvembed"] / rate for variant, rate in rates.items()},
        "peak_memory_gib": {
            variant: peak_memory(variant, arguments) for variant in VARIANTS if variant != "products"
        },
        "largest_difference_to_b": difference,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "encode_cpu.json").write_text(json.dumps(result, indent=1) + "\n")
    rows = [
        f"| {variant} | {rates[variant]:,.0f} | {result['nvembed_over'][variant]:.2f} | "
        f"{result['peak_memory_gib'].get(variant, float('nan')):.2f} |".replace("nan", "-")
        for variant in VARIANTS
    ]
    text = "\n".join(
        [
            "# Encoding on CPU",
            "",
            f"{result['question']}. {result['hardware']}; {result['versions']}. `{result['command']}`: "
            f"{len(lengths)} real passages, {sum(lengths):,} tokens (median {np.median(lengths):.0f}, "
            f"longest {max(lengths)}), median of {arguments.repeats} interleaved runs.",
            "",
            "| variant | tokens/s | nvembed / variant | peak memory, GiB |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Largest difference between the vectors of nvembed and of (b): {difference:.1e}.",
            "",
        ]
    )
    (RESULTS / "encode_cpu.md").write_text(text)
    print(text)


def peers() -> dict[str, str]:
    import sentence_transformers
    import transformers

    return {
        "transformers": transformers.__version__,
        "sentence-transformers": sentence_transformers.__version__,
    }


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


if __name__ == "__main__":
    try:
        main()
    finally:
        for folder in Path(tempfile.gettempdir()).glob("nvembed-bench-*"):
            shutil.rmtree(folder, ignore_errors=True)
