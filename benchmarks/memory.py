"""Memory of this process over time, and what a result file says about the machine."""

import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

GIB = 1 << 30


def status_bytes() -> dict[str, int]:
    """Return this process's memory: all of it, its own (anonymous), and pages of mapped files."""
    fields = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "file_pages"}
    sizes = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in fields:
            sizes[fields[key]] = int(value.split()[0]) * 1024
    return sizes


@contextmanager
def phase(name: str, results: dict[str, dict[str, float]], every_s: float = 0.02) -> Iterator[None]:
    """Record seconds, CPU seconds and the peak of each kind of memory while the body runs."""
    peak: dict[str, int] = {}
    done = threading.Event()

    def sample() -> None:
        while True:
            for key, value in status_bytes().items():
                peak[key] = max(peak.get(key, 0), value)
            if done.wait(every_s):
                return

    sampler = threading.Thread(target=sample, daemon=True)
    started, cpu_started = time.perf_counter(), time.process_time()
    sampler.start()
    try:
        yield
    finally:
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        done.set()
        sampler.join()
        results[name] = {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_seconds, 2),
            **{f"peak_{key}_gib": round(value / GIB, 3) for key, value in peak.items()},
        }


def heading(title: str, command: str, machine: Mapping[str, object]) -> list[str]:
    """Return the first lines of a result's page."""
    return [f"# {title}", "", f"`{command}`", "", ", ".join(f"{k} {v}" for k, v in machine.items()), ""]


def hardware() -> dict[str, str | int | float]:
    """Return what a result depends on: processor, cores, memory, versions. No names, no paths."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model or platform.machine(),
        "cores": os.cpu_count() or 0,
        "memory_gib": round(memory / GIB, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "safetensors", "tokenizers", "numpy")},
    }
