"""The training loop: one for both stages, one process or many. Read it from top to bottom.

    adapt the model, claim the folder, resume            _TrainingRun.__init__
    read the examples of a step, in a thread ahead       _TrainingRun.read
    vectors, loss, gradients, update                     _TrainingRun.step
    evaluate, save                                       _TrainingRun.evaluate, _TrainingRun.save

Shapes: U distinct texts, D hidden size, E the teacher's dimensions.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from nvembed.data.collate import collate
from nvembed.data.example import Example, prompts
from nvembed.errors import ConfigError, NumericsError, OutputError
from nvembed.files import read_json, same_run, write_json
from nvembed.model.compiled import compile_layers
from nvembed.model.nv_embed import NVEmbed
from nvembed.text.tokenize import TextTokenizer, Tokens
from nvembed.train import checkpoint
from nvembed.train.adapt import adapt, checkpoint_activations, frozen_layers, trained
from nvembed.train.checkpoint import TrainingProgress
from nvembed.train.distil import (
    PROJECTIONS,
    Pair,
    Prompts,
    Teacher,
    add_projections,
    guide_of,
    own,
    targets_of,
    teacher_texts,
    vectors_of,
)
from nvembed.train.grad_cache import backward, embed, kept_graphs
from nvembed.train.log import StepRecord, TrainingLog
from nvembed.train.loss import Terms, loss_and_gradient
from nvembed.train.optim import Optimizer, learning_rate
from nvembed.train.parallel import Ranks, shard
from nvembed.train.recipe import StageRecipe
from nvembed.train.step_batch import MicroBatch, StepBatch, micro_batches, step_batch, tokenise

Encode = Callable[[Sequence[str], str], np.ndarray]


@dataclass(frozen=True)
class TrainingJob:
    """A stage of training: model, data, recipe, and the folder of the run.

    Attributes:
        model: plain (unfolded), on its device, in the recipe's dtype.
        examples: (step, size) -> the examples of that step, as ``data.blend.Blend.batch``.
        folder: for the log and the states. If it contains a run, that run is resumed.
        identity: everything else that decides the result (base, data); a run resumes only with the same.
        evaluate: ``encode`` -> scores on development tasks, whose mean chooses the best state.
        start: a state whose trained tensors the run starts from, with a new optimizer (paper: Table 11).
        base: the backbone's name in the config of the adapter.
        teachers: every teacher of the recipe, by its name there; that of ``[teacher]`` is ``""``.
        own_prompts: the model's query and document prompt, for a recipe with ``model.own_prompts``.
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
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    own_prompts: Pair = ("", "")

    @property
    def prompts(self) -> Prompts:
        """What gives an example the prompts of its texts."""
        return own(*self.own_prompts) if self.recipe.model.own_prompts else prompts


@dataclass(frozen=True)
class TrainingOutcome:
    progress: TrainingProgress
    signal: int | None = None
    """The signal that stopped the run before its end: SIGINT (Ctrl-C) or SIGTERM."""

    @property
    def stopped(self) -> bool:
        return self.signal is not None


