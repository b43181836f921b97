"""Does the server keep up with the library, and do queries stay quick beside bulk work?

One model, one machine, loopback; the server is a process of its own, the clients share this one. In one run:

- library    ``Encoder.encode`` of the bulk texts, before and after the rest
- queries    8 query clients alone (a question each, then a pause of 2 s on average)
- bulk       56 bulk clients alone (16 texts per request, without a pause)
- mixed      all 64 clients, for ``--seconds``; the server's memory is noted every second

and queries, bulk and mixed of the same backbone behind a plain sentence-transformers + FastAPI server (one
request at a time), and behind infinity-emb where ``--infinity`` names its program.

Each phase begins with a ramp that is not counted, so that as much work is at hand at its start as at its end.

    nvembed init SmolLM2-135M-Instruct.Q4_1.gguf .cache/small
    python benchmarks/serve_load.py .cache/small DATA --dtype bfloat16 --seconds 300
"""

import argparse
import asyncio
import base64
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import psutil
import torch

from encode_cpu import Backbone, cpu_name, passages
from nvembed.encoder import Encoder

RESULTS = Path(__file__).parent / "results"
NVEMBED = [sys.executable, "-c", "from nvembed.cli.main import main; main()"]
PER_REQUEST = 16
PAUSE_S = 2.0  # of a query client between its questions, on average
QUERIES = "retrieval/hotpotqa_dev500_pooled/queries.jsonl"


@dataclass(frozen=True)
class Body:
    """A request ready to be sent, its tokens, and what its first vector should be."""

    request: bytes
    tokens: int
    first: np.ndarray


@dataclass
class Phase:
    """What came of one phase."""

    seconds: float = 0.0
    tokens: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: {"query": [], "bulk": []})
    refused: int = 0  # 429
    errors: list[str] = field(default_factory=list)
    furthest: float = 1.0  # smallest cosine of a returned vector with the library's
    rss_mib: list[int] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)  # of the server and of the clients, ramp included
    wall_s: float = 0.0  # what cpu_s was spent in

    def summary(self) -> dict[str, object]:
        quantiles = {
            kind: {f"p{q}_ms": round(1000 * float(np.percentile(values, q)), 1) for q in (50, 95, 99)}
            for kind, values in self.latencies.items()
            if values
        }
        return {
            "seconds": round(self.seconds, 1),
            "tokens_per_s": round(self.tokens / self.seconds, 1),
            "requests": {kind: len(values) for kind, values in self.latencies.items()},
            "latency": quantiles,
            "refused_429": self.refused,
            "errors": self.errors[:5],
            "error_count": len(self.errors),
            "smallest_cosine": round(self.furthest, 6),
            "cores_busy": {who: round(seconds / self.wall_s, 2) for who, seconds in self.cpu_s.items()},
            "rss_mib": self.rss_mib,
        }


def request(texts: list[str], input_type: str | None) -> bytes:
    body: dict[str, object] = {"model": "bench", "input": texts, "encoding_format": "base64"}
    if input_type:
        body["input_type"] = input_type
    data = json.dumps(body).encode()
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def post(streams: Streams, data: bytes) -> tuple[int, float, bytes]:
    """Return status, Retry-After and body."""
    reader, writer = streams
    writer.write(data)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = await reader.readexactly(int(fields["content-length"]))
    return int(head.split()[1]), float(fields.get("retry-after", 1)), body


async def client(
    kind: str, port: int, bodies: list[Body], counted_from: float, phase: Phase, seed: int
) -> None:
    """Send requests one after another until cancelled; the ramp ends at ``counted_from``."""
    generator = random.Random(seed)
    streams = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    if kind == "query":
        await asyncio.sleep(generator.uniform(0, PAUSE_S))
    while True:
        body = generator.choice(bodies)
        start = time.monotonic()
        try:
            if streams[0].at_eof():  # closed by the server after a while without a request
                streams[1].close()
                streams = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
            status, retry_s, answer = await asyncio.wait_for(post(streams, body.request), 300)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            phase.errors.append(f"{kind}: {error!r}")
            return
        if status == 429:
            phase.refused += 1
            await asyncio.sleep(retry_s)
        elif status != 200:
            phase.errors.append(f"{kind}: {status} {answer[:200]!r}")
        elif time.monotonic() >= counted_from:
            phase.latencies[kind].append(time.monotonic() - start)
            phase.tokens += body.tokens
            if len(phase.latencies[kind]) % 20 == 1:
                phase.furthest = min(phase.furthest, cosine(answer, body.first))
        if kind == "query":
            await asyncio.sleep(generator.expovariate(1 / PAUSE_S))


def cosine(answer: bytes, expected: np.ndarray) -> float:
    value = json.loads(answer)["data"][0]["embedding"]
    vector = np.frombuffer(base64.b64decode(value), "<f4") if isinstance(value, str) else np.array(value)
    return float(vector @ expected / np.linalg.norm(vector))


