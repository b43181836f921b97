import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Forks, forks
from training import TEACHER, examples, job, log_of, recipe, teach

from nvembed.data.example import Example
from nvembed.errors import ConfigError, DataError, NumericsError, NvembedError, OutputError
from nvembed.train import checkpoint
from nvembed.train.adapt import trained
from nvembed.train.log import StepRecord
from nvembed.train.loop import Encode, TrainingJob, TrainingOutcome, train


def state_of(folder: Path) -> dict[str, bytes]:
    last = checkpoint.latest(folder)
    assert last is not None
    return {path.name: path.read_bytes() for path in sorted(last.iterdir())}


def score_of_norm(encode: Encode) -> dict[str, float]:
    vectors = encode(["judo mask", "river", ""], "Instruct: Find it\nQuery: ")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    return {"first": float(vectors[0, 0]), "second": float(vectors[1, 1])}


class Killed(BaseException):
    """Stands for what no handler sees."""


def killed_at(step: int) -> object:
    def kill(record: StepRecord) -> None:
        if record.step == step:
            raise Killed

    return kill


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the recipe. Copy it before you change it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(job(folder, recipe()))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, 1),
        ({}, 4),
        ({"run": {"dtype": "bfloat16"}}, 5),
        ({"teacher": TEACHER}, 3),
        ({"adapter": {"kind": "full"}, "batch": {"graph_tokens": 100}}, 3),
        ({"adapter": {"frozen_layers": 1}, "run": {"activation_checkpointing": True}}, 5),
    ],
    ids=["unsaved", "saved", "bfloat16", "taught", "full", "frozen"],
)
def test_a_killed_run_goes_on_exactly(
    tmp_path: Path, changes: dict[str, dict[str, object]], step: int
) -> None:
    settings = recipe(**changes)

    def fresh(folder: Path) -> TrainingJob:
        made = job(folder, settings, evaluate=score_of_norm)
        return replace(made, model=made.model.to(getattr(torch, settings.run.dtype)))

    whole = train(fresh(tmp_path / "whole"))
    assert whole.progress.step == 6
    with pytest.raises(Killed):
        train(fresh(tmp_path / "killed"), report=killed_at(step))  # type: ignore[arg-type]
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"kind": "step", "st')  # the kill cut a line in two
    resumed = train(fresh(tmp_path / "killed"))
    assert resumed == whole
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "whole")


def test_last_and_best_are_kept_and_scores_are_logged(tmp_path: Path) -> None:
    scores = iter([0.3, 0.9, 0.5])
    outcome = train(job(tmp_path, recipe(), evaluate=lambda _: {"a": next(scores), "b": 0.0}))
    assert (outcome.progress.best_step, outcome.progress.best_score) == (4, 0.45)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00000004", "step-00000006"]
    assert (tmp_path / "best").resolve().name == "step-00000004"
    assert (tmp_path / "last").resolve().name == "step-00000006"
    found = [record for record in log_of(tmp_path) if record["kind"] == "scores"]
    assert found == [
        {"kind": "scores", "step": 2, "a": 0.3, "b": 0.0},
        {"kind": "scores", "step": 4, "a": 0.9, "b": 0.0},
        {"kind": "scores", "step": 6, "a": 0.5, "b": 0.0},
    ]


def test_threads_take_short_turns_while_it_runs_and_only_then(tmp_path: Path) -> None:
    before = sys.getswitchinterval()
    seen: set[float] = set()
    train(job(tmp_path, recipe()), report=lambda _: seen.add(sys.getswitchinterval()))
    assert max(seen) <= 1e-4
    assert sys.getswitchinterval() == before


def test_the_loss_falls_and_every_adapter_weight_moves(tmp_path: Path) -> None:
    settings = recipe(
        optimizer={"steps": 40, "learning_rate": 5e-3, "pooler_learning_rate": 5e-3},
        batch={"global_batch": 12, "in_batch_negatives": False},
        adapter={"dropout": 0.0},
        run={"evaluate_every": 40, "save_every": 40},
    )
    made = job(tmp_path, settings)
    before = {name: value.detach().clone() for name, value in made.model.named_parameters()}
    seen: list[StepRecord] = []
    train(made, report=seen.append)
    assert np.mean([s.loss for s in seen[-5:]]) < 0.7 * np.mean([s.loss for s in seen[:5]])
    for name, value in made.model.named_parameters():
        plain = name.replace(".base_layer", "")
        if plain in before and name.startswith("embedding_model."):
            assert torch.equal(value, before[plain]), f"{name} is frozen"
        elif plain in before:
            assert not torch.equal(value, before[plain]), f"{name} did not move"
        elif "lora_B" in name:
            assert value.abs().max() > 0, f"{name} did not move"


