"""One server's state as JSON: what ``/stats`` gives, and what a page can draw."""

from time import monotonic
from typing import Any

from nvembed.serve.state import State


def stats(state: State) -> dict[str, Any]:
    """Return status, queue, throughput and devices, and set the gauges to the same."""
    watch, engine = state.watch, state.engine
    watch.gauges["ready"].set(state.ready)
    watch.gauges["requests_at_work"].set(state.at_work)
    found: dict[str, Any] = {
        "status": state.status,
        "model": state.names[0],
        "index": state.index,
        "uptime_s": round(monotonic() - watch.started, 1),
        "requests_at_work": state.at_work,
        "tokens_per_s": round(watch.tokens_per_s(), 1),
    }
    if engine is None:
        return found
    batcher = engine.batcher
    watch.gauges["queue_tokens"].set(batcher.held_tokens)
    watch.gauges["queue_limit_tokens"].set(batcher.max_queue_tokens)
    for worker in batcher.workers:
        watch.budget.labels(worker.device.name).set(worker.budget)
    return {
        **found,
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
