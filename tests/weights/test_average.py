"""The mean of states of training."""

from pathlib import Path

import pytest
import torch
from training import job, recipe

from conftest import TINY_A
from nvembed.cli.average import average as command
from nvembed.errors import InputError, OutputError, WeightsError
from nvembed.train.loop import train
from nvembed.weights.adapter import read_adapter
from nvembed.weights.average import average
from nvembed.weights.checkpoint import merged_tensors, open_checkpoint


def state(folder: Path, seed: int, **adapter: object) -> Path:
    rates = {"learning_rate": 0.01 * seed, "pooler_learning_rate": 0.01 * seed}
    train(job(folder, recipe(adapter=adapter, run={"seed": seed}, optimizer=rates)))
    return (folder / "last").resolve()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(merged_tensors(open_checkpoint(TINY_A), read_adapter(folder), dtype=torch.float32))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"kind": "lora", "rank": 4, "alpha": 8}, {"kind": "lora", "rank": 2, "alpha": 16}),
        ({"kind": "full"}, {"kind": "full"}),
        ({"kind": "none"}, {"kind": "none"}),
    ],
)
def test_the_mean_of_the_weights(tmp_path: Path, one: dict[str, object], other: dict[str, object]) -> None:
    states = [state(tmp_path / "a", 1, **one), state(tmp_path / "b", 2, **other)]
    a, b = map(weights, states)
    average(states, tmp_path / "mean", shares=[3, 1])
    found = weights(tmp_path / "mean")
    for name in a:
        expected = 0.75 * a[name].double() + 0.25 * b[name].double()
        torch.testing.assert_close(found[name].double(), expected, atol=1e-6, rtol=1e-5, msg=name)
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_three_states_weigh_the_same_and_the_rank_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states = [state(tmp_path / str(n), n, kind="lora", rank=2, alpha=4) for n in (1, 2, 3)]
    command(*states, out=tmp_path / "mean")
    assert capsys.readouterr().out == f"{tmp_path / 'mean'}: the mean of 3 states, adapter of rank 6\n"
    all_weights, found = [weights(one) for one in states], weights(tmp_path / "mean")
    for name in found:
        expected = sum(one[name].double() for one in all_weights) / 3
        torch.testing.assert_close(found[name].double(), expected, atol=1e-6, rtol=1e-5, msg=name)


def test_what_cannot_be_averaged(tmp_path: Path) -> None:
    low, pooler = state(tmp_path / "a", 1, kind="lora"), state(tmp_path / "b", 1, kind="none")
    with pytest.raises(WeightsError, match=r"change different tensors \(14, such as embedding_model"):
        average([low, pooler], tmp_path / "mean")
    with pytest.raises(InputError, match="expected two or more states to average, got 1"):
        average([low], tmp_path / "mean")
    for shares in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(InputError, match="expected 2 numbers above 0, one per state"):
            average([low, low], tmp_path / "mean", shares=shares)
    assert not (tmp_path / "mean").exists()
    (tmp_path / "mean").mkdir()
    with pytest.raises(OutputError, match="exists already"):
        average([low, low], tmp_path / "mean")
