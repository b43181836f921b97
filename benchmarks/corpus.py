"""A real corpus from files to a page: time, memory and disk of embed, index, cluster and search.

The corpus is what the shared data has of distinct texts: the passages of every retrieval set, then the texts
of pairs and of classification and clustering sets (381,628 in all), as JSONL with the name of the set as
metadata. `nvembed embed`, `index` and `cluster` run on it as processes of their own, whose peak memory is
measured; then `nvembed serve --index` answers 200 questions, one at a time, in each mode, with and without a
filter. Recall is that of the index: of the exact nearest ten passages, how many `/search` finds.

    nvembed init SmolLM2-135M-Instruct.Q4_1.gguf .cache/small
    python benchmarks/corpus.py .cache/small DATA --passages 50000 --max-length 128 --dtype bfloat16

Time depends on tokens: `--max-length` cuts texts (how many is reported), `--passages` takes fewer of them.
"""

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pyarrow

import nvembed
from memory import hardware, heading
from nvembed.embed.embedded import EmbeddedCorpus, open_embedded
from nvembed.vectors.search import top_k
from serve_load import NVEMBED, free_port, server

RESULTS = Path(__file__).parent / "results"
QUESTIONS = "retrieval/hotpotqa_dev500_pooled/queries.jsonl"
TOP = 10
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