def test_a_teachers_neighbourhoods_are_learnt(tmp_path: Path) -> None:
    """Of texts that no step has seen: cosines follow the teacher's more closely than without it."""
    texts = [example.query for example in examples(1_000, 40)]
    right = teach([("", text) for text in texts])
    others = ~np.eye(len(texts), dtype=bool)

    def follows(encode: Encode) -> dict[str, float]:
        found = encode(texts, "")
        return {"follows": float(np.corrcoef((found @ found.T)[others], (right @ right.T)[others])[0, 1])}

    plain = {
        "optimizer": {"steps": 40, "learning_rate": 5e-3, "pooler_learning_rate": 5e-3},
        "batch": {"global_batch": 12},
        "adapter": {"dropout": 0.0},
        "run": {"evaluate_every": 40, "save_every": 40},
    }
    without = train(job(tmp_path / "without", recipe(**plain), evaluate=follows)).progress.best_score
    taught = recipe(**plain, teacher={**TEACHER, "weight": 5.0})
    with_one = train(job(tmp_path / "with", taught, evaluate=follows)).progress.best_score
    assert without is not None
    assert with_one is not None
    assert with_one > without + 0.1


def test_every_lora_parameter_has_a_gradient_after_the_first_step(tmp_path: Path) -> None:
    made = job(tmp_path, recipe(adapter={"dropout": 0.0}))
    norms: dict[str, float] = {}

    def watch(name: str, gradient: torch.Tensor) -> None:
        norms[name] = float(gradient.norm())

    def hook(record: StepRecord) -> None:
        if record.step == 1:
            for name, value in trained(made.model).items():
                value.register_hook(lambda gradient, name=name: watch(name, gradient))

    train(made, report=hook)
    lora = {name: norm for name, norm in norms.items() if "lora" in name}
    assert len(lora) == 2 * 7 * 2
    assert all(norm > 0 for norm in lora.values())


def test_stage_2_starts_from_the_adapter_of_stage_1_with_a_new_optimizer(tmp_path: Path) -> None:
    train(job(tmp_path / "one", recipe()))
    first = checkpoint.adapter_values(tmp_path / "one" / "last")
    slow = recipe(
        optimizer={"steps": 1, "warmup_steps": 0, "learning_rate": 1e-12, "pooler_learning_rate": 1e-12}
    )
    train(job(tmp_path / "two", slow, start=tmp_path / "one" / "last"))
    second = checkpoint.adapter_values(tmp_path / "two" / "last")
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-6, rtol=0)
    other = recipe(adapter={"targets": ["q_proj"]})
    with pytest.raises(
        ConfigError, match=r"saved state is of another adapter: 24 tensors differ.*new folder"
    ):
        train(job(tmp_path / "three", other, start=tmp_path / "one" / "last"))


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(job(tmp_path, recipe(optimizer={"steps": 3})))
    with pytest.raises(
        OutputError,
        match=r"another recipe\.optimizer\.steps \(.*there: 3, here: 4\).*another folder",
    ):
        train(job(tmp_path, recipe(optimizer={"steps": 4})))
    with pytest.raises(OutputError, match=r"is of a run with another base"):
        train(job(tmp_path, recipe(optimizer={"steps": 3}), identity={"base": "other"}))
    seen: list[StepRecord] = []
    changed = recipe(optimizer={"steps": 3}, run={"save_every": 9, "log_every": 5})
    assert train(job(tmp_path, changed), report=seen.append).progress.step == 3
    assert not seen, "a finished run takes no further step"


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_state(tmp_path: Path) -> None:
    made = job(tmp_path, recipe())

    def poison(record: StepRecord) -> None:
        if record.step == 3:
            with torch.no_grad():
                made.model.embedding_model.norm.weight.fill_(float("nan"))

    with pytest.raises(NumericsError, match=r"step 4: the loss is nan; .* the last saved state is untouched"):
        train(made, report=poison)
    assert (tmp_path / "last").resolve().name == "step-00000002"
    assert all(torch.isfinite(value).all() for value in checkpoint.adapter_values(tmp_path / "last").values())


