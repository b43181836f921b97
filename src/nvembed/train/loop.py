"""The training loop: one for both stages, one process or many.

Shapes: U distinct texts, D hidden size, E the teacher's dimensions.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvembed.data.collate import collate
from nvembed.data.example import Example
from nvembed.errors import ConfigError, NumericsError
from nvembed.files import claim
from nvembed.model.nv_embed import NVEmbed
from nvembed.text.tokenize import TextTokenizer, Tokens
from nvembed.train import checkpoint
from nvembed.train.adapt import (
    adapt,
    checkpoint_activations,
    compile_layers,
    frozen_layers,
    trained,
)
from nvembed.train.checkpoint import Progress
from nvembed.train.grad_cache import backward, embed, kept_graphs
from nvembed.train.loss import Guide, loss_and_gradient
from nvembed.train.optim import Optimizer, learning_rate
from nvembed.train.parallel import Ranks, shard
from nvembed.train.recipe import StageRecipe
from nvembed.train.step_batch import MicroBatch, StepBatch, micro_batches, step_batch, tokenise
from nvembed.train.watch import Log, Step

Encode = Callable[[Sequence[str], str], np.ndarray]
Teach = Callable[[Sequence[tuple[str, str]]], np.ndarray]


@dataclass(frozen=True)
class Job:
    """What is trained, on what, how, and where it is kept.

    Attributes:
        model: plain (unfolded), on its device, in the recipe's dtype.
        examples: (step, size) -> that step's examples, as ``data.blend.Blend.batch``.
        folder: gets the log and the states; a run that is there already goes on.
        identity: what else decides the result (base, data): a run goes on only if it is the same.
        evaluate: given ``encode``, returns scores on a development set; their mean chooses the best state.
        start: a state whose trained tensors are taken over; the optimizer starts anew (paper: Table 11).
        base: what the adapter's config names as its backbone.
        teach: (prompt, text) pairs to the teacher's unit vectors (n, E) float32; given if the recipe
            has a ``[teacher]``. Called from a thread that reads ahead.
    """

    model: NVEmbed
    tokenizer: TextTokenizer
    recipe: StageRecipe
    examples: Callable[[int, int], Sequence[Example]]
    folder: Path
    identity: Mapping[str, Any]
    evaluate: Callable[[Encode], Mapping[str, float]] | None = None
    start: Path | None = None
    base: str = "."
    teach: Teach | None = None


@dataclass(frozen=True)
class Outcome:
    progress: Progress
    stopped: bool  # by Ctrl-C or SIGTERM, before the last step


def train(
    job: Job,
    *,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    sharded: bool = False,
    report: Callable[[Step], None] = lambda _: None,
    tensorboard: bool = False,
) -> Outcome:
    """Train until the recipe's last step, or until the process is asked to end; then the state is saved.

    A run that is started again with the same job goes on from its last state, and its trajectory is that of
    an uninterrupted run.

    Args:
        sharded: spread the weights over the ranks (FSDP2).
        report: called after every step, on the first rank.

    Raises:
        OutputError: ``job.folder`` is of another run, or a state could not be written.
        NumericsError: the loss or the gradient is not finite; the last saved state is left as it was.
        ConfigError: offload and sharded; or see ``adapt`` and ``checkpoint.load``, also MissingExtraError.
    """
    recipe, model, device = job.recipe, job.model, job.model.device
    if sharded and recipe.optimizer.offload:
        raise ConfigError("optimizer.offload is for weights that are whole on one GPU: not with --sharded")
    adapt(model, recipe.adapter, seed=recipe.run.seed)
    if job.start is not None:
        checkpoint.start_from(job.start, model, recipe.adapter)
    if ranks.first:  # only now: what is wrong with the recipe or the start leaves no claim behind
        claim(job.folder / "settings.json", _decides(job, ranks))
    ranks.wait()
    if recipe.run.compile:
        compile_layers(model)
    if recipe.run.activation_checkpointing:
        checkpoint_activations(model)
    if sharded:
        shard(model, device, getattr(torch, recipe.run.dtype))
    model.train()
    optimizer = Optimizer(trained(model), recipe.optimizer)
    progress = Progress()
    last = checkpoint.latest(job.folder)
    if last is not None:
        progress = checkpoint.load(last, model, optimizer, sharded=sharded, device=device)
    if ranks.first:
        checkpoint.tidy(job.folder)
    stepper = _Stepper(job, optimizer, ranks, sharded)

    def save() -> None:
        checkpoint.save(
            job.folder,
            model,
            optimizer,
            progress,
            adapter=recipe.adapter,
            base=job.base,
            ranks=ranks,
            sharded=sharded,
        )

    began, first_step = time.monotonic(), progress.step
    log_folder = job.folder if ranks.first else job.folder / f".rank-{ranks.rank}"
    with (
        _asked_to_end() as asked,
        _short_turns(),
        Log(log_folder, after=progress.step, tensorboard=tensorboard and ranks.first) as log,
        ThreadPoolExecutor(1, "tokenise") as ahead,
    ):
        pending: Future[_Work] = ahead.submit(stepper.read, progress.step)
        while progress.step < recipe.optimizer.steps:
            number = progress.step
            work = pending.result()
            if number + 1 < recipe.optimizer.steps:
                pending = ahead.submit(stepper.read, number + 1)
            started = time.monotonic()
            try:
                loss, norm, tokens = stepper.run(number, work)
            except NumericsError as error:
                raise NumericsError(f"step {number + 1}: {error}") from error
            now = time.monotonic()
            progress = replace(progress, step=number + 1)
            pace = (now - began) / (progress.step - first_step)
            record = Step(
                step=progress.step,
                loss=loss,
                grad_norm=norm,
                learning_rate=learning_rate(number, recipe.optimizer.learning_rate, recipe.optimizer),
                tokens=tokens,
                tokens_per_s=tokens / (now - started),
                seconds=now - started,
                remaining_s=pace * (recipe.optimizer.steps - progress.step),
            )
            log.step(record)
            if ranks.first:
                report(record)
            done = progress.step == recipe.optimizer.steps
            ending = bool(ranks.most(int(asked.is_set()), device))
            if (
                job.evaluate is not None
                and (done or progress.step % recipe.run.evaluate_every == 0)
                and not ending
            ):
                scores = job.evaluate(partial(encode, job, max_tokens=recipe.batch.micro_batch_tokens))
                log.scores(progress.step, scores)
                score = ranks.agreed(float(np.mean(list(scores.values()))), device)  # all save, or none
                if progress.best_score is None or score > progress.best_score:
                    progress = replace(progress, best_step=progress.step, best_score=score)
            improved = progress.best_step == progress.step
            if done or ending or improved or progress.step % recipe.run.save_every == 0:
                save()
            if ending and not done:
                return Outcome(progress, stopped=True)
    return Outcome(progress, stopped=False)


def _decides(job: Job, ranks: Ranks) -> dict[str, Any]:
    """Return all that a run's trajectory follows from: what may not change when it goes on."""
    told = job.recipe.model_dump(exclude_none=True)
    told["run"] = {key: value for key, value in told["run"].items() if not key.endswith("_every")}
    return {"recipe": told, "ranks": ranks.count, "start": str(job.start), **job.identity}


