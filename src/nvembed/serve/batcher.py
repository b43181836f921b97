"""The queue: texts of many requests become batches of a token budget; one compute thread per device.

There are three lanes. ``QUERY`` goes before ``BULK``, and ``BULK`` before ``LONG``, the texts longer than a
batch. A batch pauses many times, and at each pause its thread computes one batch of what is more urgent: a
query waits for half a layer of the batch at work, not for the whole batch. Nothing starves: idle threads take
the lanes in turn, a pause serves one batch, and within a ``LONG`` batch, ``BULK`` gets no more time than that
batch itself.

The budget of a device shrinks if pauses are further apart than ``pause_s``. If a batch does not fit on its
device, it is split, and the budget of the device stays lower.
"""

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import IntEnum
from time import monotonic

import numpy as np

from nvembed.serve.model import Device
from nvembed.serve.refusal import RefusedError
from nvembed.serve.watch import Watch
from nvembed.text.tokenize import Tokens

FLOOR_TOKENS = 256  # batches shrink no further than this for latency
NEAR_BATCHES = 8  # a batch is chosen from this many batches of the oldest texts
PROBE_EVERY_S = 5.0


class Lane(IntEnum):
    QUERY = 0
    BULK = 1
    LONG = 2


@dataclass(eq=False)
class EmbedJob:
    """Texts of one request. ``future`` gives (n, d) float32, or raises RefusedError."""

    tokens: Sequence[Tokens]
    deadline: float  # on the monotonic clock
    future: "Future[np.ndarray]" = field(default_factory=Future)
    vectors: np.ndarray | None = None
    remaining: int = 0  # texts without a vector
    waiting_tokens: int = 0  # of texts that no batch has taken yet
    first_row: int = 0  # the number of the first text in its request
    submitted: float = field(default_factory=monotonic)
    started: float | None = None

    @property
    def over(self) -> bool:
        return self.future.done()


@dataclass(frozen=True)
class Item:
    """One text of a job."""

    job: EmbedJob
    row: int
    lane: Lane

    @property
    def number(self) -> int:
        """The text's place in its request, for messages."""
        return self.job.first_row + self.row

    @property
    def size(self) -> int:
        return len(self.job.tokens[self.row].input_ids)


def failing() -> RefusedError:
    message = "the model fails on every text: see the server's log"
    return RefusedError(503, "model_failing", message, retry_after_s=5)


def expired() -> RefusedError:
    return RefusedError(504, "deadline", "the request took too long: try again, or send fewer texts")


class _Worker:
    """The state of one device's thread. Only that thread writes it."""

    def __init__(self, device: Device, limit: int) -> None:
        self.device = device
        self.limit = limit  # tokens that fit
        self.paced = limit  # tokens whose pauses are close enough
        self.turn = Lane.LONG  # the lane that was served last
        self.busy_tokens = 0
        self.failing = False  # not even the probe can be embedded: no work is taken

    @property
    def budget(self) -> int:
        return min(self.limit, self.paced)


