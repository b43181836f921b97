"""A full-size rehearsal of NV-Embed v2 without its weights: does everything fit, and how long does it take?

Writes 304 tensors of random float16 under the released names and shapes in four shards (15.7 GB, deleted
afterwards), then, each in a process of its own: loads them in bfloat16 on CPU, folded, and encodes one text;
and runs ``nvembed check``. The norms are ones and the rest is small, so that nothing overflows.

    python benchmarks/rehearsal.py FOLDER TOKENIZER [--tiny]

FOLDER must have 16 GB free; TOKENIZER is a folder with NV-Embed's tokenizer.json and tokenizer_config.json.
Needs about 16 GB of free memory. Exits with 1 where the peak is 20 GiB or more.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from memory import GIB, hardware, phase
from nvembed.cli.check import check
from nvembed.cli.options import Compute
from nvembed.encoder import Encoder
from nvembed.model.config import NV_EMBED_V2, ModelConfig
from nvembed.text.tokenize import TextSettings
from nvembed.weights.check import free_memory
from nvembed.weights.known import known_weights
from nvembed.weights.save import SHARD_BYTES, save_checkpoint
from nvembed.weights.tensors import TOKENIZER_FILES, expected_tensors
from sizes import tiny

LIMIT_GIB = 20.0
TEXT = "Judo throws are allowed in freestyle and folkstyle wrestling."
RELEASED = TextSettings("released", NV_EMBED_V2.backbone.max_position, "</s>", 2, 1)
RESULTS = Path(__file__).parent / "results"


def released_order(name: str) -> tuple[int, int, bool]:
    """Pooler, embeddings, layers (the norms of each last), final norm: decides what lies in which shard."""
    room, part, *rest = name.split(".")
    if room != "embedding_model":
        return 0, 0, False
    if part == "layers":
        return 2, int(rest[0]), "layernorm" in name
    return 1 if part == "embed_tokens" else 3, 0, False


def random_tensors(config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor in the released order: normal(0, 0.02), norms ones, biases zeros."""
    generator = torch.Generator().manual_seed(1)
    shapes = expected_tensors(config)
    for name in sorted(shapes, key=released_order):
        shape = shapes[name]
        if name.endswith(".bias"):
            yield name, torch.zeros(shape, dtype=torch.float16)
        elif len(shape) == 1:
            yield name, torch.ones(shape, dtype=torch.float16)
        else:
            value = torch.empty(shape, dtype=torch.float16)
            for block in value.split(4096):
                block.copy_(torch.randn(block.shape, generator=generator) * 0.02)
            yield name, value


def write(folder: Path, tokenizer: Path, config: ModelConfig) -> None:
    files = {name: (tokenizer / name).read_bytes() for name in TOKENIZER_FILES}
    small = config != NV_EMBED_V2
    save_checkpoint(
        folder,
        config,
        RELEASED,
        random_tensors(config),
        tokenizer_files=files,
        shard_bytes=4_300_000 if small else SHARD_BYTES,
    )


def phase_load(folder: Path) -> dict[str, Any]:
    phases: dict[str, dict[str, float]] = {}
    with phase("load, fold (bfloat16)", phases):
        encoder = Encoder.from_pretrained(folder, device="cpu", dtype="bfloat16")
    with phase("encode one text, first", phases):
        vector = encoder.encode([TEXT])
    with phase("encode one text, again", phases):
        again = encoder.encode([TEXT])
    (part,) = encoder.stream([TEXT])
    return {
        "phases": phases,
        "parameters_folded": sum(value.numel() for value in encoder.replicas[0].state_dict().values()),
        "text_tokens": int(part.num_tokens[0]),
        "vector_shape": list(vector.shape),
        "vector_finite_and_unit": bool(abs(float(np.linalg.norm(vector)) - 1) < 1e-3),
        "same_twice": bool((vector == again).all()),
    }


def phase_check(folder: Path) -> dict[str, Any]:
    phases: dict[str, dict[str, float]] = {}
    out = StringIO()
    with phase("nvembed check", phases), redirect_stdout(out):
        code = check(
            str(folder), known_answer=False, json=True, compute=Compute(device="cpu", dtype="bfloat16")
        )
    report = json.loads(out.getvalue())
    del report["folder"]
    return {"phases": phases, "exit_code": code, "report": report}