def train(
    job: TrainingJob,
    *,
    ranks: Ranks = Ranks(),  # noqa: B008 (frozen)
    sharded: bool = False,
    report: Callable[[StepRecord], None] = lambda _: None,
    announce: Callable[[str], None] = lambda _: None,
    tensorboard: bool = False,
) -> TrainingOutcome:
    """Train until the recipe's last step, or until Ctrl-C or SIGTERM; then the state is saved.

    A run that is started again with the same job resumes from its last state, and its trajectory is that of
    an uninterrupted run.

    Args:
        sharded: spread the weights over the ranks (FSDP2).
        report: called after every step, on the first rank.
        announce: called with a description of the run before the first step, on the first rank.

    Raises:
        OutputError: ``job.folder`` has another run, or a state could not be written.
        NumericsError: the loss, the gradient or a score is not finite; the last saved state is untouched.
        ConfigError: offload and sharded; or see ``adapt`` and ``checkpoint.load``, also MissingExtraError.
    """
    run = _TrainingRun(job, ranks, sharded)
    steps, first = job.recipe.optimizer.steps, run.first_step
    log_folder = job.folder if ranks.first else job.folder / f".rank-{ranks.rank}"
    with (
        _stop_signals() as stop,
        _short_turns(),
        TrainingLog(log_folder, after=first, tensorboard=tensorboard and ranks.first) as log,
        ThreadPoolExecutor(1, "tokenise") as ahead,
    ):
        if not run.progress.evaluated and job.evaluate is not None:  # stopped before its evaluation
            run.evaluate(log)
            run.record()
        began = time.monotonic()
        pending: Future[_Work] | None = ahead.submit(run.read, first) if first < steps else None
        while pending is not None:
            work = pending.result()
            if ranks.first and run.progress.step == first:
                announce(run.description(work))
            pending = ahead.submit(run.read, work.step + 1) if work.step + 1 < steps else None
            record = run.step(work, began)
            log.step(record)
            if ranks.first:
                report(record)
            number = ranks.most(stop.number, run.device)
            if run.evaluation_due:
                if number:
                    run.progress = run.progress.model_copy(update={"evaluated": False})
                else:
                    run.evaluate(log)
            if number or run.save_due:
                run.save()
            if number and (pending is not None or not run.progress.evaluated):
                return TrainingOutcome(run.progress, signal=number)
    return TrainingOutcome(run.progress)


@dataclass(frozen=True)
class _Work:
    """A step as this rank sees it: the whole batch, and the tokens of the rank's own texts."""

    step: int  # from 0
    batch: StepBatch
    tokens: list[Tokens]
    spare: list[Tokens]  # one text, for ranks that must run the model as often as others
    teachers: dict[str, Tensor]  # (own texts, E): each teacher's vectors of this rank's texts