class _Run:
    """A batch that is being computed: the times between its pauses, and the time that others took in them."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.start = self.last = monotonic()
        self.gaps: list[float] = []
        self.others = 0.0
        self.crowded = False  # something more urgent did not fit beside it

    def tick(self) -> None:
        now = monotonic()
        self.gaps.append(now - self.last)
        self.last = now

    @property
    def typical_gap(self) -> float:
        """The 90th percentile of the times between pauses: rare hiccups of the machine do not count."""
        return sorted(self.gaps)[int(0.9 * (len(self.gaps) - 1))]


class _Abandoned(BaseException):
    """Every request with a text in this batch has ended."""


class Batcher:
    """Thread-safe: requests submit and cancel, compute threads take."""

    def __init__(
        self,
        devices: Sequence[Device],
        probe: Sequence[Tokens],
        watch: Watch,
        *,
        max_queue_tokens: int,
        pause_s: float,
    ) -> None:
        """Start one thread per device. ``probe`` is a text that embeds: if it fails, the device is bad."""
        self.max_queue_tokens = max_queue_tokens
        self.pause_s = pause_s
        self.watch = watch
        self._probe = probe
        self._lanes: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self._held_tokens = 0  # of jobs that are not taken by batches, and of texts being tokenised
        self._changed = threading.Condition()
        self._jobs: set[EmbedJob] = set()
        self._closing = False
        self.workers = [_Worker(device, device.batch_tokens) for device in devices]
        self.long_tokens = min(worker.limit for worker in self.workers)
        self._threads = []
        for worker in self.workers:
            name = f"compute-{worker.device.name}"
            self._threads.append(threading.Thread(target=self._work, args=(worker,), name=name, daemon=True))
            self._threads[-1].start()

    @property
    def failing(self) -> bool:
        """Whether every device fails."""
        return all(worker.failing for worker in self.workers)

    @property
    def held_tokens(self) -> int:
        """Tokens in the queue, and an estimate for texts that are being tokenised."""
        return self._held_tokens

    def waiting(self) -> dict[str, int]:
        """Return how many texts wait in each lane."""
        return {lane.name.lower(): len(queue) for lane, queue in self._lanes.items()}

    def reserve(self, tokens: int, *, admitted: bool = False) -> None:
        """Reserve room in the queue for texts that are not tokenised yet; ``release`` gives it back.

        An empty queue accepts any number of tokens. Later pieces of an ``admitted`` request are always
        accepted: only a few of them are in the queue at a time.

        Raises:
            RefusedError: 429, the queue is full.
        """
        with self._changed:
            full = self._held_tokens and self._held_tokens + tokens > self.max_queue_tokens
            if full and not admitted:
                wait_s = self._held_tokens / max(self.watch.tokens_per_s(), 1.0)
                raise RefusedError(
                    429,
                    "queue_full",
                    f"the queue is full: {self._held_tokens:,} tokens wait and max_queue_tokens is "
                    f"{self.max_queue_tokens:,}. Try again later",
                    retry_after_s=min(max(wait_s / 2, 1.0), 60.0),
                )
            self._held_tokens += tokens

    def release(self, tokens: int) -> None:
        with self._changed:
            self._held_tokens -= tokens

    def submit(
        self, tokens: Sequence[Tokens], *, urgent: bool, deadline: float, first_row: int = 0
    ) -> EmbedJob:
        """Queue texts of a request: as queries if ``urgent``, else as bulk or long ones."""
        job = EmbedJob(tokens, deadline, remaining=len(tokens), first_row=first_row)
        job.future.set_running_or_notify_cancel()  # from now on only a result or a refusal ends it
        with self._changed:
            for row, item in enumerate(tokens):
                long = len(item.input_ids) > self.long_tokens
                lane = Lane.LONG if long else Lane.QUERY if urgent else Lane.BULK
                self._lanes[lane].append(Item(job, row, lane))
                job.waiting_tokens += len(item.input_ids)
            self._held_tokens += job.waiting_tokens
            self._jobs.add(job)
            self._changed.notify_all()
        job.future.add_done_callback(lambda _: self._jobs.discard(job))
        return job

    def cancel(self, job: EmbedJob, refusal: RefusedError) -> None:
        """End a job. Its texts are not computed, except those in a batch at work."""
        with self._changed:
            self._end(job, refusal)

    def refuse_all(self, refusal: RefusedError) -> None:
        """End every job, including those in a batch at work."""
        with self._changed:
            for job in list(self._jobs):
                self._end(job, refusal)

    def close(self, timeout_s: float = 5.0) -> None:
        """End the threads and refuse the remaining requests."""
        self.refuse_all(RefusedError(503, "closing", "the server is shutting down: try again"))
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _end(self, job: EmbedJob, refusal: RefusedError) -> None:
        self._held_tokens -= job.waiting_tokens
        job.waiting_tokens = 0
        if not job.future.done():
            job.future.set_exception(refusal)

    # What follows runs on the compute threads.

    def _work(self, worker: _Worker) -> None:
        while not self._closing:
            with self._changed:
                items = [] if worker.failing else self._next(worker)
                if not items and not self._closing:
                    self._changed.wait(PROBE_EVERY_S if worker.failing else None)
            if items:
                self._run(items, worker)
            elif worker.failing:
                self._test(worker)

    def _next(self, worker: _Worker) -> list[Item]:
        """Take a batch of the next lane that has texts, in turn."""
        for step in (1, 2, 3):
            lane = Lane((worker.turn + step) % len(Lane))
            if items := self._take(lane, worker):
                worker.turn = lane
                return items
        return []

    def _take(self, lane: Lane, worker: _Worker) -> list[Item]:
        """Take a batch: the oldest text of a lane, and of the next ones those most like it in length.

        The caller holds the lock. Texts of requests that have ended are dropped.
        """
        queue = self._lanes[lane]
        near: list[Item] = []
        tokens, now = 0, monotonic()
        while queue and tokens < NEAR_BATCHES * worker.budget:
            item = queue.popleft()
            if not item.job.over and item.job.deadline <= now:
                self._end(item.job, expired())
            if not item.job.over:
                near.append(item)
                tokens += item.size
        # On CPU, equally long texts share one call of the attention kernel. The oldest text stays the first.
        order = sorted(range(len(near)), key=lambda number: abs(near[number].size - near[0].size))
        batch: set[int] = set()
        tokens = 0
        for number in order:
            if not batch or tokens + near[number].size <= worker.budget:
                tokens += near[number].size
                batch.add(number)
        queue.extendleft(item for number, item in reversed(list(enumerate(near))) if number not in batch)
        items = [near[number] for number in sorted(batch)]
        for item in items:
            self._held_tokens -= item.size
            item.job.waiting_tokens -= item.size
            if item.job.started is None:
                item.job.started = now
        return items

    def _put_back(self, items: Sequence[Item]) -> None:
        with self._changed:
            for item in reversed(items):
                if not item.job.over:
                    self._lanes[item.lane].appendleft(item)
                    self._held_tokens += item.size
                    item.job.waiting_tokens += item.size
            self._changed.notify_all()

    def _run(self, items: list[Item], worker: _Worker, outer: _Run | None = None) -> None:
        """Compute a batch and distribute its vectors. Raises nothing."""
        items = [item for item in items if not item.job.over]
        if not items:
            return
        lane = items[0].lane
        run = _Run(lane)
        tokens = sum(item.size for item in items)
        worker.busy_tokens += tokens

        def pause() -> None:
            if all(item.job.over for item in items):
                raise _Abandoned
            run.tick()
            self._serve_more_urgent(run, worker)
            run.last = monotonic()

        try:
            batch = [item.job.tokens[item.row] for item in items]
            pausing = None if lane is Lane.QUERY else pause  # nothing is more urgent than a query
            vectors = np.asarray(worker.device.embed(batch, pause=pausing), dtype=np.float32)
            if vectors.ndim != 2 or len(vectors) != len(items):
                raise ValueError(f"expected {len(items)} vectors, got an array of shape {vectors.shape}")
        except _Abandoned:
            pass
        except MemoryError:
            self._does_not_fit(items, tokens, worker, outer)
        except BaseException as error:  # a batch may fail in any way; the thread must not
            self._isolate(items, worker, outer, error)
        else:
            run.tick()
            self._measure(run, tokens, worker)
            self._hand_out(items, vectors)
        finally:
            worker.busy_tokens -= tokens

    def _serve_more_urgent(self, run: _Run, worker: _Worker) -> None:
        if run.crowded:
            return
        for lane in (lane for lane in Lane if lane < run.lane and self._lanes[lane]):
            own = monotonic() - run.start - run.others
            if lane is not Lane.QUERY and run.others > own:
                continue
            with self._changed:
                items = self._take(lane, worker)
            if items:
                start = monotonic()
                self._run(items, worker, run)
                run.others += monotonic() - start
                return

    def _hand_out(self, items: Sequence[Item], vectors: np.ndarray) -> None:
        finite = np.isfinite(vectors).all(axis=1)
        with self._changed:
            for item, vector, good in zip(items, vectors, finite, strict=True):
                job = item.job
                if job.vectors is None:
                    job.vectors = np.empty((len(job.tokens), vectors.shape[1]), dtype=np.float32)
                job.vectors[item.row] = vector
                job.remaining -= 1
                if not good:
                    self.watch.failed("a vector is not finite")
                    message = f"the vector of input {item.number} is not finite: check the model"
                    self._end(job, RefusedError(500, "not_finite", message))
                elif job.remaining == 0 and not job.over:
                    job.future.set_result(job.vectors)

    def _measure(self, run: _Run, tokens: int, worker: _Worker) -> None:
        """Count a batch, and adapt the budget to the time between its pauses."""
        self.watch.computed(run.lane.name.lower(), tokens, run.last - run.start - run.others)
        if run.lane is Lane.BULK and tokens >= FLOOR_TOKENS:
            size = int(tokens * self.pause_s / max(run.typical_gap, 1e-6))
            target = max(FLOOR_TOKENS, min(worker.limit, size))
            worker.paced = (
                int(0.7 * worker.paced + 0.3 * target)
                if target < worker.paced
                else min(target, worker.paced + worker.paced // 8 + 1)
            )

    def _does_not_fit(self, items: list[Item], tokens: int, worker: _Worker, outer: _Run | None) -> None:
        """Handle a lack of memory: split the batch and lower the budget; refuse a single text."""
        if outer is not None:  # it may fit once the batch around it has ended
            outer.crowded = True
            self._put_back(items)
        elif len(items) > 1:
            worker.limit = min(worker.limit, max(tokens // 2, 1))
            self.watch.out_of_memory(worker.device.name, tokens, worker.limit)
            self._put_back(items)
        else:
            self.watch.out_of_memory(worker.device.name, tokens, worker.limit)
            where = worker.device.name
            what = f"{tokens:,} tokens, too long for the memory of {where}: cut it"
            message = f"input {items[0].number} is {what}"
            self.cancel(items[0].job, RefusedError(413, "out_of_memory", message))

    def _isolate(self, items: list[Item], worker: _Worker, outer: _Run | None, error: BaseException) -> None:
        """Handle an exception of the model: halve the batch until the texts that cause it are alone."""
        self.watch.failed(type(error).__name__, error)
        self._test(worker)
        if len(items) > 1 and not worker.failing:
            middle = len(items) // 2
            self._run(items[:middle], worker, outer)
            self._run(items[middle:], worker, outer)
            return
        for item in items:
            what = f"the model failed on input {item.number} ({type(error).__name__}): see the server's log"
            self.cancel(item.job, failing() if worker.failing else RefusedError(500, "model_failed", what))
        if self.failing:
            self.refuse_all(failing())

    def _test(self, worker: _Worker) -> None:
        try:
            vectors = worker.device.embed(self._probe, pause=None)
            worker.failing = not np.isfinite(vectors).all()
        except BaseException as error:
            self.watch.failed(type(error).__name__, error)
            worker.failing = True
