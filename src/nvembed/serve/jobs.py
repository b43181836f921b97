"""A request's texts on their way through the queue."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from time import monotonic

import numpy as np

from nvembed.serve.refusal import RefusedError
from nvembed.text.tokenize import Tokens


class Lane(IntEnum):
    QUERY = 0
    BULK = 1
    LONG = 2


@dataclass(eq=False)
class Job:
    """One request's texts on their way. ``future`` gives (n, d) float32, or raises RefusedError."""

    tokens: Sequence[Tokens]
    deadline: float  # on the monotonic clock
    future: "Future[np.ndarray]" = field(default_factory=Future)
    vectors: np.ndarray | None = None
    left: int = 0  # texts without a vector
    waiting_tokens: int = 0  # of texts that no batch has taken yet
    submitted: float = field(default_factory=monotonic)
    started: float | None = None

    @property
    def over(self) -> bool:
        return self.future.done()


@dataclass(frozen=True)
class Item:
    """One text of a job."""

    job: Job
    row: int
    lane: Lane

    @property
    def size(self) -> int:
        return len(self.job.tokens[self.row].input_ids)


def failing() -> RefusedError:
    message = "the model fails on every text: the log has more"
    return RefusedError(503, "model_failing", message, retry_after_s=5)


def expired() -> RefusedError:
    return RefusedError(
        504, "deadline", "the request was not done in time, and is dropped: try again, or send less"
    )
