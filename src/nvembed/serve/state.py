"""The state that the parts of a server share: its phase, its engine, the requests at work, and ``/stats``."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from nvembed.serve.engine import Engine
from nvembed.serve.refusal import RefusedError
from nvembed.serve.settings import ServerSettings
from nvembed.serve.watch import Watch

SEARCHES_AT_ONCE = 4
Phase = Literal["loading", "ready", "draining"]


@dataclass
class State:
    """Written by the event loop's thread only."""

    settings: ServerSettings
    watch: Watch
    engine: Engine | None = None
    phase: Phase = "loading"
    at_work: int = 0  # requests
    body_bytes: int = 0  # of requests at work
    indexes: list[str] = field(default_factory=list)  # names of the served indexes
    index_fails: bool = False  # one of them, at the last check
    # only for searches, so that a store that hangs delays nothing else
    search_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(SEARCHES_AT_ONCE, "search")
    )

    @property
    def ready(self) -> bool:
        return self.status == "ready"

    @property
    def status(self) -> str:
        if self.engine is not None and self.engine.batcher.failing:
            return "failing"
        return "index failing" if self.phase == "ready" and self.index_fails else self.phase

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the model in requests; answers contain the first one."""
        model = self.settings.model
        if self.settings.served_name:
            return self.settings.served_name
        if Path(model).is_dir():  # the path is not shown to clients
            return (Path(model).resolve().name,)
        return tuple(dict.fromkeys((model, model.rpartition("/")[2])))

    def serving(self) -> Engine:
        """Return the engine.

        Raises:
            RefusedError: 503, the model is loading or the server is shutting down.
        """
        if self.engine is None or self.phase != "ready":
            what = "the model is loading" if self.phase == "loading" else "the server is shutting down"
            raise RefusedError(503, self.phase, f"{what}: try again", retry_after_s=5)
        return self.engine


@dataclass
class Ticket:
    """The facts of one request, for its log line and its limits."""

    id: str
    started: float  # on the monotonic clock, as the next
    deadline: float
    code: str = ""  # of a refusal
    body_bytes: int = 0
    texts: int = 0
    tokens: int = 0
    cut: int = 0
    queue_s: float = 0.0


def stats(state: State) -> dict[str, Any]:
    """Return status, queue, throughput and devices, and set the gauges to the same values."""
    watch, engine = state.watch, state.engine
    watch.gauges["ready"].set(state.ready)
    watch.gauges["requests_at_work"].set(state.at_work)
    values: dict[str, Any] = {
        "status": state.status,
        "model": state.names[0],
        "index": next(iter(state.indexes), ""),
        "indexes": state.indexes,
        "uptime_s": round(monotonic() - watch.started, 1),
        "requests_at_work": state.at_work,
        "tokens_per_s": round(watch.tokens_per_s(), 1),
    }
    if engine is None:
        return values
    batcher = engine.batcher
    watch.gauges["queue_tokens"].set(batcher.held_tokens)
    watch.gauges["queue_limit_tokens"].set(batcher.max_queue_tokens)
    for worker in batcher.workers:
        watch.budget.labels(worker.device.name).set(worker.budget)
    return {
        **values,
        "dim": engine.model.dim,
        "dtype": engine.model.dtype,
        "max_length": engine.max_length,
        "queue": {
            "tokens": batcher.held_tokens,
            "limit_tokens": batcher.max_queue_tokens,
            "texts": batcher.waiting(),
        },
        "devices": [
            {
                "name": worker.device.name,
                "batch_budget_tokens": worker.budget,
                "tokens_at_work": worker.busy_tokens,
                "failing": worker.failing,
            }
            for worker in batcher.workers
        ],
        "total": watch.totals(),
    }
