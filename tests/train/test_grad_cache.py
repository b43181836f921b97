import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_sentence import sentence_folder
from torch import Tensor
from training import examples, recipe, tiny

from nvembed.data.collate import collate
from nvembed.model.nv_embed import NVEmbed
from nvembed.train.adapt import adapt, checkpoint_activations, frozen_layers, trained
from nvembed.train.grad_cache import backward, embed, seeded
from nvembed.train.loss import Terms, info_nce, loss_and_gradient
from nvembed.train.step_batch import MicroBatch, StepBatch, micro_batches, step_batch, tokenise
from nvembed.weights.checkpoint import load_model, load_tokenizer, open_checkpoint

CPU = torch.device("cpu")


def batch_of(tokenizer: object, max_tokens: int) -> tuple[StepBatch, list[MicroBatch]]:
    plan = step_batch(collate(examples(0, 8), negatives=2, in_batch=True), ranks=1, gather=True)
    tokens = tokenise(plan.texts, tokenizer, 64)  # type: ignore[arg-type]
    return plan, micro_batches(tokens, max_tokens, CPU)


def plain_backward(model: NVEmbed, plan: StepBatch, work: list[MicroBatch], seed: int) -> dict[str, Tensor]:
    """One graph over the whole batch, one backward. Dropout is seeded as the cache seeds it."""
    vectors = torch.empty(len(plan.texts), model.config.backbone.hidden_size)
    for number, batch in enumerate(work):
        with seeded(seed, number, batch):
            vectors = vectors.index_copy(0, batch.rows, model(batch.packed))
    losses = info_nce(
        vectors[plan.query_rows],
        vectors[plan.passage_rows],
        positive_Q=plan.positive,
        allowed_QC=plan.allowed,
        temperature=0.05,
    )
    losses.mean().backward()
    return take_gradients(model)


def take_gradients(model: NVEmbed) -> dict[str, Tensor]:
    found = {}
    for name, value in trained(model).items():
        assert value.grad is not None, name
        found[name] = value.grad.clone()
        value.grad = None
    return found


@pytest.mark.parametrize("family", ["bert", "mpnet", "gemma3"])
def test_other_backbones_equal_plain_backward(tmp_path: Path, family: str) -> None:
    sentence_folder(tmp_path / "model", family, dense=(12,))
    checkpoint = open_checkpoint(tmp_path / "model")
    batch = collate(examples(0, 8), negatives=2, in_batch=True, prompts=lambda _: ("", ""))
    plan = step_batch(batch, ranks=1, gather=True)
    pieces = micro_batches(tokenise(plan.texts, load_tokenizer(checkpoint), 24), 60, CPU)
    assert len(pieces) > 2
    gradients = []
    for graph_tokens in (0, 10_000):
        model = load_model(checkpoint, device="cpu", dtype=torch.float32, fold=False)
        adapt(model, recipe(adapter={"kind": "full"}).adapter, seed=0)
        backward(partial(embed, model), pieces, partial(gradient_of, plan), seed=1, graph_tokens=graph_tokens)
        gradients.append(take_gradients(model))
    for name, value in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], value, atol=1e-5, rtol=1e-4)
        assert torch.isfinite(value).all()


def gradient_of(plan: StepBatch, vectors: Tensor) -> Tensor:
    return loss_and_gradient(
        vectors,
        query_rows=plan.query_rows,
        passage_rows=plan.passage_rows,
        positive_Q=plan.positive,
        allowed_QC=plan.allowed,
        terms=Terms(temperature=0.05),
    )[1]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["lora", "full", "none"])
@pytest.mark.parametrize("graph_tokens", [0, 150, 10_000])
def test_equals_plain_backward(kind: str, dropout: float, graph_tokens: int) -> None:
    model, tokenizer = tiny()
    settings = recipe(adapter={"kind": kind, "dropout": dropout}).adapter
    adapt(model, settings, seed=1)
    with torch.no_grad():  # adapters start at zero, where half of their gradients vanish
        for name, value in trained(model).items():
            if "lora_B" in name:
                value.normal_(0, 0.2)
    plan, work = batch_of(tokenizer, 80)
    assert len(work) > 3
    expected = plain_backward(model, plan, work, seed=7)
    backward(
        partial(embed, model, frozen_layers=frozen_layers(model, settings)),
        work,
        partial(gradient_of, plan),
        seed=7,
        graph_tokens=graph_tokens,
    )
    found = take_gradients(model)
    assert found.keys() == expected.keys()
    assert kind != "lora" or sum("lora" in name for name in found) == 2 * 7 * 2
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)
        assert value.abs().max() > 1e-4, name


def test_the_split_changes_nothing() -> None:
    gradients = []
    for max_tokens in (40, 10_000):
        model, tokenizer = tiny()
        adapt(model, recipe(adapter={"dropout": 0.0}).adapter, seed=1)
        plan, work = batch_of(tokenizer, max_tokens)
        backward(partial(embed, model), work, partial(gradient_of, plan), seed=0)
        gradients.append(take_gradients(model))
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_dropout_differs_between_steps_and_leaves_the_random_state_alone() -> None:
    model, tokenizer = tiny()
    adapt(model, recipe(adapter={"dropout": 0.5}).adapter, seed=1)
    with torch.no_grad():
        for name, value in trained(model).items():
            if "lora_B" in name:
                value.normal_()
    _, work = batch_of(tokenizer, 80)
    before = torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed, 0, work[0]):
            drawn.append(embed(model, work[0]).detach())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_frozen_layers_run_once_and_give_the_same_gradient() -> None:
    settings = recipe(adapter={"frozen_layers": 1, "dropout": 0.3}).adapter
    model, tokenizer = tiny()
    adapt(model, settings, seed=1)
    assert not any(name.startswith("embedding_model.layers.0") for name in trained(model))
    plan, work = batch_of(tokenizer, 80)
    expected = plain_backward(model, plan, work, seed=7)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.embedding_model.layers[0].register_forward_hook(count)
    backward(partial(embed, model, frozen_layers=1), work, partial(gradient_of, plan), seed=7)
    assert calls == len(work)
    assert all(batch.states is None for batch in work)
    for name, value in take_gradients(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)


def test_activation_checkpointing_gives_the_same_gradient() -> None:
    model, tokenizer = tiny()
    adapt(model, recipe(adapter={"dropout": 0.3}).adapter, seed=1)
    plan, work = batch_of(tokenizer, 80)
    expected = plain_backward(model, plan, work, seed=7)
    checkpoint_activations(model)
    backward(partial(embed, model), work, partial(gradient_of, plan), seed=7)
    for name, value in take_gradients(model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_layers_give_the_same_gradient() -> None:
    """In a process of its own, as torch.compile warns within itself."""
    script = Path(__file__).parents[1] / "helpers" / "compiled_layers.py"
    search = [str(script.parent), str(script.parent.parent), str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {search!r}; import compiled_layers"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
