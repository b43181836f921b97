"""How long does a real corpus take from files to vectors, in how much memory and on how much disk?

The corpus is what the shared data has of distinct texts: the passages of every retrieval set, then the texts
of pairs and of classification and clustering sets (381,628 in all), as JSONL with the name of the set as
metadata. `nvembed embed` runs on it as a process of its own, whose peak memory is measured.

    nvembed init SmolLM2-135M-Instruct.Q4_1.gguf .cache/small
    python benchmarks/corpus.py .cache/small ../shared/data --passages 50000 --max-length 128

Time depends on tokens: `--max-length` cuts texts (how many is reported), `--passages` takes fewer of them.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import torch

import nvembed
from nvembed.corpus.embedded import open_embedded

RESULTS = Path(__file__).parent / "results"
ROLES = (
    "retrieval/*/corpus.jsonl*",
    "pairs/*/*.jsonl*",
    "classification/*/*.jsonl*",
    "clustering/*/*.jsonl*",
)


def texts(data: Path) -> Iterator[tuple[str, str]]:
    """Yield (set, text) of every file of the shared data, retrieval first."""
    for pattern in ROLES:
        for path in sorted(data.glob(pattern)):
            name = path.parent.relative_to(data).as_posix()
            with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
                for line in lines:
                    row = json.loads(line)
                    text = row.get("text") or row.get("positive")
                    if isinstance(text, str) and text.strip():
                        title = row.get("title") or ""
                        yield name, f"{title} {text}".strip()


def make_corpus(data: Path, target: Path, count: int) -> int:
    """Write the first ``count`` distinct texts; return how many there were."""
    seen: set[bytes] = set()
    with target.open("w", encoding="utf-8") as file:
        for name, text in texts(data):
            digest = hashlib.sha256(text.encode()).digest()[:16]
            if digest not in seen:
                seen.add(digest)
                row = {"_id": digest.hex(), "text": text, "set": name}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                if len(seen) == count:
                    break
    return len(seen)


def embed(arguments: argparse.Namespace, corpus: Path, out: Path) -> dict[str, Any]:
    """Run ``nvembed embed`` and return what it took."""
    code = "from nvembed.cli.main import main; main()"
    options = ["--model", arguments.model, "--dtype", arguments.dtype, "--whole"]
    if arguments.max_length:
        options += ["--max-length", str(arguments.max_length)]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code, "embed", str(corpus), str(out), *options], check=True)
    seconds = time.perf_counter() - start
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    counts = open_embedded(out).manifest["counts"]
    stored = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        **counts,
        "seconds": round(seconds, 1),
        "tokens_per_s": round(counts["tokens"] / seconds),
        "peak_memory_mib": round(peak_kib / 1024),
        "disk_bytes": stored,
        "disk_bytes_per_passage": round(stored / counts["passages"]),
        "dim": open_embedded(out).dim,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a checkpoint folder")
    parser.add_argument("data", type=Path, help="the folder shared/data")
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument(
        "--max-length", type=int, help="tokens read of one text; the model's limit unless given"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", type=Path, help="keep corpus and vectors in this folder")
    parser.add_argument("--out", type=Path, default=RESULTS / "corpus.json")
    arguments = parser.parse_args()
    if not any(arguments.data.glob(ROLES[0])):
        sys.exit(
            f"{arguments.data}/retrieval/*/corpus.jsonl is missing: pass the folder that holds shared/data"
        )
    with tempfile.TemporaryDirectory(prefix="nvembed-corpus-") as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        corpus = work / "corpus.jsonl"
        found = make_corpus(arguments.data, corpus, arguments.passages)
        if found < arguments.passages:
            sys.exit(f"{arguments.data} has {found:,} distinct texts: ask for fewer --passages")
        result = {
            "command": f"python benchmarks/corpus.py {' '.join(sys.argv[1:])}",
            "hardware": {
                "machine": platform.machine(),
                "cpus": os.cpu_count(),
                "threads": torch.get_num_threads(),
            },
            "versions": {
                "python": platform.python_version(),
                "nvembed": nvembed.__version__,
                "torch": torch.__version__,
                "pyarrow": pyarrow.__version__,
            },
            "corpus": {"passages": found, "bytes": corpus.stat().st_size},
            "embed": embed(arguments, corpus, work / "embedded"),
        }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