def run_phase(name: str, folder: Path) -> dict[str, Any]:
    """Run one phase in a process of its own, so that its peak is its own."""
    command = [sys.executable, __file__, "--phase", name, str(folder), "-"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the phase {name!r} ended with {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rehearse(root: Path, tokenizer: Path, *, small: bool) -> dict[str, Any]:
    """Write, load, encode and check; the folder of weights is gone when this returns or raises."""
    config = tiny(NV_EMBED_V2) if small else NV_EMBED_V2
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if not small and free < 17e9:
        raise SystemExit(f"{root} has {free / 1e9:.1f} GB free: 17 GB are needed")
    free_memory_bytes = free_memory(torch.device("cpu"))
    if not small and free_memory_bytes is not None and free_memory_bytes < 17 * GIB:
        raise SystemExit(f"{free_memory_bytes / GIB:.1f} GiB of memory are free: 17 GiB are needed")
    busy = os.getloadavg()[0]
    work = Path(tempfile.mkdtemp(prefix="rehearsal-", dir=root))
    try:
        folder = work / "model"
        started = time.perf_counter()
        write(folder, tokenizer, config)
        written_s = time.perf_counter() - started
        shards = {path.name: path.stat().st_size for path in sorted(folder.glob("*.safetensors"))}
        tensors = expected_tensors(config)
        released = {file.name: file.size_bytes for file in known_weights().files}
        free_gib = (free_memory(torch.device("cpu")) or 0) / GIB
        loaded = run_phase("load", folder)
        checked = run_phase("check", folder)
    finally:
        shutil.rmtree(work)
    phases = {**loaded.pop("phases"), **checked.pop("phases")}
    peaks = [loaded.pop("max_rss_gib"), checked.pop("max_rss_gib")]
    return {
        "command": "python benchmarks/rehearsal.py FOLDER TOKENIZER" + " --tiny" * small,
        "hardware": {
            **hardware(),
            "threads": torch.get_num_threads(),
            "free_gib": round(free_gib, 1),
            "load_before": round(busy, 1),
        },
        "tensors": len(tensors),
        "parameters": sum(int(np.prod(shape)) for shape in tensors.values()),
        "shards_bytes": shards,
        "shards_as_released": shards == released,
        "write_seconds": round(written_s, 1),
        "phases": phases,
        "peak_gib": max(peaks),
        "limit_gib": LIMIT_GIB,
        "load": loaded,
        "check": checked,
    }


def markdown(result: dict[str, Any]) -> str:
    machine = result["hardware"]
    rows = [
        f"| {name} | {part['seconds']:.1f} | {part['peak_resident_gib']:.2f} "
        f"| {part['peak_anonymous_gib']:.2f} | {part['peak_file_pages_gib']:.2f} |"
        for name, part in result["phases"].items()
    ]
    findings = [
        f"| {finding['check']} | {finding['status']} | {finding['detail']} |"
        for finding in result["check"]["report"]["findings"]
    ]
    return "\n".join(
        [
            "# Full-size rehearsal: random weights under the released names and shapes",
            "",
            f"{result['tensors']} tensors, {result['parameters']:,} parameters, float16, "
            f"{len(result['shards_bytes'])} shards; loaded as bfloat16 on CPU, folded. "
            f"Peak {result['peak_gib']:.2f} GiB; the limit is {result['limit_gib']:.0f} GiB.",
            "",
            "| phase | seconds | peak GiB | of it anonymous | of it pages of mapped files |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "Peaks are of the whole process during the phase. Pages of mapped files give way under pressure.",
            "The text encoded is "
            f"{result['load']['text_tokens']} tokens long. Writing took "
            f"{result['write_seconds']:.0f} s.",
            "",
            "| check | | finding |",
            "|---|---|---|",
            *findings,
            "",
            f"Hardware: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
            f"{machine['threads']} threads used, load {machine['load_before']} before. "
            f"Python {machine['python']}, torch {machine['torch']}, "
            f"safetensors {machine['safetensors']}.",
            "",
            f"Command: `{result['command']}`",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--tiny", action="store_true", help="a small model, to try the script")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--phase", choices=("load", "check"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.phase:
        result = (phase_load if args.phase == "load" else phase_check)(args.folder)
        result["max_rss_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB, 3)
        print(json.dumps(result))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the weights are deleted then, too
    result = rehearse(args.folder, args.tokenizer, small=args.tiny)
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / "rehearsal.json").write_text(json.dumps(result, indent=2) + "\n")
    (args.results / "rehearsal.md").write_text(markdown(result))
    print(markdown(result))
    if result["peak_gib"] >= LIMIT_GIB or result["check"]["exit_code"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