class _TrainingRun:
    """The model in training, its optimizer, and its progress."""

    def __init__(self, job: TrainingJob, ranks: Ranks, sharded: bool) -> None:
        recipe, model = job.recipe, job.model
        if sharded and recipe.optimizer.offload:
            raise ConfigError("optimizer.offload needs weights that are whole on one GPU: not with --sharded")
        if sharded and recipe.distil is not None:
            raise ConfigError("[distil] needs weights that are whole on one GPU: not with --sharded")
        if odd := [dim for dim in recipe.loss.dims if dim >= model.config.dim]:
            raise ConfigError(
                f"loss.dims has {odd[0]:,}: expected less than the model's {model.config.dim:,}"
            )
        self.job, self.ranks, self.sharded, self.device = job, ranks, sharded, model.device
        adapt(model, recipe.adapter, seed=recipe.run.seed)
        if recipe.distil is not None:
            add_projections(model, recipe.distil, job.teachers, recipe.run.seed)
        if job.start is not None:
            checkpoint.start_from(job.start, model, recipe.adapter)
        if ranks.first:  # only now: a faulty recipe or start leaves no settings behind
            _claim(job.folder / "settings.json", _settings(job, ranks), recipe)
        ranks.wait()
        if recipe.run.compile:
            compile_layers(model)
        if recipe.run.activation_checkpointing:
            checkpoint_activations(model)
        if sharded:
            shard(model, self.device, getattr(torch, recipe.run.dtype))
        model.train()
        self.optimizer = Optimizer(trained(model), recipe.optimizer)
        self.progress = TrainingProgress()
        if (last := checkpoint.latest(job.folder)) is not None:
            self.progress = checkpoint.load(last, model, self.optimizer, sharded=sharded, device=self.device)
        self.first_step = self.progress.step
        ranks.wait()  # every rank has read before the first removes anything
        if ranks.first:
            checkpoint.point(job.folder, self.progress)
            checkpoint.tidy(job.folder, self.progress)
        frozen = 0 if sharded else frozen_layers(model, recipe.adapter)
        self.embed = partial(embed, model, frozen_layers=frozen)

    def read(self, step: int) -> _Work:
        """Read a step's examples, lay them out, tokenise them, and get the teachers' vectors.

        It runs in a thread beside the model, which it does not use.
        """
        recipe, settings = self.job.recipe, self.job.recipe.batch
        examples = self.job.examples(step, settings.global_batch)
        laid_out = collate(
            examples,
            negatives=settings.hard_negatives,
            in_batch=settings.in_batch_negatives,
            alone=settings.alone,
            prompts=self.job.prompts,
        )
        batch = step_batch(laid_out, ranks=self.ranks.count, gather=settings.gather)
        share = batch.shares[self.ranks.rank]
        texts = batch.texts[share.start : share.stop]
        tokens = tokenise(texts, self.job.tokenizer, recipe.model.max_tokens)
        teachers = {
            name: vectors_of(teacher, texts, self._reads(examples, name))
            for name, teacher in self.job.teachers.items()
        }
        spare_tokens = tokenise([("", "a")], self.job.tokenizer, recipe.model.max_tokens)
        return _Work(step, batch, tokens, spare_tokens, teachers)

    def _reads(self, examples: Sequence[Example], name: str) -> dict[Pair, Pair]:
        """Return what a teacher reads for each text of the examples."""
        own_prompts = self.job.teachers[name].own_prompts
        return teacher_texts(
            examples, self.job.recipe, name, student_prompts=self.job.prompts, own_prompts=own_prompts
        )

    def step(self, work: _Work, began: float) -> StepRecord:
        """Take one step: vectors, loss, gradients, update.

        Args:
            began: when this process began its first step, for the time left.
        """
        recipe, start = self.job.recipe, time.monotonic()
        pieces, graph_tokens = self._pieces(work)
        loss = 0.0

        def gradient_of(own_UD: Tensor) -> Tensor:
            nonlocal loss
            loss, gradient = self._loss(work, own_UD)
            return gradient

        try:
            backward(
                self.embed,
                pieces,
                gradient_of,
                seed=(recipe.run.seed * 1_000_003 + work.step) * self.ranks.count + self.ranks.rank,
                graph_tokens=graph_tokens,
                done=self.optimizer.collect,
            )
            gradients = self.optimizer.gradients()
            if not self.sharded:
                self.ranks.sum(gradients)
            norm = self.optimizer.step(work.step)
        except NumericsError as error:
            raise NumericsError(f"step {work.step + 1}: {error}") from error
        step = work.step + 1
        self.progress = self.progress.model_copy(update={"step": step, "evaluated": True})
        tokens = self.ranks.total(sum(len(item.input_ids) for item in work.tokens), self.device)
        now = time.monotonic()
        return StepRecord(
            step=step,
            loss=loss,
            grad_norm=norm,
            learning_rate=learning_rate(work.step, recipe.optimizer.learning_rate, recipe.optimizer),
            tokens=tokens,
            tokens_per_s=tokens / (now - start),
            seconds=now - start,
            remaining_s=(now - began) / (step - self.first_step) * (recipe.optimizer.steps - step),
        )

    def _pieces(self, work: _Work) -> tuple[list[MicroBatch], int]:
        """Return this rank's micro-batches, and the tokens whose activations are kept."""
        batch, ranks = self.job.recipe.batch, self.ranks
        pieces = micro_batches(work.tokens, batch.micro_batch_tokens, self.device)
        if ranks.count > 1 or not pieces:
            # Sharded layers are gathered from all ranks, so all ranks must run them equally often.
            count = ranks.most(max(1, len(pieces)), self.device) if self.sharded else max(1, len(pieces))
            (spare,) = micro_batches(work.spare, 1, self.device)
            pieces += [replace(spare, rows=spare.rows[:0]) for _ in range(count - len(pieces))]
        if not self.sharded:
            return pieces, batch.graph_tokens
        # And in the same order: every rank keeps as many graphs as all ranks can.
        kept = -ranks.most(-kept_graphs(pieces, batch.graph_tokens), self.device)
        return pieces, sum(piece.num_tokens for piece in pieces[:kept])

    def _loss(self, work: _Work, own_UD: Tensor) -> tuple[float, Tensor]:
        """Return the loss of all ranks' vectors, and its gradient with respect to this rank's."""
        recipe, batch = self.job.recipe, work.batch
        share, sizes = batch.shares[self.ranks.rank], [len(part) for part in batch.shares]
        vectors = {
            name: self.ranks.gather(value.to(self.device), sizes) for name, value in work.teachers.items()
        }
        projections = [
            value for name, value in self.job.model.named_parameters() if name.startswith(PROJECTIONS)
        ]
        loss, gradient = loss_and_gradient(
            self.ranks.gather(own_UD, sizes),
            query_rows=batch.query_rows.to(self.device),
            passage_rows=batch.passage_rows.to(self.device),
            positive_Q=batch.positive.to(self.device),
            allowed_QC=batch.allowed.to(self.device),
            terms=Terms(
                temperature=recipe.loss.temperature,
                info_nce=recipe.loss.info_nce,
                spread_out=recipe.loss.spread_out,
                dims=recipe.loss.dims,
                outputs=recipe.loss.outputs,
                distinct=batch.distinct.to(self.device),
                guide=guide_of(recipe, vectors),
                targets=targets_of(self.job.model, recipe.distil, vectors),
            ),
        )
        for projection in projections:  # every rank computes it whole, and the ranks' gradients are summed
            if projection.grad is not None:
                projection.grad /= self.ranks.count
        return loss, gradient[share.start : share.stop]

    @property
    def evaluation_due(self) -> bool:
        due = self._last or self.progress.step % self.job.recipe.run.evaluate_every == 0
        return due and self.job.evaluate is not None

    @property
    def save_due(self) -> bool:
        improved = self.progress.best_step == self.progress.step
        return self._last or improved or self.progress.step % self.job.recipe.run.save_every == 0

    @property
    def _last(self) -> bool:
        return self.progress.step == self.job.recipe.optimizer.steps

    def evaluate(self, log: TrainingLog) -> None:
        """Score the development set; all ranks agree on the score, so that all save or none does."""
        assert self.job.evaluate is not None
        limit = self.job.recipe.batch.micro_batch_tokens
        scores = self.job.evaluate(partial(encode, self.job, max_tokens=limit))
        log.scores(self.progress.step, scores)
        score = self.ranks.agreed(float(np.mean(list(scores.values()))), self.device)
        if not np.isfinite(score):
            raise NumericsError(f"step {self.progress.step}: the development score is {score}")
        changes: dict[str, Any] = {"evaluated": True}
        if self.progress.best_score is None or score > self.progress.best_score:
            changes |= {"best_step": self.progress.step, "best_score": score}
        self.progress = self.progress.model_copy(update=changes)

    def save(self) -> None:
        checkpoint.save(
            self.job.folder,
            self.job.model,
            self.optimizer,
            self.progress,
            adapter=self.job.recipe.adapter,
            base=self.job.base,
            ranks=self.ranks,
            sharded=self.sharded,
        )

    def record(self) -> None:
        """Write the result of an evaluation into a state that was saved before it."""
        if self.ranks.first:
            checkpoint.record(self.job.folder, self.progress)
        self.ranks.wait()

    def description(self, work: _Work) -> str:
        """Describe the run, by the recipe, the model and the first step."""
        recipe, model = self.job.recipe, self.job.model
        texts = len(work.batch.texts)
        tokens = sum(len(item.input_ids) for item in work.tokens)
        own = sum(value.numel() for value in trained(model).values())
        everything = sum(value.numel() for value in model.parameters())
        start = f"from step {self.progress.step + 1:,} " if self.progress.step else ""
        rank = f", {self.ranks.count} processes" if self.ranks.count > 1 else ""
        return (
            f"{recipe.optimizer.steps:,} steps {start}of {recipe.batch.global_batch:,} queries: about "
            f"{texts:,} texts and {tokens * self.ranks.count:,} tokens a step\n"
            f"{own:,} of {everything:,} parameters are trained ({recipe.adapter.kind}) in {recipe.run.dtype} "
            f"on {self.device}{rank}\n"
            f"memory: {_memory(model, recipe)}"
        )


