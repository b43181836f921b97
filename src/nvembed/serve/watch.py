"""Prometheus metrics, throughput and the log. None of them ever contains a text."""

import json
import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from time import monotonic
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
WINDOW_S = 10.0
LogFormat = Literal["json", "text"]
Level = Literal["info", "warning", "error"]


class Watch:
    """The metrics and the log of one server, without global state."""

    def __init__(self, log_format: LogFormat) -> None:
        self.handler = _StandardError(log_format)
        self.log = logging.Logger("nvembed.serve", logging.INFO)
        self.log.addHandler(self.handler)
        self.started = monotonic()
        self.registry = CollectorRegistry()
        count = partial(Counter, namespace="nvembed", registry=self.registry)
        gauge = partial(Gauge, namespace="nvembed", registry=self.registry)
        spread = partial(Histogram, namespace="nvembed", registry=self.registry, buckets=SECONDS)
        powers = [2**n for n in range(4, 18)]
        self.requests = count("requests", "Requests answered.", ["route", "status"])
        self.request_s = spread("request_seconds", "From arrival to answer.", ["route"])
        self.queue_s = spread("queue_seconds", "From tokens to the first batch.")
        self.batch_s = spread("batch_seconds", "Computing a batch.", ["lane"])
        self.batch_tokens = spread("batch_tokens", "Tokens of a batch.", ["lane"], buckets=powers)
        self.texts = count("texts", "Texts embedded.")
        self.cut = count("texts_cut", "Texts that were cut to be embedded.")
        self.tokens = count("tokens", "Tokens computed.", ["lane"])
        self.refused = count("refused", "Requests refused, by code.", ["code"])
        self.failures = count("model_failures", "Batches the model failed on.")
        self.oom = count("out_of_memory", "Batches that did not fit and were split.", ["device"])
        self.gauges: dict[str, Gauge] = {
            "queue_tokens": gauge("queue_tokens", "Tokens that wait."),
            "queue_limit_tokens": gauge("queue_limit_tokens", "Tokens that may wait."),
            "requests_at_work": gauge("requests_at_work", "Requests at work."),
            "ready": gauge("ready", "1 if the server takes requests."),
        }
        self.budget = gauge("batch_budget_tokens", "Tokens per batch now.", ["device"])
        self._recent: deque[tuple[float, int]] = deque()
        self._lock = threading.Lock()

    def computed(self, lane: str, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.tokens.labels(lane).inc(tokens)
        self.batch_s.labels(lane).observe(seconds)
        self.batch_tokens.labels(lane).observe(tokens)
        with self._lock:
            self._recent.append((monotonic(), tokens))
            self._forget()

    def _forget(self) -> None:
        start = monotonic() - WINDOW_S
        while self._recent and self._recent[0][0] < start:
            self._recent.popleft()

    def tokens_per_s(self) -> float:
        """Return the tokens per second that were computed in the last ten seconds."""
        with self._lock:
            self._forget()
            total = sum(tokens for _, tokens in self._recent)
        return total / min(WINDOW_S, max(monotonic() - self.started, 1e-3))

    def failed(self, what: str, error: BaseException | None = None) -> None:
        """Count a failure of the model and log its place, without its message, which may contain a text."""
        self.failures.inc()
        self.event("error", "model failed", {"error": what, "where": _frames(error)})

    def out_of_memory(self, device: str, tokens: int, budget: int) -> None:
        self.oom.labels(device).inc()
        fields = {"device": device, "batch_tokens": tokens, "budget_now": budget}
        self.event("warning", "out of memory", fields)

    def event(self, level: Level, name: str, fields: Mapping[str, object] | None = None) -> None:
        """Log one event."""
        self.log.log(getattr(logging, level.upper()), name, extra={"fields": fields or {}})

    def crashed(self, error: Exception, request_id: str) -> None:
        """Log where an unexpected exception was raised; not its message, which may contain a text."""
        fields = {"id": request_id, "error": type(error).__name__, "where": _frames(error)}
        self.event("error", "crash", fields)

    def totals(self) -> dict[str, int]:
        """Return the counts since the server started."""
        sums = {"texts": 0.0, "texts_cut": 0.0, "tokens": 0.0, "requests": 0.0, "refused": 0.0}
        for metric in self.registry.collect():
            name = metric.name.removeprefix("nvembed_")
            if name in sums:
                sums[name] = sum(s.value for s in metric.samples if s.name.endswith("_total"))
        return {name: int(value) for name, value in sums.items()}

    def metrics(self) -> bytes:
        """Return the Prometheus text exposition."""
        return generate_latest(self.registry)


class _StandardError(logging.Handler):
    """One line per event on standard error, as JSON or as text."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self.setFormatter(_Formatter(log_format))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # with a full disk or a closed stream, requests are still answered
            self.handleError(record)


class _Formatter(logging.Formatter):
    """Time, level, event and the record's ``fields``; of an exception only type and place."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self.log_format = log_format

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields |= {"error": type(error).__name__, "where": _frames(error)}
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        level, event = record.levelname.lower(), record.getMessage().partition("\n")[0]
        if self.log_format == "json":
            return json.dumps({"time": time, "level": level, "event": event, **fields}, default=str)
        pairs = " ".join(f"{name}={value}" for name, value in fields.items() if value not in ("", None))
        return f"{time} {level:<7} {event}  {pairs}".rstrip()


def _frames(error: BaseException | None) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-6:] if error else []
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
