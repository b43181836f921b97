"""What a run is bound to: the state it starts from, its folder, a disk that takes its log."""

import json
import resource
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from training import job, recipe

from nvembed.errors import ConfigError, OutputError
from nvembed.train.loop import train

ONE_STEP = {"steps": 1, "warmup_steps": 0}


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"rank": 2}, r"saved state is of another adapter: 28 tensors differ"),
        ({"alpha": 16}, r"adapter.alpha is 16, that of .*last is 8"),
    ],
)
def test_a_start_of_another_adapter_is_refused_and_leaves_no_claim(
    tmp_path: Path, adapter: dict[str, Any], said: str
) -> None:
    first = recipe(optimizer=ONE_STEP)
    train(job(tmp_path / "one", first))
    with pytest.raises(ConfigError, match=said):
        train(job(tmp_path / "two", recipe(adapter=adapter), start=tmp_path / "one" / "last"))
    assert train(job(tmp_path / "two", first, start=tmp_path / "one" / "last")).progress.step == 1


def test_a_disk_without_room_for_the_log(tmp_path: Path) -> None:
    settings = recipe(run={"save_every": 100, "evaluate_every": 100})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def shrink(_: object) -> None:
        size = (tmp_path / "log.jsonl").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, before[1]))

    try:
        with pytest.raises(
            OutputError, match=r"could not write .*log\.jsonl: File too large; the last saved"
        ):
            train(job(tmp_path, settings), report=shrink)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    train(job(tmp_path, settings))
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("section", "said"),
    [({"adapter": {"targets": ()}}, "adapter.targets"), ({"run": {"seed": 2**64}}, "run.seed")],
)
def test_values_that_nothing_could_run_with(section: dict[str, dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        recipe(**section)
