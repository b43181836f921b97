"""The batcher: lanes, budgets, pauses, deadlines, failures."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from serving import Fake, tokenise, vector

from nvembed.serve.batcher import Batcher, EmbedJob
from nvembed.serve.model import Device
from nvembed.serve.refusal import RefusedError
from nvembed.serve.watch import Watch

FAR = float("inf")


class Room:
    """Makes batchers and closes them."""

    def __init__(self) -> None:
        self.made: list[Batcher] = []

    def __call__(
        self, *devices: Fake, batch_tokens: int = 64, limit: int = 10_000, pause_s: float = 60.0
    ) -> Batcher:
        batcher = Batcher(
            [Device(f"fake:{n}", device, batch_tokens) for n, device in enumerate(devices)],
            tokenise(["probe"]),
            Watch("json"),
            max_queue_tokens=limit,
            pause_s=pause_s,
        )
        self.made.append(batcher)
        return batcher


@pytest.fixture
def room() -> Iterator[Room]:
    room = Room()
    yield room
    for batcher in room.made:
        for worker in batcher.workers:
            if worker.device.embed.hold is not None:
                worker.device.embed.hold.set()
        batcher.close()


def submit(batcher: Batcher, *texts: str, urgent: bool = False, deadline: float = FAR) -> EmbedJob:
    return batcher.submit(tokenise(texts), urgent=urgent, deadline=deadline)


def held(**settings: float) -> Fake:
    return Fake(hold=threading.Event(), **settings)


def until(condition: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.002)


def refusal(job: EmbedJob) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        job.future.result(60)
    return caught.value


def test_vectors_come_back_to_their_texts_in_order(room: Room) -> None:
    batcher = room(Fake(), Fake())
    texts = [[f"{i}-{j}" * (1 + (i * j) % 40) for j in range(9)] for i in range(20)]
    jobs = [submit(batcher, *some, urgent=i % 3 == 0) for i, some in enumerate(texts)]
    for job, some in zip(jobs, texts, strict=True):
        expected = np.stack([vector(t.input_ids) for t in tokenise(some)])
        np.testing.assert_array_equal(job.future.result(60), expected)
    until(lambda: batcher.held_tokens == 0)


def test_requests_share_batches_within_the_budget(room: Room) -> None:
    device = held()
    batcher = room(device, batch_tokens=50)
    first = submit(batcher, "x")
    until(lambda: device.batches == [[1]])
    jobs = [submit(batcher, "a" * 20, "b" * 10) for _ in range(4)]
    assert batcher.held_tokens == 120
    device.hold.set()
    for job in [first, *jobs]:
        job.future.result(60)
    assert device.batches[1:] == [[20, 10, 20], [10, 20, 10, 10], [20]]


def test_a_batch_is_the_oldest_text_and_those_most_like_it(room: Room) -> None:
    device = held()
    batcher = room(device, batch_tokens=40)
    first = submit(batcher, "x")
    until(lambda: len(device.batches) == 1)
    job = submit(batcher, *("a" * size for size in (9, 30, 3, 10, 29, 8, 2, 11)))
    device.hold.set()
    first.future.result(60)
    job.future.result(60)
    assert device.batches[1:] == [[9, 10, 8, 2, 11], [30, 3], [29]]


def test_a_query_is_computed_within_a_bulk_batch(room: Room) -> None:
    device = held()
    batcher = room(device)
    bulk = submit(batcher, "a" * 60)
    until(lambda: len(device.batches) == 1)
    gate, device.hold = device.hold, None  # only the batch at hand goes on waiting, in its pauses
    query = submit(batcher, "q", urgent=True)
    assert query.future.result(60).shape == (1, 8)
    assert not bulk.future.done()
    gate.set()
    bulk.future.result(60)


def test_a_long_text_holds_up_neither_queries_nor_bulk(room: Room) -> None:
    device = Fake(steps=400, step_s=0.002)
    batcher = room(device)
    long = submit(batcher, "L" * 500, urgent=True)  # longer than a batch: no query, whatever is said
    until(lambda: [500] in device.batches)
    device.steps = 2
    bulk, query = submit(batcher, "b" * 30), submit(batcher, "q", urgent=True)
    query.future.result(60)
    bulk.future.result(60)
    assert not long.future.done()
    assert long.future.result(60).shape == (1, 8)


def test_bulk_takes_no_more_than_half_of_a_long_texts_time(room: Room) -> None:
    device = Fake(steps=20, step_s=0.002)
    batcher = room(device)
    long = submit(batcher, "L" * 500)
    until(lambda: [500] in device.batches)
    for _ in range(200):
        submit(batcher, "b" * 60)
    long.future.result(60)
    assert batcher.waiting()["bulk"] > 150, "the long text ended long before the bulk"


def test_bulk_is_not_starved_by_queries(room: Room) -> None:
    device = Fake(steps=2, step_s=0.001)
    batcher = room(device)
    stop = threading.Event()

    def ask_for_ever() -> None:
        while not stop.is_set():
            for job in [submit(batcher, "q" * 60, urgent=True) for _ in range(8)]:
                job.future.result(60)

    asking = threading.Thread(target=ask_for_ever)
    asking.start()
    try:
        for _ in range(5):
            submit(batcher, "b" * 60).future.result(60)
    finally:
        stop.set()
        asking.join()


def test_a_full_queue_refuses_and_says_when_to_come_again(room: Room) -> None:
    device = held()
    batcher = room(device, limit=100)
    job = submit(batcher, "x")
    until(lambda: len(device.batches) == 1)
    batcher.reserve(100)
    with pytest.raises(RefusedError, match=r"100 tokens wait and max_queue_tokens is 100") as caught:
        batcher.reserve(1)
    assert caught.value.status == 429
    assert 1 <= caught.value.retry_after_s <= 60
    batcher.release(100)
    batcher.reserve(1)
    device.hold.set()
    job.future.result(60)


def test_work_of_clients_that_have_gone_is_dropped(room: Room) -> None:
    device = held()
    batcher = room(device)
    running, waiting, other = submit(batcher, "r" * 60), submit(batcher, "w" * 40), submit(batcher, "o" * 10)
    until(lambda: device.batches == [[60]])
    gone = RefusedError(499, "gone", "")
    batcher.cancel(waiting, gone)
    assert batcher.held_tokens == 10
    batcher.cancel(running, gone)  # its batch is given up at the next pause, though the model still holds
    until(lambda: len(device.batches) == 2)
    device.hold.set()
    other.future.result(60)
    assert device.batches == [[60], [10]]


def test_a_deadline_that_has_passed_is_not_computed(room: Room) -> None:
    device = held()
    batcher = room(device)
    submit(batcher, "x")
    until(lambda: len(device.batches) == 1)
    late = submit(batcher, "late", deadline=time.monotonic() + 0.01)
    time.sleep(0.02)
    device.hold.set()
    assert (refusal(late).status, refusal(late).code) == (504, "deadline")
    assert len(device.batches) == 1


def test_out_of_memory_splits_the_batch_and_lowers_the_budget(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Fake(memory_tokens=40)
    batcher = room(device, batch_tokens=100)
    job = submit(batcher, *["a" * 10] * 20)
    assert len(job.future.result(60)) == 20
    assert batcher.workers[0].budget <= 40
    assert device.batches[0] == [10] * 10
    assert all(sum(batch) <= 40 for batch in device.batches[2:])
    said = capsys.readouterr().err
    assert '"event": "out of memory", "device": "fake:0", "batch_tokens": 100, "budget_now": 50' in said
    assert refusal(submit(batcher, "b" * 41)).status == 413
    assert len(submit(batcher, "b" * 40).future.result(60)) == 1


def test_out_of_memory_beside_another_batch_waits_for_its_end(room: Room) -> None:
    device = held()
    batcher = room(device)
    bulk = submit(batcher, "a" * 60)
    until(lambda: len(device.batches) == 1)
    device.memory_tokens = 5
    query = submit(batcher, "q" * 6, urgent=True)
    until(lambda: len(device.batches) == 2)
    device.memory_tokens = 100
    device.hold.set()
    assert bulk.future.result(60) is not None
    assert query.future.result(60) is not None
    assert batcher.workers[0].budget == 64


def test_a_text_that_the_model_raises_for_fails_alone(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    device = held()
    batcher = room(device)
    submit(batcher, "x")
    until(lambda: len(device.batches) == 1)
    good, bad = [submit(batcher, text * 4) for text in "abc"], submit(batcher, "fine", "bad!")
    device.hold.set()
    for job in good:
        job.future.result(60)
    assert refusal(bad).status == 500
    assert str(refusal(bad)) == "the model failed on input 1 (RuntimeError): see the server's log"
    assert not batcher.failing
    said = capsys.readouterr().err
    assert "serving.py" in said
    assert "secret" not in said


def test_a_broken_device_is_told_from_a_bad_text_and_may_recover(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nvembed.serve.batcher.PROBE_EVERY_S", 0.01)
    device = Fake(broken=True)
    batcher = room(device)
    jobs = [submit(batcher, "a" * 30) for _ in range(4)]
    assert {refusal(job).status for job in jobs} == {503}
    assert batcher.failing
    assert len(device.batches) < 12, "no text is tried by itself where the device is at fault"
    device.broken = False
    until(lambda: not batcher.failing)
    submit(batcher, "a").future.result(60)


def test_a_vector_that_is_not_finite_is_never_handed_out(room: Room) -> None:
    batcher = room(Fake())
    assert refusal(submit(batcher, "good", "bad?")).code == "not_finite"
    submit(batcher, "good").future.result(60)


def test_a_device_that_fails_leaves_the_work_to_the_others(room: Room) -> None:
    broken, sound = Fake(broken=True), Fake()
    batcher = room(broken, sound)
    jobs = [submit(batcher, "a" * 60) for _ in range(50)]
    failed = [job for job in jobs if job.future.exception(5)]
    assert len(failed) <= 1, "only the batch that showed it"
    assert not batcher.failing
    assert len(broken.batches) <= 2
    submit(batcher, "a").future.result(60)


@pytest.mark.parametrize("shape", [(1,), (2, 8), (0, 8)])
def test_a_wrong_shape_is_a_failure(room: Room, shape: tuple[int, ...]) -> None:
    class Wrong(Fake):
        def __call__(self, tokens, *, pause):  # type: ignore[no-untyped-def]
            return np.zeros(shape) if len(tokens[0].input_ids) == 1 else super().__call__(tokens, pause=pause)

    assert refusal(submit(room(Wrong()), "x")).status == 500


def test_batches_shrink_where_pauses_are_far_apart_and_grow_again(room: Room) -> None:
    device = Fake(steps=2, step_s=0.01)
    batcher = room(device, batch_tokens=2048, pause_s=0.003)
    for _ in range(6):
        submit(batcher, *["a" * 256] * 8).future.result(60)
    assert batcher.workers[0].budget < 800
    device.step_s = 0.0
    for _ in range(30):
        submit(batcher, *["a" * 256] * 8).future.result(60)
    assert batcher.workers[0].budget > 1500


def test_closing_refuses_what_waits(room: Room) -> None:
    device = held()
    batcher = room(device)
    jobs = [submit(batcher, "a" * 60) for _ in range(3)]
    until(lambda: len(device.batches) == 1)
    device.hold.set()
    batcher.close()
    assert {refusal(job).status for job in jobs[1:]} == {503}
    assert not any(thread.is_alive() for thread in batcher._threads)
