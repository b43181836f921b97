from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from training import job, recipe

from nvembed.errors import ConfigError, NumericsError
from nvembed.train.loop import train
from nvembed.train.optim import Optimizer, learning_rate

NAMES = ("embedding_model.weight", "embedding_model.norm", "pooler.weight")


def parameters(dtype: torch.dtype = torch.float32) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    shapes = ((4, 3), (3,), (2, 3))
    return {n: nn.Parameter(torch.randn(s).to(dtype)) for n, s in zip(NAMES, shapes, strict=True)}


def test_schedule_rises_in_a_line_and_falls_in_a_line_to_zero() -> None:
    settings = recipe(optimizer={"steps": 10, "warmup_steps": 4}).optimizer
    rates = [learning_rate(step, 1.0, settings) for step in range(11)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0.0])


def by_hand(value: float, gradients: list[float], rates: list[float], decay: float) -> float:
    """AdamW on one number, as its paper says it."""
    first = second = 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        value -= rate * decay * value
        value -= rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)) ** 0.5 + 1e-8)
    return value


@pytest.mark.parametrize(
    ("name", "decay", "peak"), list(zip(NAMES, (0.03, 0.0, 0.03), (0.1, 0.1, 0.5), strict=True))
)
def test_against_adamw_by_hand(name: str, decay: float, peak: float) -> None:
    """Matrices decay and vectors do not; the pooler has its own rate."""
    settings = recipe(
        optimizer={"steps": 6, "learning_rate": 0.1, "pooler_learning_rate": 0.5, "max_grad_norm": 1e9}
    ).optimizer
    values = parameters()
    optimizer = Optimizer(values, settings)
    before = float(values[name].flatten()[1].detach())
    gradients = [0.3, -0.7, 0.2]
    for number, gradient in enumerate(gradients):
        for value in values.values():
            value.grad = torch.full_like(value, gradient)
        optimizer.collect()
        optimizer.step(number)
    rates = [learning_rate(number, peak, settings) for number in range(3)]
    assert float(values[name].flatten()[1].detach()) == pytest.approx(
        by_hand(before, gradients, rates, decay), abs=1e-6
    )


def test_gradients_of_micro_batches_add_up_and_their_norm_is_clipped() -> None:
    values = parameters()
    optimizer = Optimizer(values, recipe(optimizer={"max_grad_norm": 0.5}).optimizer)
    for _ in range(2):
        for value in values.values():
            value.grad = torch.ones_like(value) if value.grad is None else value.grad + 1
        optimizer.collect()
    total = sum(value.numel() for value in values.values())
    assert torch.equal(torch.cat([g.flatten() for g in optimizer.gradients()]), torch.full((total,), 2.0))
    assert optimizer.step(0) == pytest.approx(2 * total**0.5)
    assert all(not gradient.any() for gradient in optimizer.gradients()), "the next step starts from nothing"


def test_masters_keep_what_bfloat16_cannot() -> None:
    """A thousand steps too small for bfloat16 move the weights all the same."""
    settings = recipe(
        optimizer={"steps": 2000, "warmup_steps": 1, "learning_rate": 1e-5, "weight_decay": 0.0}
    ).optimizer
    moved = {}
    for wanted in (True, False):
        values = parameters(torch.bfloat16)
        before = values[NAMES[0]].detach().clone()
        optimizer = Optimizer(values, settings.model_copy(update={"master_weights": wanted}))
        for number in range(1000):
            for value in values.values():
                value.grad = torch.ones_like(value)
            optimizer.collect()
            optimizer.step(number)
        moved[wanted] = float((values[NAMES[0]].detach() - before).float().abs().mean())
    assert moved[True] == pytest.approx(0.0075, rel=0.2)
    assert moved[False] < 0.002


def test_offload_needs_masters_and_whole_weights(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="master_weights = true with offload"):
        recipe(optimizer={"offload": True, "master_weights": False})
    made = job(tmp_path, recipe(optimizer={"offload": True}))
    with pytest.raises(ConfigError, match=r"optimizer\.offload .* not with --sharded"):
        train(made, sharded=True)
    assert not list(tmp_path.iterdir()), "refused before anything is written"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_goes_on_exactly(dtype: torch.dtype) -> None:
    def steps(optimizer: Optimizer, values: dict[str, nn.Parameter], numbers: range) -> None:
        for number in numbers:
            for value in values.values():
                value.grad = torch.full_like(value, 0.1 * number - 0.2)
            optimizer.collect()
            optimizer.step(number)

    settings = recipe().optimizer
    values = parameters(dtype)
    optimizer = Optimizer(values, settings)
    steps(optimizer, values, range(3))
    state = {name: value.clone() for name, value in optimizer.state().items()}
    copied = {name: nn.Parameter(value.detach().clone()) for name, value in values.items()}
    again = Optimizer(copied, settings)
    again.load_state(state)
    steps(optimizer, values, range(3, 6))
    steps(again, copied, range(3, 6))
    assert all(torch.equal(copied[name], value) for name, value in values.items())
    assert again.empty_state().keys() == state.keys()


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    values = parameters()
    before = {name: value.detach().clone() for name, value in values.items()}
    optimizer = Optimizer(values, recipe().optimizer)
    values[NAMES[1]].grad = torch.full((3,), float("inf"))
    optimizer.collect()
    with pytest.raises(NumericsError, match=r"the gradient's norm is .*lower the learning rate"):
        optimizer.step(0)
    assert all(torch.equal(before[name], value) for name, value in values.items())