def _memory(model: NVEmbed, recipe: StageRecipe) -> str:
    """Estimate the memory of a step: exactly for weights and optimizer, roughly for activations."""
    weights = sum(value.numel() * value.element_size() for value in model.parameters())
    # A gradient and two moments in float32, and a master where the weight is in half precision.
    own = sum(
        value.numel() * (12 if value.element_size() == 4 or not recipe.optimizer.master_weights else 16)
        for value in trained(model).values()
    )
    config = model.config.backbone
    # Inputs, projections and MLP of a layer; its input alone where the layer is computed again.
    per_token = 8 * config.hidden_size + 3 * config.intermediate_size
    if recipe.run.activation_checkpointing:
        per_token = config.hidden_size + per_token // config.num_layers
    item = 4 if recipe.run.dtype == "float32" else 2
    kept = max(recipe.batch.micro_batch_tokens, recipe.batch.graph_tokens)
    layers = config.num_layers - frozen_layers(model, recipe.adapter)
    parts = {
        "weights": weights,
        "gradients and optimizer": own,
        f"activations of {kept:,} tokens, at most about": kept * per_token * layers * item,
    }
    return ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in parts.items())


def _settings(job: TrainingJob, ranks: Ranks) -> dict[str, Any]:
    """Return everything that decides a run's trajectory: it may not change when the run is resumed."""
    recipe = _identity(job.recipe)
    return {"recipe": recipe, "ranks": ranks.count, "start": str(job.start), **job.identity}