def run(*arguments: str | Path) -> dict[str, float]:
    """Run an nvembed command; return the seconds, CPU seconds and peak memory it took."""
    start = time.perf_counter()
    running = subprocess.Popen([*NVEMBED, *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(running.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        sys.exit(f"nvembed {arguments[0]} ended with exit code {os.waitstatus_to_exitcode(status)}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": round(usage.ru_maxrss / 1024),
    }


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def post(url: str, body: dict[str, object]) -> Any:
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        return json.load(answer)


def quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": round(1000 * float(np.percentile(seconds, q)), 1) for q in (50, 95)}


def search(url: str, questions: list[str], source: EmbeddedCorpus) -> dict[str, Any]:
    """Ask the page's questions over the socket, one at a time; compare the vectors' hits with exact ones."""
    body = {"model": "bench", "input": questions, "task": "NQ", "input_type": "query"}
    queries = np.array([row["embedding"] for row in post(f"{url}/v1/embeddings", body)["data"]], np.float32)
    ids = [name for batch in source.batches(["id"]) for name in batch["id"].to_pylist()]
    exact = top_k(queries, source.vectors(), TOP)[1]
    some_set = json.loads(next(iter(source.batches(["metadata"])))["metadata"][0].as_py())["set"]
    latency, hit_count = {}, 0
    for name, more in (
        ("vector", {"mode": "vector"}),
        ("text", {"mode": "text"}),
        ("hybrid", {"mode": "hybrid"}),
        ("hybrid, filtered", {"mode": "hybrid", "where": [f"set = {some_set}"]}),
    ):
        seconds = []
        for row, question in enumerate(questions):
            start = time.perf_counter()
            hits = post(f"{url}/search", {"query": question, "top": TOP, **more})["hits"]
            seconds.append(time.perf_counter() - start)
            if name == "vector":
                hit_count += len({hit["id"] for hit in hits} & {ids[i] for i in exact[row]})
        latency[name] = quantiles(seconds)
    return {"questions": len(questions), "latency": latency, "recall_at_10": hit_count / TOP / len(questions)}


def markdown(result: dict[str, Any]) -> str:
    corpus, counts = result["corpus"], result["embed"]["counts"]
    lines = [
        *heading("A real corpus from files to a page", result["command"], result["machine"]),
        f"{corpus['passages']:,} passages, {corpus['bytes'] / 1e6:.0f} MB of JSONL, {counts['tokens']:,} "
        f"tokens ({counts['truncated']:,} texts cut), vectors of {result['dim']:,} numbers.",
        "",
        "| step | seconds | CPU seconds | peak memory, MiB | disk, MB |",
        "|---|---:|---:|---:|---:|",
    ]
    for step in ("embed", "index", "cluster"):
        one = result[step]
        lines.append(
            f"| nvembed {step} | {one['seconds']:,.0f} | {one['cpu_seconds']:,.0f} "
            f"| {one['peak_memory_mib']:,} | {one['disk_bytes'] / 1e6:,.1f} |"
        )
    answers = result["search"]
    lines += [
        "",
        f"`nvembed serve --index`: ready after {answers['ready_s']:.0f} s, {answers['memory_mib']:,} MiB; "
        f"{answers['questions']} questions to `/search`, one at a time, their embedding included:",
        "",
        "| mode | p50 ms | p95 ms |",
        "|---|---:|---:|",
        *(
            f"| {mode} | {row['p50_ms']:.0f} | {row['p95_ms']:.0f} |"
            for mode, row in answers["latency"].items()
        ),
        "",
        f"Recall@10 of the index against exact search: {answers['recall_at_10']:.3f}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a checkpoint folder")
    parser.add_argument("data", type=Path, help="the folder shared/data")
    parser.add_argument("--passages", type=int, default=50_000)
    parser.add_argument(
        "--max-length", type=int, help="most tokens read of one text. Default: the model's limit"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--work", type=Path, help="keep corpus and vectors in this folder")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not any(arguments.data.glob(ROLES[0])):
        sys.exit(
            f"{arguments.data}/retrieval/*/corpus.jsonl is missing: pass the folder that holds shared/data"
        )
    with tempfile.TemporaryDirectory(prefix="nvembed-corpus-") as temporary:
        work = arguments.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        corpus = work / "corpus.jsonl"
        distinct = make_corpus(arguments.data, corpus, arguments.passages)
        if distinct < arguments.passages:
            sys.exit(f"{arguments.data} has {distinct:,} distinct texts: ask for fewer --passages")
        embedded, topics = work / "embedded", work / "topics"
        options = ["--model", arguments.model, "--dtype", arguments.dtype, "--whole"]
        if arguments.max_length:
            options += ["--max-length", str(arguments.max_length)]
        steps: dict[str, dict[str, Any]] = {"embed": run("embed", corpus, embedded, *options)}
        source = open_embedded(embedded)
        steps["embed"] |= {"counts": source.manifest["counts"], "disk_bytes": disk_bytes(embedded)}
        steps["index"] = {**run("index", embedded), "disk_bytes": disk_bytes(embedded / "index")}
        steps["cluster"] = {**run("cluster", embedded, "--out", topics), "disk_bytes": disk_bytes(topics)}
        lines = (arguments.data / QUESTIONS).read_text(encoding="utf-8").splitlines()
        questions = [json.loads(line)["text"] for line in lines[:200]]
        port = free_port()
        serve = [*NVEMBED, "serve", arguments.model, "--served-name", "bench", "--dtype", arguments.dtype]
        serve += ["--port", str(port), "--index", str(embedded), "--index-map", str(topics)]
        start = time.perf_counter()
        with server(serve, port, "/health/ready") as pid:
            ready_s = time.perf_counter() - start
            answers = search(f"http://127.0.0.1:{port}", questions, source)
            memory_mib = psutil.Process(pid).memory_info().rss >> 20
        max_length = f" --max-length {arguments.max_length}" if arguments.max_length else ""
        result = {
            "command": f"python benchmarks/corpus.py {arguments.model} DATA "
            f"--passages {arguments.passages}{max_length} --dtype {arguments.dtype}",
            "machine": {**hardware(), "nvembed": nvembed.__version__, "pyarrow": pyarrow.__version__},
            "corpus": {"passages": distinct, "bytes": corpus.stat().st_size},
            "dim": source.dim,
            **steps,
            "search": {"ready_s": round(ready_s, 1), "memory_mib": memory_mib, **answers},
        }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "corpus.json").write_text(json.dumps(result, indent=1) + "\n")
    (arguments.out / "corpus.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
