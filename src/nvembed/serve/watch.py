"""What is counted, and what the log says: Prometheus metrics, throughput, JSON lines. Never a text."""

import json
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
WINDOW_S = 10.0


class Watch:
    """One server's figures and log; nothing is global."""

    def __init__(self, log: "Log") -> None:
        self.log = log
        self.started = monotonic()
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "nvembed_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.request_s = Histogram(
            "nvembed_request_seconds",
            "From arrival to answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_s = Histogram(
            "nvembed_queue_seconds", "From tokens to the first batch.", buckets=SECONDS, registry=registry
        )
        self.batch_s = Histogram(
            "nvembed_batch_seconds", "Computing a batch.", ["lane"], buckets=SECONDS, registry=registry
        )
        self.batch_tokens = Histogram(
            "nvembed_batch_tokens",
            "Tokens of a batch.",
            ["lane"],
            buckets=[2**n for n in range(4, 18)],
            registry=registry,
        )
        self.texts = Counter("nvembed_texts", "Texts embedded.", registry=registry)
        self.cut = Counter("nvembed_texts_cut", "Texts that were cut to be embedded.", registry=registry)
        self.tokens = Counter("nvembed_tokens", "Tokens computed.", ["lane"], registry=registry)
        self.refused = Counter(
            "nvembed_refused", "Requests not served, by code.", ["code"], registry=registry
        )
        self.failures = Counter("nvembed_model_failures", "Batches the model failed on.", registry=registry)
        self.oom = Counter(
            "nvembed_out_of_memory", "Batches that did not fit and were split.", ["device"], registry=registry
        )
        self.gauges: dict[str, Gauge] = {
            name: Gauge(f"nvembed_{name}", line, registry=registry)
            for name, line in (
                ("queue_tokens", "Tokens that wait."),
                ("queue_limit_tokens", "Tokens that may wait."),
                ("requests_at_work", "Requests at work."),
                ("ready", "1 where the server takes requests."),
            )
        }
        self.budget = Gauge(
            "nvembed_batch_budget_tokens", "Tokens per batch now.", ["device"], registry=registry
        )
        self._recent: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def computed(self, lane: str, tokens: int, seconds: float) -> None:
        self.tokens.labels(lane).inc(tokens)
        self.batch_s.labels(lane).observe(seconds)
        self.batch_tokens.labels(lane).observe(tokens)
        with self._lock:
            self._recent.append((monotonic(), tokens))

    def tokens_per_s(self) -> float:
        """Return the tokens computed per second over the last ten seconds."""
        now = monotonic()
        with self._lock:
            while self._recent and self._recent[0][0] < now - WINDOW_S:
                self._recent.popleft()
            total = sum(tokens for _, tokens in self._recent)
        return total / min(WINDOW_S, max(now - self.started, 1e-3))

    def failed(self, what: str, error: BaseException | None = None) -> None:
        """Count a failure of the model and log where it was raised; its message may hold a text."""
        self.failures.inc()
        frames = traceback.extract_tb(error.__traceback__)[-6:] if error else []
        where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        self.log.write("error", "model failed", {"error": what, "where": where})

    def out_of_memory(self, device: str, tokens: int, budget: int) -> None:
        self.oom.labels(device).inc()
        fields = {"device": device, "batch_tokens": tokens, "budget_now": budget}
        self.log.write("warning", "out of memory", fields)

    def totals(self) -> dict[str, int]:
        """Return what was done since the start."""
        sums = {"texts": 0.0, "texts_cut": 0.0, "tokens": 0.0, "requests": 0.0, "refused": 0.0}
        for metric in self.registry.collect():
            name = metric.name.removeprefix("nvembed_")
            if name in sums:
                sums[name] = sum(s.value for s in metric.samples if s.name.endswith("_total"))
        return {name: int(value) for name, value in sums.items()}

    def metrics(self) -> bytes:
        """Return the Prometheus text exposition."""
        return generate_latest(self.registry)


class Log:
    """One line per event on standard error, as JSON or as text."""

    def __init__(self, form: Literal["json", "text"]) -> None:
        self.form = form

    def write(self, level: str, event: str, fields: Mapping[str, object] | None = None) -> None:
        fields = fields or {}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if self.form == "json":
            line = json.dumps({"time": now, "level": level, "event": event, **fields}, default=str)
        else:
            said = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
            line = f"{now} {level:<7} {event}  {said}".rstrip()
        print(line, file=sys.stderr, flush=True)


class UvicornLog(logging.Handler):
    """Uvicorn's messages in our log; of an exception only its type and place."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = {}
        if record.exc_info and record.exc_info[1] is not None:
            frames = traceback.extract_tb(record.exc_info[2])[-6:]
            fields["error"] = type(record.exc_info[1]).__name__
            fields["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        self.log.write(record.levelname.lower(), record.getMessage().partition("\n")[0], fields)