async def drive(port: int, pid: int, work: "Work", ramp: float, seconds: float) -> Phase:
    """Run clients (how many, and with what, by kind) against a server for a while."""
    phase = Phase(seconds=seconds)
    start = time.monotonic()
    served, own = psutil.Process(pid), psutil.Process()
    before = {"server": cpu_seconds(served), "clients": cpu_seconds(own)}
    clients = [
        asyncio.create_task(client(kind, port, bodies, start + ramp, phase, seed))
        for kind, (count, bodies) in work.items()
        for seed in range(count)
    ]
    while time.monotonic() < start + ramp + seconds:
        await asyncio.sleep(1)
        phase.rss_mib.append(served.memory_info().rss >> 20)
    phase.wall_s = time.monotonic() - start
    after = {"server": cpu_seconds(served), "clients": cpu_seconds(own)}
    phase.cpu_s = {who: after[who] - before[who] for who in after}
    for task in clients:
        task.cancel()
    for outcome in await asyncio.gather(*clients, return_exceptions=True):
        if isinstance(outcome, Exception):
            phase.errors.append(repr(outcome))
    return phase


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def settled(port: int, body: Body) -> None:
    """Wait until a server answers: what the phase before left behind is done."""
    streams = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    await post(streams, body.request)
    streams[1].close()


@contextmanager
def server(command: list[str], port: int, ready: str) -> Iterator[int]:
    """Run a server; yields its process id once ``ready`` answers."""
    environment = {
        **os.environ,
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            for _ in range(1200):
                try:
                    with urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5):
                        break
                except OSError:
                    time.sleep(0.2)
                if running.poll() is not None:
                    break
            else:
                raise TimeoutError(f"{command[0]} did not start")
            if running.poll() is not None:
                log.seek(0)
                sys.exit(log.read().decode()[-3000:])
            yield running.pid
        finally:
            running.kill()
            running.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def serve_plainly(folder: Path, port: int, dtype: str) -> None:
    """The server of an afternoon: sentence-transformers behind FastAPI, a request at a time."""
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(
        str(folder), config_kwargs={"is_causal": False}, model_kwargs={"dtype": getattr(torch, dtype)}
    )
    transformer.tokenizer.padding_side = "right"
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    size = transformer.auto_model.config.hidden_size
    model = SentenceTransformer(modules=[transformer, Pooling(size, "mean")])
    app = FastAPI()
    lock = asyncio.Lock()

    class Embed(BaseModel):
        input: list[str]

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/v1/embeddings")
    async def embed(body: Embed) -> dict[str, object]:
        async with lock:
            vectors = await asyncio.to_thread(model.encode, body.input, show_progress_bar=False)
        return {"data": [{"index": i, "embedding": row.tolist()} for i, row in enumerate(vectors)]}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def library(encoder: Encoder, texts: list[str]) -> float:
    """Return the tokens per second of one call of ``encode``."""
    tokens = sum(len(item.input_ids) for item in encoder.tokenizer(texts))
    start = time.perf_counter()
    encoder.encode(texts)
    return tokens / (time.perf_counter() - start)


def bodies_of(encoder: Encoder, texts: list[str], queries: list[str], ours: bool) -> dict[str, list[Body]]:
    """Requests for our server, which knows input types, or for others, which get the prompt with the text."""
    prompt = encoder.prompt(task="NQ")
    bodies: dict[str, list[Body]] = {"query": [], "bulk": []}
    vectors = encoder.encode(texts)
    for start in range(0, len(texts), PER_REQUEST):
        some = texts[start : start + PER_REQUEST]
        tokens = sum(len(item.input_ids) for item in encoder.tokenizer(some))
        bodies["bulk"].append(Body(request(some, "passage" if ours else None), tokens, vectors[start]))
    for query, vector in zip(queries, encoder.encode(queries, prompt=prompt), strict=True):
        tokens = len(encoder.tokenizer([query], prompt=prompt)[0].input_ids)
        data = request([query], "query") if ours else request([prompt + query], None)
        bodies["query"].append(Body(data, tokens, vector))
    return bodies


Work = dict[str, tuple[int, list[Body]]]  # by kind: how many clients, and what they send


def phases(port: int, pid: int, work: Work, ramp: float, seconds: float) -> dict[str, dict[str, Any]]:
    results = {}
    for name, kinds, length in (
        ("queries", ("query",), max(seconds / 4, 10.0)),
        ("bulk", ("bulk",), max(seconds / 4, 10.0)),
        ("mixed", ("query", "bulk"), seconds),
    ):
        asyncio.run(settled(port, work["query"][1][0]))
        results[name] = asyncio.run(drive(port, pid, {k: work[k] for k in kinds}, ramp, length)).summary()
        print(name, {key: value for key, value in results[name].items() if key != "rss_mib"}, flush=True)
    return results


