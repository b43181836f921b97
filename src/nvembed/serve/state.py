"""What the parts of one server share: its phase, its engine, and what is at work."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from nvembed.serve.engine import Engine
from nvembed.serve.refusal import RefusedError
from nvembed.serve.settings import Settings
from nvembed.serve.watch import Watch

Phase = Literal["loading", "ready", "draining"]


@dataclass
class State:
    """Written by the event loop's thread alone."""

    settings: Settings
    watch: Watch
    engine: Engine | None = None
    phase: Phase = "loading"
    at_work: int = 0  # requests
    body_bytes: int = 0  # of requests at work
    index: str = ""  # the name of the one that is served

    @property
    def ready(self) -> bool:
        return self.phase == "ready" and self.engine is not None and not self.engine.batcher.failing

    @property
    def status(self) -> str:
        failing = self.engine is not None and self.engine.batcher.failing
        return "failing" if failing else self.phase

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What requests may call the model; the first one is its name."""
        model = self.settings.model
        if self.settings.served_name:
            return self.settings.served_name
        if Path(model).is_dir():  # where it lies is nobody's business
            return (Path(model).resolve().name,)
        return tuple(dict.fromkeys((model, model.rpartition("/")[2])))

    def serving(self) -> Engine:
        """Return the engine.

        Raises:
            RefusedError: 503, the model is being loaded, or the server is going down.
        """
        if self.engine is None or self.phase != "ready":
            message = "the model is being loaded" if self.phase == "loading" else "the server is going down"
            raise RefusedError(503, self.phase, f"{message}: try again", retry_after_s=5)
        return self.engine


@dataclass
class Ticket:
    """One request's own facts, for its log line and its limits."""

    id: str
    started: float  # on the monotonic clock, as the next
    deadline: float
    code: str = ""  # of a refusal
    body_bytes: int = 0
    texts: int = 0
    tokens: int = 0
    cut: int = 0
    queue_s: float = 0.0