@dataclass(frozen=True)
class _Work:
    """A step's batch as this rank sees it: the plan, and the tokens of its own texts."""

    plan: StepBatch
    tokens: list[Tokens]
    spare: list[Tokens]  # one text, for ranks that must run as often as others
    taught: Tensor | None  # (own texts, E): the teacher's vectors


class _Stepper:
    """Everything one optimizer step needs."""

    def __init__(self, job: Job, optimizer: Optimizer, ranks: Ranks, sharded: bool) -> None:
        self.job, self.optimizer, self.ranks, self.sharded = job, optimizer, ranks, sharded
        frozen = 0 if sharded else frozen_layers(job.model, job.recipe.adapter)
        self.embed = partial(embed, job.model, frozen_layers=frozen)
        self.device = job.model.device

    def read(self, step: int) -> _Work:
        """Read, lay out and tokenise a step's examples, and ask the teacher. Does not touch the model."""
        settings, recipe = self.job.recipe.batch, self.job.recipe
        examples = self.job.examples(step, settings.global_batch)
        batch = collate(
            examples,
            negatives=settings.hard_negatives,
            in_batch=settings.in_batch_negatives,
            alone=settings.alone,
        )
        plan = step_batch(batch, ranks=self.ranks.count, gather=settings.gather, device=torch.device("cpu"))
        share = plan.shares[self.ranks.rank]
        texts = plan.texts[share.start : share.stop]
        tokens = tokenise(texts, self.job.tokenizer, recipe.model.max_tokens)
        spare = [("", "a")]
        taught = None
        if recipe.teacher is not None:  # a rank without texts still has to know E
            assert self.job.teach is not None, "a recipe with a teacher needs Job.teach"
            taught = torch.from_numpy(self.job.teach(texts or spare))[: len(texts)]
        return _Work(plan, tokens, tokenise(spare, self.job.tokenizer, recipe.model.max_tokens), taught)

    def run(self, step: int, work: _Work) -> tuple[float, float, int]:
        """Take one step; return loss, gradient norm before clipping, and tokens of all ranks."""
        recipe, ranks, plan = self.job.recipe, self.ranks, work.plan
        pieces = micro_batches(work.tokens, recipe.batch.micro_batch_tokens, self.device)
        if ranks.count > 1 or not pieces:
            # Sharded layers are fetched from all ranks: all of them must run the same number of times.
            count = ranks.most(max(1, len(pieces)), self.device) if self.sharded else max(1, len(pieces))
            pieces += [_spare(work.spare, self.device) for _ in range(count - len(pieces))]
        graph_tokens = recipe.batch.graph_tokens
        if self.sharded:  # and in the same order: each keeps as many graphs as all can
            kept = -ranks.most(-kept_graphs(pieces, graph_tokens), self.device)
            graph_tokens = sum(piece.num_tokens for piece in pieces[:kept])
        share, sizes = plan.shares[ranks.rank], [len(part) for part in plan.shares]
        guide = None
        if recipe.teacher is not None:
            assert work.taught is not None
            taught_UE = ranks.gather(work.taught.to(self.device), sizes)
            distinct = plan.distinct.to(self.device)
            guide = Guide(taught_UE, distinct, recipe.teacher.weight, recipe.teacher.temperature)
        loss = 0.0

        def gradient_of(own_UD: Tensor) -> Tensor:
            nonlocal loss
            everyone = ranks.gather(own_UD, sizes)
            loss, gradient = loss_and_gradient(
                everyone,
                query_rows=plan.query_rows.to(self.device),
                passage_rows=plan.passage_rows.to(self.device),
                positive_Q=plan.positive.to(self.device),
                allowed_QC=plan.allowed.to(self.device),
                temperature=recipe.loss.temperature,
                guide=guide,
            )
            return gradient[share.start : share.stop]

        backward(
            self.embed,
            pieces,
            gradient_of,
            seed=(recipe.run.seed * 1_000_003 + step) * ranks.count + ranks.rank,
            graph_tokens=graph_tokens,
            done=self.optimizer.collect,
        )
        gradients = self.optimizer.gradients()
        if not self.sharded:
            ranks.sum(gradients)
        norm = self.optimizer.step(step)
        tokens = ranks.total(sum(len(item.input_ids) for item in work.tokens), self.device)
        return loss, norm, tokens


def _spare(tokens: list[Tokens], device: torch.device) -> MicroBatch:
    (batch,) = micro_batches(tokens, 1, device)
    return replace(batch, rows=batch.rows[:0])


@torch.no_grad()
def encode(job: Job, texts: Sequence[str], prompt: str, *, max_tokens: int) -> np.ndarray:
    """Return the unit vectors (n, D) float32 of texts, with the model as it is, without dropout."""
    model = job.model
    vectors = np.empty((len(texts), model.config.backbone.hidden_size), dtype=np.float32)
    tokens = tokenise([(prompt, text) for text in texts], job.tokenizer, job.recipe.model.max_tokens)
    model.eval()
    for batch in micro_batches(tokens, max_tokens, model.device):
        vectors[batch.rows.cpu().numpy()] = model(batch.packed).float().cpu().numpy()
    model.train()
    return vectors


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let threads take turns every 0.1 ms: each operator lets go of the interpreter, and would wait 5 ms.

    The reader of the next step's texts else holds up the launch of a GPU's kernels (docs/log.md).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one ends at once. Main thread only."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