def test_a_full_disk_leaves_the_state_before(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        written = iter([checkpoint.save_file] * 3 + [no_space])  # state 2 is three files; the fourth fails
        patch.setattr(checkpoint, "save_file", lambda *a, **k: next(written)(*a, **k))
        with pytest.raises(OutputError, match=r"could not write .*step-00000004: No space left"):
            train(job(tmp_path / "full", recipe()))
    assert [path.name for path in (tmp_path / "full").glob("*step-*")] == ["step-00000002"]
    train(job(tmp_path / "full", recipe()))
    assert state_of(tmp_path / "full") == state_of(finished)


def test_a_disk_that_is_really_full(tmp_path: Path, finished: Path) -> None:
    """The kernel refuses to let a file grow: the adapter fits, the optimizer's state does not."""
    sizes = {name: len(content) for name, content in state_of(finished).items()}
    limit = sizes["optimizer.safetensors"] - 1
    assert limit > max(size for name, size in sizes.items() if name != "optimizer.safetensors")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OutputError, match=r"could not write .*File too large"):
            train(job(tmp_path / "full", recipe()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == ["log.jsonl", "settings.json"]
    train(job(tmp_path / "full", recipe()))
    assert log_of(tmp_path / "full") == log_of(finished)
    assert state_of(tmp_path / "full") == state_of(finished)


# A process that is killed by itself in the midst of writing the state of step 4.
KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from training import job, recipe
from nvembed.train import checkpoint
from nvembed.train.loop import train

def die():
    os.kill(os.getpid(), signal.SIGKILL)

save_file, point, calls = checkpoint.save_file, checkpoint.point, []

def half(values, path, metadata):
    save_file(values, path, metadata=metadata)
    calls.append(path)
    if len(calls) == 6:  # three files a state
        os.truncate(path, path.stat().st_size // 2)
        die()

if sys.argv[2] == "half a file":
    checkpoint.save_file = half
else:  # the state is whole, the link still points to the one before
    checkpoint.point = lambda folder, progress: die() if progress.step == 4 else point(folder, progress)
train(job(Path(sys.argv[1]), recipe()))
"""


# A process that trains in a folder. It asks itself to end after step ``until``, or kills itself a moment
# after step 5.
TRAIN_ALONE = """
import os, random, signal, sys, threading
from pathlib import Path
from training import job, recipe
from nvembed.train.loop import train

folder, steps, until, kill = sys.argv[1], *map(int, sys.argv[2:])

def report(record):
    if record.step == until:
        os.kill(os.getpid(), signal.SIGTERM)
    if record.step == 5 and kill:
        delay = random.Random(kill).uniform(0, 0.3)
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

settings = recipe(optimizer={"steps": steps}, run={"save_every": 1}) if steps else recipe()
train(job(Path(folder), settings), report=report)
"""


@pytest.fixture(scope="module")
def processes() -> Iterator[Forks]:
    """Runs whose numbers are compared to the last digit are all of processes of their own: what else a test
    process has loaded can change how sums are rounded.
    """
    with forks("training", "peft", "nvembed.train.loop") as made:
        yield made


def train_alone(processes: Forks, folder: Path, *, steps: int = 0, until: int = 0, kill: int = 0) -> int:
    return processes.run(TRAIN_ALONE, folder, *map(str, (steps, until, kill))).returncode


@pytest.fixture(scope="module")
def undisturbed(processes: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end, in a process of its own."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train_alone(processes, folder) == 0
    return folder


@pytest.mark.parametrize(("moment", "reached"), [("half a file", 2), ("before the link", 4)])
def test_sigkill_during_a_checkpoint_write(
    tmp_path: Path, processes: Forks, undisturbed: Path, moment: str, reached: int
) -> None:
    done = processes.run(KILLED_WHILE_WRITING, tmp_path / "killed", moment)
    assert done.returncode == -signal.SIGKILL
    last = checkpoint.latest(tmp_path / "killed")
    assert last is not None
    assert last.name == f"step-{reached:08}"
    assert bool(list((tmp_path / "killed").glob(".step-*"))) == (moment == "half a file")  # to be tidied
    assert (tmp_path / "killed" / "last").resolve().name == "step-00000002"
    assert train_alone(processes, tmp_path / "killed") == 0
    assert not list((tmp_path / "killed").glob(".step-*"))
    assert log_of(tmp_path / "killed") == log_of(undisturbed)
    assert state_of(tmp_path / "killed") == state_of(undisturbed)


def test_what_a_kill_during_a_write_left_is_removed(run: Path) -> None:
    left = run / ".step-00000004.abcdef" / "step-00000004"
    left.mkdir(parents=True)
    (left / "optimizer.safetensors").write_bytes(b"half")
    train(job(run, recipe()))
    assert not left.parent.exists()


def test_a_corrupt_state_is_named(run: Path) -> None:
    path = run / "step-00000006" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"optimizer.safetensors is damaged"):
        train(job(run, recipe()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_and_goes_on_later(
    tmp_path: Path, finished: Path, number: signal.Signals
) -> None:
    def ask(record: StepRecord) -> None:
        if record.step == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    outcome: TrainingOutcome = train(job(tmp_path / "run", recipe()), report=ask)
    assert (outcome.stopped, outcome.progress.step) == (True, 3)
    assert signal.getsignal(number) is before
    assert (tmp_path / "run" / "last").resolve().name == "step-00000003"
    assert train(job(tmp_path / "run", recipe())).stopped is False
    assert log_of(tmp_path / "run") == log_of(finished)
    assert state_of(tmp_path / "run") == state_of(finished)


def test_a_fault_in_the_data_ends_the_run_with_its_message(tmp_path: Path) -> None:
    def broken(step: int, size: int) -> Sequence[Example]:
        return examples(step, size) if step < 2 else []

    with pytest.raises(ValueError, match="expected a batch of one example or more, got none"):
        train(job(tmp_path, recipe(), examples=broken))


def test_sigkill_at_any_moment(tmp_path: Path, processes: Forks) -> None:
    """A real process, killed while it trains and writes states after every step."""
    assert train_alone(processes, tmp_path / "killed", steps=400, kill=1) == -signal.SIGKILL
    last = checkpoint.latest(tmp_path / "killed")
    assert last is not None
    reached = int(last.name.removeprefix("step-"))
    assert 4 <= reached < 400
    for folder in (tmp_path / "killed", tmp_path / "whole"):
        assert train_alone(processes, folder, steps=400, until=reached + 2) == 0
    assert log_of(tmp_path / "killed")[-1]["step"] == reached + 2
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    assert state_of(tmp_path / "killed") == state_of(tmp_path / "whole")


EVALUATED = {"save_every": 3}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with evaluations."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    train(job(folder, recipe(run=EVALUATED), evaluate=score_of_norm))
    return folder


@pytest.mark.parametrize("step", [2, 6])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_a_step_that_evaluates(
    tmp_path: Path, evaluated: Path, step: int, number: signal.Signals
) -> None:
    """The evaluation is made up for at resume: log, links and states are those of an undisturbed run."""

    def ask(record: StepRecord) -> None:
        if record.step == step:
            os.kill(os.getpid(), number)

    settings, folder = recipe(run=EVALUATED), tmp_path / "stopped"
    outcome = train(job(folder, settings, evaluate=score_of_norm), report=ask)
    assert (outcome.signal, outcome.progress.step) == (number, step)
    assert not any(each["kind"] == "scores" and each["step"] == step for each in log_of(folder))
    outcome = train(job(folder, settings, evaluate=score_of_norm))
    assert (outcome.signal, outcome.progress.step) == (None, 6)
    assert log_of(folder) == log_of(evaluated)
    assert state_of(folder) == state_of(evaluated)
    names = [sorted(path.name for path in each.glob("step-*")) for each in (folder, evaluated)]
    assert names[0] == names[1]
    for link in ("best", "last"):
        assert len({(each / link).resolve().name for each in (folder, evaluated)}) == 1


def test_a_state_that_a_made_up_evaluation_replaces_is_removed(tmp_path: Path) -> None:
    scores = iter([0.1, 0.2, 0.3])

    def made() -> TrainingJob:
        return job(tmp_path, recipe(run=EVALUATED), evaluate=lambda _: {"a": next(scores)})

    def ask(record: StepRecord) -> None:
        if record.step == 6:
            os.kill(os.getpid(), signal.SIGINT)

    assert train(made(), report=ask).signal == signal.SIGINT
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000004", "step-00000006"]
    assert train(made()).progress.best_step == 6
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000006"]


@pytest.mark.parametrize("link", ["best", "last"])
def test_links_are_made_again(tmp_path: Path, link: str) -> None:
    outcome = train(job(tmp_path, recipe(), evaluate=score_of_norm))
    target = (tmp_path / link).resolve()
    (tmp_path / link).unlink()
    (tmp_path / link).symlink_to("step-00000001")
    assert train(job(tmp_path, recipe(), evaluate=score_of_norm)) == outcome
    assert (tmp_path / link).resolve() == target


def test_damaged_states_are_refused(tmp_path: Path, run: Path) -> None:
    """One flipped byte in any file, at its beginning, middle or end."""
    last = (run / "last").resolve()
    for path in sorted(last.iterdir()):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 3):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(NvembedError, match=r"remove .*step-00000006"):
                checkpoint.read_state(last)
        with pytest.raises(NvembedError, match=r"remove .*step-00000006"):
            train(job(run, recipe()))
        path.write_bytes(whole)
    whole = (last / "state.json").read_bytes()
    for content in (b"", b"{", b"[]", b"null", b'{"step": "6"}', whole[:40]):
        (last / "state.json").write_bytes(content)
        with pytest.raises(NvembedError, match=r"(?s)state.json.*remove .*step-00000006"):
            checkpoint.read_state(last)
    (last / "state.json").write_bytes(whole)
    (last / "pooler.safetensors").unlink()
    with pytest.raises(NvembedError, match=r"pooler.safetensors is missing"):
        train(job(run, recipe()))
    with pytest.raises(NvembedError, match=r"pooler.safetensors is missing"):
        train(job(tmp_path / "two", recipe(), start=last))


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
def test_damaged_settings_are_refused(run: Path, content: str) -> None:
    (run / "settings.json").write_text(content)
    with pytest.raises(OutputError, match=r"settings.json"):
        train(job(run, recipe()))


@pytest.mark.parametrize("line", ["3", "[]", "{}", '{"step": "x"}', "{", "\xff"])
def test_an_odd_line_of_the_log_is_named(run: Path, line: str) -> None:
    path = run / "log.jsonl"
    whole = path.read_bytes()
    path.write_bytes(line.encode("latin-1") + b"\n" + whole)
    with pytest.raises(DataError, match=r"log.jsonl:1: expected a log record"):
        train(job(run, recipe()))


@pytest.mark.parametrize("lost", [(1, 2), (-1, None), (0, None)])
def test_lost_lines_of_the_log_are_noticed(run: Path, lost: tuple[int, int | None]) -> None:
    path = run / "log.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    del lines[slice(*lost)]
    path.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"log.jsonl: \d+ steps are missing"):
        train(job(run, recipe()))
    path.unlink()  # the cure
    assert train(job(run, recipe())).progress.step == 6


def test_a_run_of_an_earlier_version_is_resumed(run: Path) -> None:
    """Its settings lack keys that recipes have now, and its state has no digests."""
    settings = json.loads((run / "settings.json").read_text())
    for section, key in (("batch", "group"), ("optimizer", "offload"), ("adapter", "targets")):
        del settings["recipe"][section][key]
    (run / "settings.json").write_text(json.dumps(settings))
    state = run / "last" / "state.json"
    state.write_text('{"step": 6, "best_step": null, "best_score": null}\n')
    assert train(job(run, recipe())).progress.step == 6
    with pytest.raises(OutputError, match=r"another recipe\.batch\.group"):
        train(job(run, recipe(batch={"group": 3})))


def test_states_can_be_read_by_whoever_may_read_new_files(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "plain").write_text("")
    mode = (tmp_path / "plain").stat().st_mode
    assert {path.stat().st_mode for path in (finished / "last").iterdir()} == {mode}


def test_the_plan_is_announced_before_the_first_step(tmp_path: Path) -> None:
    events: list[str] = []
    train(job(tmp_path, recipe()), announce=events.append, report=lambda record: events.append("step"))
    assert events.count("step") == 6
    for part in ("6 steps of 6 queries", "tokens a step", "parameters are trained (lora)", "memory: weights"):
        assert part in events[0]
    events.clear()
    train(job(tmp_path, recipe()), announce=events.append)
    assert not events, "a finished run has no plan"
