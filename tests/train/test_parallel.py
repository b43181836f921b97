"""Two gloo processes against one process on the joined batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from training import job, log_of
from two_ranks import SCENARIOS

from nvembed.errors import ConfigError
from nvembed.train import checkpoint
from nvembed.train.loop import train
from nvembed.train.parallel import Ranks, join


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run all scenarios in two processes, once."""
    out = tmp_path_factory.mktemp("ranks")
    here = Path(__file__).parents[1] / "helpers"
    paths = [str(here), str(here.parent), *filter(None, sys.path)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(here / "two_ranks.py"), str(out)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize("name", list(SCENARIOS))
def test_two_ranks_are_one(folder: Path, tmp_path: Path, name: str) -> None:
    settings, _ = SCENARIOS[name]
    train(job(tmp_path, settings))
    one, two = (checkpoint.adapter_values(path / "last") for path in (tmp_path, folder / name))
    assert one.keys() == two.keys()
    start = job(tmp_path, settings).model.state_dict()
    moved = 0.0
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, atol=1e-6, rtol=0, msg=key)
        moved = max(moved, float((value - start[key]).abs().max()) if key in start else 0.0)
    assert moved > 1e-4
    for alone, both in zip(log_of(tmp_path), log_of(folder / name), strict=True):
        assert alone["tokens"] <= both["tokens"]  # a text of both shares is embedded in both
        assert both["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert both["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("name", ["uneven", "sharded"])
def test_killed_ranks_go_on_exactly(folder: Path, name: str) -> None:
    whole, resumed = folder / name, folder / f"{name}_resumed"
    assert log_of(whole) == log_of(resumed)
    one, two = (checkpoint.adapter_values(path / "last") for path in (whole, resumed))
    for key, value in one.items():
        assert torch.equal(two[key], value), key


def test_a_sharded_state_is_refused_unsharded(folder: Path) -> None:
    settings, _ = SCENARIOS["sharded"]
    made = job(folder / "sharded", settings)
    (folder / "sharded" / "settings.json").unlink()
    with pytest.raises(ConfigError, match="was saved sharded: resume it as it was started"):
        train(made)


def test_alone_without_torchrun() -> None:
    ranks, device = join("cpu")
    assert (ranks, device) == (Ranks(0, 1), torch.device("cpu"))
    vectors = torch.eye(3)
    assert ranks.gather(vectors, [3]) is vectors
    assert (ranks.most(4, device), ranks.total(5, device)) == (4, 5)
