"""Does the server stay as it is? Mixed requests and searches for minutes, beside updates of its index.

One server with a model of two layers and an index; the clients share one process:

- short      one text and a pause of 20 ms, again and again: its times are noted
- mixed      4 clients: 1 to 128 texts of 1 to 300 words, APIs of OpenAI, Cohere and TEI, all number formats
- searches   2 clients: by words, by vectors and hybrid, with and without filters
- watchers   /metrics, /stats, /index and /v1/models, once a second
- updates    ``nvembed index --add`` and ``--delete`` in turn, in processes of their own

The server's memory is noted every second; its growth is the slope over requests after the first fifth. The
longest delay of a thread of the clients that only sleeps is noted too: what the machine itself delays.

    python benchmarks/soak.py --seconds 300
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import fault_commands as commands
from encode_cpu import cpu_name
from fault_requests import server
from serve_load import Streams

RESULTS = Path(__file__).parent / "results"
PAUSE_S = 0.02
WARM_UP = 0.2  # share of the run whose memory does not count
WORDS = [
    "document",
    "sentence",
    "two",
    "three",
    "river",
    "judo",
    "throw",
    "mask",
    "year",
    "says",
    "what",
    "of",
]
FILTERS: list[list[str] | None] = [
    None,
    ["year >= 2003"],
    ["year < 2010 and year != 2005"],
    ['document = "r1"'],
]


@dataclass
class Soak:
    """What came of a run."""

    requests: dict[str, int] = field(default_factory=dict)
    refused: int = 0  # 429
    errors: list[str] = field(default_factory=list)
    short_s: list[float] = field(default_factory=list)
    rss: list[tuple[int, int]] = field(default_factory=list)  # requests so far, bytes
    updates: int = 0
    late_s: float = 0.0  # the most that a sleeping thread of this process was late
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def total(self) -> int:
        return sum(self.requests.values())

    def summary(self, seconds: float) -> dict[str, Any]:
        count, size = np.array(self.rss[int(WARM_UP * len(self.rss)) :], dtype=np.float64).T
        slope = np.polyfit(count, size, 1)[0]
        return {
            "seconds": round(seconds),
            "requests": self.requests | {"all": self.total},
            "updates": self.updates,
            "errors": len(self.errors),
            "first_errors": self.errors[:5],
            "refused_429": self.refused,
            "memory_mib": [round(float(size[0]) / 2**20, 1), round(float(size[-1]) / 2**20, 1)],
            "growth_mb_per_100000_requests": round(float(slope) * 1e5 / 1e6, 2),
            "short_ms": {
                name: round(1000 * float(value), 1)
                for name, value in zip(
                    ("p50", "p99", "longest"), np.quantile(self.short_s, (0.5, 0.99, 1.0)), strict=True
                )
            },
            "machine_delay_ms": round(1000 * self.late_s, 1),
            "load_average": round(os.getloadavg()[0], 1),
        }


def texts(draw: random.Random) -> list[str]:
    count = draw.choice((1, 1, 2, 4, 8, 32, 128))
    most = max(1, min(300, 2000 // count))
    return [" ".join(draw.choices(WORDS, k=draw.randint(1, most))) for _ in range(count)]


def mixed(draw: random.Random) -> tuple[str, dict[str, Any]]:
    kind = draw.randrange(5)
    if kind == 0:
        form = draw.choice(("float", "base64"))
        return "/v1/embeddings", {"input": texts(draw), "encoding_format": form, "truncate": "END"}
    if kind == 1:
        body = {"input": texts(draw)[0], "input_type": "query", "instruction": "Find it", "truncate": "END"}
        return "/v1/embeddings", body
    if kind == 2:
        formats = draw.sample(("float", "int8", "uint8", "binary", "ubinary", "base64"), 2)
        body = {"texts": texts(draw), "input_type": "search_document", "embedding_types": formats}
        return "/v2/embed", body
    if kind == 3:
        return "/embed", {"inputs": texts(draw), "truncate": True}
    return "/tokenize", {"inputs": texts(draw)[0]}


def search(draw: random.Random) -> tuple[str, dict[str, Any]]:
    body = {
        "query": " ".join(draw.choices(WORDS, k=draw.randint(1, 6))),
        "mode": draw.choice(("text", "vector", "hybrid")),
        "top": draw.choice((1, 5, 20)),
        "where": draw.choice(FILTERS),
    }
    return "/search", body


def short(_: random.Random) -> tuple[str, dict[str, Any]]:
    return "/v1/embeddings", {"input": "a short text"}


CLIENTS = {"short": (1, short), "mixed": (4, mixed), "searches": (2, search)}
WATCHED = ("/metrics", "/stats", "/index", "/v1/models")


async def ask(streams: Streams, path: str, body: dict[str, Any] | None) -> tuple[int, bytes]:
    data = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    streams[1].write(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    lines = (await streams[0].readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), await streams[0].readexactly(int(fields["content-length"]))


async def client(port: int, kind: str, number: int, soak: Soak) -> None:
    draw = random.Random(f"{kind}/{number}")
    streams = await asyncio.open_connection("127.0.0.1", port, limit=2**26)
    for turn in itertools.count():
        if kind == "watchers":
            path, body = WATCHED[turn % len(WATCHED)], None
        else:
            path, body = CLIENTS[kind][1](draw)
        begun = time.monotonic()
        status, answer = await ask(streams, path, body)
        if kind == "short":
            soak.short_s.append(time.monotonic() - begun)
        soak.requests[kind] = soak.requests.get(kind, 0) + 1
        if status == 429:
            soak.refused += 1
        elif status != 200:
            soak.errors.append(f"{path} {json.dumps(body)[:200]}: {status} {answer[:200]!r}")
        if kind in ("short", "watchers"):
            await asyncio.sleep(PAUSE_S if kind == "short" else 1.0)


async def drive(port: int, pid: int, seconds: float, soak: Soak) -> None:
    tasks = [
        asyncio.create_task(client(port, kind, number, soak))
        for kind, count in [*((kind, count) for kind, (count, _) in CLIENTS.items()), ("watchers", 1)]
        for number in range(count)
    ]
    end, process = time.monotonic() + seconds, psutil.Process(pid)
    while time.monotonic() < end and not any(task.done() for task in tasks):
        await asyncio.sleep(1)
        soak.rss.append((soak.total, process.memory_info().rss))
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            soak.errors.append(repr(outcome))


def update(index: Path, more: Path, soak: Soak) -> None:
    """Add documents to the index and delete them, until the run ends."""
    command = [sys.executable, "-c", "from nvembed.cli.main import main; main()", "index", str(index)]
    gone = [word for name in ("r16", "r17", "r18") for word in ("--delete", name)]
    while not soak.ended.wait(5):
        for words in (["--add", str(more)], gone):
            done = subprocess.run([*command, *words], capture_output=True, text=True)
            soak.updates += 1
            if done.returncode:
                soak.errors.append(f"index {words[0]}: {done.returncode} {done.stderr[-300:]}")


def oversleep(soak: Soak) -> None:
    while not soak.ended.is_set():
        begun = time.monotonic()
        time.sleep(PAUSE_S)
        soak.late_s = max(soak.late_s, time.monotonic() - begun - PAUSE_S)


def run(root: Path, seconds: float) -> dict[str, Any]:
    commands.import_all()
    base = commands.build(root, commands.Runner(root / "io")).root / "base"
    index = root / "index"
    shutil.rmtree(index, ignore_errors=True)
    shutil.copytree(base / "indexed", index)
    soak = Soak()
    threads = [
        threading.Thread(target=update, args=(index, base / "more", soak)),
        threading.Thread(target=oversleep, args=(soak,)),
    ]
    with server(base / "model", index, root) as (port, pid):
        for thread in threads:
            thread.start()
        try:
            asyncio.run(drive(port, pid, seconds, soak))
        finally:
            soak.ended.set()
            for thread in threads:
                thread.join()
    return soak.summary(seconds)


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# A soak of the server",
        "",
        f"{result['hardware']}; Python {result['versions']['python']}. `{result['command']}`, "
        "one row a run: short and mixed requests, searches in all modes with and without filters, updates of "
        "the index beside them. Growth is of the server's memory per 100,000 requests after the first fifth "
        "of the run.",
        "",
        "| run | seconds | requests | searches | updates | errors | 429 | memory, MiB | growth, MB "
        "| short p50, ms | short p99, ms | short longest, ms | machine's own delay, ms | load average |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, run in enumerate(result["runs"], start=1):
        cells = [number, run["seconds"], f"{run['requests']['all']:,}", f"{run['requests']['searches']:,}"]
        cells += [run["updates"], run["errors"], run["refused_429"], " to ".join(map(str, run["memory_mib"]))]
        cells += [run["growth_mb_per_100000_requests"], *run["short_ms"].values()]
        cells += [run["machine_delay_ms"], run["load_average"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()) / "nvembed-soak")
    parser.add_argument("--out", type=Path, default=RESULTS, help="runs are added to its soak.json")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    summary = run(options.root.resolve(), options.seconds)
    path = options.out / "soak.json"
    runs = json.loads(path.read_text())["runs"] if path.exists() else []
    result = {
        "question": "errors, memory and the times of short requests over minutes of mixed work",
        "command": f"python benchmarks/soak.py --seconds {options.seconds:g}",
        "hardware": f"{cpu_name()}, {os.cpu_count()} cores",
        "versions": {"python": sys.version.split()[0]},
        "runs": [*runs, summary],
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "soak.md").write_text(markdown(result))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