def _identity(recipe: StageRecipe) -> dict[str, Any]:
    """Return a recipe without the values that change no number."""
    table = recipe.model_dump(mode="json", exclude_none=True)
    table["run"] = {key: value for key, value in table["run"].items() if not key.endswith("_every")}
    return table


def _claim(marker: Path, settings: dict[str, Any], recipe: StageRecipe) -> None:
    """Write the run's settings, or check that the folder's run has the same.

    Keys that recipes did not have when the run began have their defaults.
    """
    if not marker.exists():
        write_json(marker, settings)
        return
    cure = "remove the file if the recipe, the data and the model are unchanged, and run the command again"
    stored = read_json(marker, dict[str, Any], cure=cure, error=OutputError)
    with suppress(KeyError, TypeError, ValidationError):  # a damaged or foreign recipe differs as it is
        run = {**recipe.run.model_dump(), **stored["recipe"]["run"]}
        whole = StageRecipe.model_validate({**stored["recipe"], "run": run}, strict=False)
        stored["recipe"] = _identity(whole)
    if "dev" in stored:  # earlier versions recorded names alone
        stored.setdefault("dev_revisions", settings.get("dev_revisions"))
    same_run(marker, stored, settings)


@torch.no_grad()
def encode(job: TrainingJob, texts: Sequence[str], prompt: str, *, max_tokens: int) -> np.ndarray:
    """Return the unit vectors (n, D) float32 of texts by the current model, without dropout."""
    model = job.model
    vectors = np.empty((len(texts), model.config.dim), dtype=np.float32)
    tokens = tokenise([(prompt, text) for text in texts], job.tokenizer, job.recipe.model.max_tokens)
    model.eval()
    for batch in micro_batches(tokens, max_tokens, model.device):
        vectors[batch.rows.cpu().numpy()] = model(batch.packed).float().cpu().numpy()
    model.train()
    return vectors


@contextmanager
def _short_turns() -> Iterator[None]:
    """Switch threads every 0.1 ms instead of 5 ms.

    Every operator releases the interpreter's lock and waits for it again, so the thread that reads the next
    step would delay the launch of a GPU's kernels (docs/log.md).
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@dataclass
class _Stop:
    number: int = 0  # of the signal; 0 while there was none


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Remember the first Ctrl-C or SIGTERM; a second one ends the process at once. Main thread only."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.number = number
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