def markdown(result: dict[str, Any]) -> str:
    """Return the table, and what becomes of queries and of memory."""
    servers, clients = result["servers"], result["clients"]
    ours, rates = servers["nvembed serve"], result["library_tokens_per_s"]
    lines = [
        "# The server under load",
        "",
        f"{result['hardware']}; {result['versions']}; {result['dtype']}. `{result['command']}`: "
        f"{clients['bulk']} bulk clients of {PER_REQUEST} texts a request, {clients['query']} query clients "
        f"with pauses of {PAUSE_S:g} s on average; server and clients on the same cores.",
        "",
        f"The library alone, before and after: {' and '.join(f'{rate:,.0f}' for rate in rates)} tokens/s; "
        "shares are of the faster one.",
        "",
        "| server | phase | tokens/s | of the library | query p50 / p95 / p99, ms | bulk p50 / p95 / p99, s "
        "| cores busy: server, clients | errors | 429 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, phases_of in servers.items():
        for phase, one in phases_of.items():
            query = " / ".join(f"{v:,.0f}" for v in one["latency"].get("query", {}).values()) or "-"
            bulk = " / ".join(f"{v / 1000:,.1f}" for v in one["latency"].get("bulk", {}).values()) or "-"
            share = "-" if phase == "queries" else f"{one['tokens_per_s'] / max(rates):.2f}"
            busy = ", ".join(f"{cores:.2f}" for cores in one["cores_busy"].values())
            cells = [name, phase, f"{one['tokens_per_s']:,.0f}", share, query, bulk, busy]
            lines.append(f"| {' | '.join(cells)} | {one['error_count']} | {one['refused_429']} |")
    alone, beside = (ours[phase]["latency"]["query"]["p95_ms"] for phase in ("queries", "mixed"))
    rss = ours["mixed"]["rss_mib"]
    third = max(len(rss) // 3, 1)
    lines += [
        "",
        f"Queries' p95 under bulk load: {beside / alone:.1f} x that alone. Memory of nvembed serve when "
        f"mixed: {np.median(rss[:third]):,.0f} MiB in the first third, {np.median(rss[-third:]):,.0f} MiB in "
        f"the last, {max(rss):,} MiB at most. Smallest cosine of a returned vector with the library's: "
        f"{min(one['smallest_cosine'] for one in ours.values())}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument(
        "--ramp", type=float, default=45.0, help="seconds at the start of a phase, not counted"
    )
    parser.add_argument("--texts", type=int, default=1600)
    parser.add_argument("--bulk-clients", type=int, default=56)
    parser.add_argument("--query-clients", type=int, default=8)
    parser.add_argument("--peers", nargs="*", default=["plain"], choices=["plain"])
    parser.add_argument("--infinity", type=Path, help="the program infinity_emb")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        serve_plainly(Path(args.plain[0]), int(args.plain[1]), args.dtype)
        return
    texts = passages(args.data, args.texts)
    lines = (args.data / QUERIES).read_text(encoding="utf-8").splitlines()
    queries = [json.loads(line)["text"] for line in lines[:200]]
    encoder = Encoder.from_pretrained(args.model, device="cpu", dtype=args.dtype)
    library(encoder, texts[:64])
    rates = [library(encoder, texts)]
    ours, theirs = (bodies_of(encoder, texts, queries, own) for own in (True, False))
    print(f"library: {rates[0]:,.0f} tokens/s", flush=True)

    folder = Backbone(args.model).folder
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    port = free_port()
    nvembed = [*NVEMBED, "serve", str(args.model)]
    nvembed += ["--dtype", args.dtype, "--port", str(port), "--served-name", "bench"]
    plain = [sys.executable, __file__, ".", ".", "--dtype", args.dtype, "--plain", str(folder), str(port)]
    infinity = [
        str(args.infinity),
        "v2",
        "--model-id",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    infinity += ["--engine", "torch", "--device", "cpu", "--dtype", args.dtype, "--no-bettertransformer"]
    infinity += ["--url-prefix", "/v1", "--served-model-name", "bench", "--no-model-warmup"]
    runs = {"nvembed serve": (nvembed, "/health/ready", ours)}
    if args.peers:
        runs["sentence-transformers + FastAPI"] = (plain, "/health", theirs)
    if args.infinity:
        runs["infinity-emb"] = (infinity, "/v1/models", theirs)
    clients = {"query": args.query_clients, "bulk": args.bulk_clients}
    servers = {}
    for name, (command, ready, bodies) in runs.items():
        print(f"--- {name}", flush=True)
        with server(command, port, ready) as pid:
            work = {kind: (clients[kind], bodies[kind]) for kind in clients}
            length = args.seconds if bodies is ours else max(args.seconds / 4, 10.0)
            servers[name] = phases(port, pid, work, args.ramp, length)
    rates.append(library(encoder, texts))
    result = {
        "question": "tokens per second and latency of the server under load, beside the library and peers",
        "command": "python benchmarks/serve_load.py MODEL DATA "
        f"--dtype {args.dtype} --seconds {args.seconds:g} --ramp {args.ramp:g}"
        + (" --infinity PROGRAM" if args.infinity else ""),
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "dtype": args.dtype,
        "clients": clients,
        "library_tokens_per_s": rates,
        "servers": servers,
    }
    args.out.mkdir(exist_ok=True, parents=True)
    (args.out / "serve_load.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "serve_load.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    try:
        main()
    finally:
        for folder in Path(tempfile.gettempdir()).glob("nvembed-bench-*"):
            shutil.rmtree(folder, ignore_errors=True)
