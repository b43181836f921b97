"""``nvembed train``: one stage of training, from a recipe."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvembed.cli.options import Count, Flag, named_instructions
from nvembed.cli.screen import messages, say
from nvembed.cli.stage import changed, set_files
from nvembed.cli.teach import open_teachers
from nvembed.errors import ConfigError, InputError
from nvembed.files import locked
from nvembed.indexing.models import find_model
from nvembed.recipe import nearest, read_recipe

if TYPE_CHECKING:
    from nvembed.data.blend import Blend
    from nvembed.evaluate.tasks import Task
    from nvembed.text.model_prompts import ModelPrompts
    from nvembed.train.log import StepRecord
    from nvembed.train.loop import Encode, TrainingOutcome
    from nvembed.train.parallel import Ranks
    from nvembed.train.recipe import StageRecipe
    from nvembed.weights.tensors import Checkpoint


def train(
    recipe: Path,
    /,
    *,
    model: str,
    data: Path,
    out: Path,
    start: Path | None = None,
    vectors: Path | None = None,
    dev: list[Path] | None = None,
    instruction: list[str] | None = None,
    dev_passages: Count = 1000,
    device: str | None = None,
    sharded: Flag = False,
    tensorboard: Flag = False,
    set: list[str] | None = None,
) -> int:
    """Train one stage from a recipe.

    Writes OUT/log.jsonl, with every step, and keeps the last and the best state as OUT/step-N: an adapter in
    peft's format and a pooler, for `nvembed merge` or `nvembed export`. Ctrl-C and SIGTERM save the state
    first. Run the same command again to resume. On several GPUs, start it with torchrun.

    MODEL may also have the layout of sentence-transformers. If it has more layers than model.num_layers, its
    first layers are trained.

    Examples:

        nvembed train recipes/tiny/stage1.toml --model base --data data \\
            --out runs/stage1

        nvembed train recipes/tiny/stage2.toml --model base --data data \\
            --out runs/stage2 --start runs/stage1/best

        torchrun --nproc-per-node 8 --no-python nvembed train \\
            recipes/nv_embed_v2/stage1.toml --model untrained --data data/7b \\
            --out runs/7b-stage1 --sharded

    Parameters
    ----------
    recipe
        TOML file of a stage; its blend is in the same folder.
    model
        Model to train: a folder, a hub id, or package/folder. `nvembed init` makes one of a language model.
    data
        Folder with the training files that `nvembed mine` made.
    out
        Folder of the run.
    start
        State of an earlier stage to start from, such as runs/stage1/best: its adapter and pooler.
    vectors
        Folder with the teachers' vectors, which `nvembed teach` made. Default: the teachers embed each step.
    dev
        Folder of an evaluation task. The best state has the highest mean score. May be repeated.
    instruction
        TASK=INSTRUCTION for a task in --dev without a known one. May be repeated.
    dev_passages
        Most passages of a retrieval corpus in --dev: the judged ones, and others at random.
    device
        cpu or cuda. Default: cuda if available.
    sharded
        Spread the weights over the GPUs (FSDP2) instead of holding all of them on each.
    tensorboard
        Write events for TensorBoard into OUT/tensorboard as well.
    set
        Change one value of the recipe, as section.key=value. May be repeated.
    """
    import torch

    from nvembed.train.loop import TrainingJob
    from nvembed.train.loop import train as run
    from nvembed.train.parallel import join
    from nvembed.train.recipe import StageRecipe
    from nvembed.weights.checkpoint import (
        fingerprint,
        first_layers,
        load_model,
        load_tokenizer,
        open_checkpoint,
    )

    stage = changed(read_recipe(recipe, StageRecipe), set or [])
    ranks, torch_device = join(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if sharded and ranks.count == 1:
        raise InputError("--sharded needs several processes: start it with torchrun")
    try:  # what is wrong with the options is reported before OUT is made
        checkpoint = first_layers(open_checkpoint(find_model(model)), stage.model.num_layers)
        _check_model(stage, checkpoint, model)
        own = _own_prompts(stage, checkpoint)
        evaluate, dev_identity = _development(dev or [], dev_passages, instruction or [], own)
        with ExitStack() as stack:
            stack.enter_context(locked(out) if ranks.first else nullcontext())
            blend = _blend(stage, recipe, data, check=ranks.first and not (out / "log.jsonl").exists())
            stack.callback(blend.close)
            teachers, teacher_identity = open_teachers(stage, vectors, str(torch_device))
            dtype = torch.float32 if sharded else getattr(torch, stage.run.dtype)
            job = TrainingJob(
                model=load_model(checkpoint, device=torch_device, dtype=dtype, fold=False),
                tokenizer=load_tokenizer(checkpoint),
                recipe=stage,
                examples=blend.batch,
                folder=out,
                identity={
                    "base": fingerprint(checkpoint),
                    "sets": list(blend.names),
                    **blend.identity,
                    **teacher_identity,
                    **dev_identity,
                },
                evaluate=evaluate,
                start=start,
                base=model,
                teachers=teachers,
                own_prompts=("", "") if own is None else (own.query(), own.document()),
            )
            passes = stage.optimizer.steps * stage.batch.global_batch / len(blend)
            outcome = run(
                job,
                ranks=ranks,
                sharded=sharded,
                report=_reporter(stage),
                announce=lambda plan: say(f"{plan}\n{passes:.2f} passes over {len(blend):,} examples"),
                tensorboard=tensorboard,
            )
    finally:
        ranks.stop()
    return _end(outcome, out, ranks)


def _end(outcome: "TrainingOutcome", out: Path, ranks: "Ranks") -> int:
    progress = outcome.progress
    if ranks.first and outcome.stopped:
        say(f"stopped after step {progress.step:,} and saved: run the same command again to resume")
    elif ranks.first:
        best = ""
        if progress.best_score is not None:
            best = f"; best: step {progress.best_step:,}, score {progress.best_score:.4f}"
        print(f"{out / 'last'}: {progress.step:,} steps{best}")
    return 0 if outcome.signal is None else 128 + outcome.signal


def _blend(stage: "StageRecipe", recipe: Path, data: Path, *, check: bool) -> "Blend":
    """Open the stage's training files; ``check`` reads every record first, so that no fault comes later."""
    from nvembed.data.blend import Blend
    from nvembed.data.sources import BlendRecipe

    sets = read_recipe(recipe.parent / stage.blend, BlendRecipe).of_stage(stage.stage)
    translations = () if stage.distil is None else stage.distil.translations
    for key, named in (("batch.alone", stage.batch.alone), ("distil.translations", translations)):
        tasks = {source.task for source in sets.values()}
        for task in named:
            if task not in tasks:
                raise ConfigError(f"{recipe}: {key} names task {task!r}: {nearest(task, tasks)}")
    samples = {name: source.samples for name, source in sets.items()}
    blend = Blend(set_files(stage, recipe, data), samples, seed=stage.run.seed, group=stage.batch.group)
    if check:
        say(f"{len(sets)} sets, {blend.check():,} examples; {len(blend):,} a pass")
    return blend


def _own_prompts(stage: "StageRecipe", checkpoint: "Checkpoint") -> "ModelPrompts | None":
    """Return the prompts that the model is trained with; None for the instructions of the tasks."""
    from nvembed.text.model_prompts import ModelPrompts
    from nvembed.train.recipe import own_prompts

    if not stage.model.own_prompts:
        return None
    folder = ModelPrompts() if checkpoint.prompts is None else checkpoint.prompts
    query, document = own_prompts(stage.model, (folder.query(), folder.document()))
    return ModelPrompts({"query": query, "document": document})


def _check_model(stage: "StageRecipe", checkpoint: "Checkpoint", model: str) -> None:
    """Compare the recipe's ``[model]`` with the checkpoint."""
    config, section = checkpoint.config, stage.model
    values = {
        "pooling": config.pooling,
        "bidirectional": not getattr(config.backbone, "causal", False),
        "max_tokens": min(section.max_tokens, checkpoint.text.max_length),
    }
    if section.num_layers is not None:
        values["num_layers"] = config.backbone.num_layers
    if config.pooling == "latent":
        values |= {"num_latents": config.pooler.num_latents, "head_dim": config.pooler.head_dim}
    if config.pooling in ("latent", "self"):
        values["num_heads"] = config.pooler.num_heads
    if checkpoint.dtype is not None:
        raise ConfigError(f"{model} is compressed: train the model that it was made from, then compress it")
    if section.own_prompts and checkpoint.prompts is None:
        raise ConfigError(f"the recipe has model.own_prompts, but {model} has no prompts: remove the key")
    for key, value in values.items():
        if getattr(section, key) != value:
            raise ConfigError(
                f"the recipe's model.{key} is {getattr(section, key)!r}; {model} has {value!r}: make a "
                "checkpoint with `nvembed init --recipe`, or change the recipe"
            )


def _development(
    folders: Sequence[Path], passages: int, instructions: Sequence[str], own_prompts: "ModelPrompts | None"
) -> tuple[Callable[["Encode"], dict[str, float]] | None, dict[str, Any]]:
    """Read the development tasks.

    Returns:
        A function from ``encode`` to the main score of every task (None without tasks), and what a resumed
        run must have in common.
    """
    from nvembed.evaluate.protocol import run_task
    from nvembed.evaluate.run import prompts_of
    from nvembed.evaluate.subject import Subject

    tasks: dict[str, Task] = {}
    for folder in folders:
        task = _task(folder, passages)
        if task.name in tasks:
            raise InputError(f"--dev {folder}: a second task named {task.name!r}; rename one of the folders")
        tasks[task.name] = task
    identity = {
        "dev": sorted(tasks),
        "dev_revisions": {name: tasks[name].revision for name in sorted(tasks)},
        "dev_passages": passages,
        **({"dev_instructions": sorted(instructions)} if instructions else {}),
    }
    own = named_instructions(instructions, tasks)
    if not tasks:
        return None, identity
    subject = Subject("training", fingerprint="training", instructions=own_prompts is None)
    if own_prompts is not None:
        subject = replace(subject, prompts=own_prompts.texts, default_prompt=own_prompts.plain)
    prompts = {name: prompts_of(subject, task, own) for name, task in tasks.items()}

    def evaluate(encode: "Encode") -> dict[str, float]:
        outcomes = {name: run_task(task, encode, prompts[name]) for name, task in tasks.items()}
        scores = {name: float(outcome.scores[outcome.main]) for name, outcome in outcomes.items()}
        say("development: " + ", ".join(f"{name} {score:.4f}" for name, score in scores.items()))
        return scores

    return evaluate, identity


def _task(path: Path, passages: int) -> "Task":
    """Read a development task; of a large corpus, keep judged passages and some others at random."""
    from nvembed.evaluate.tasks import Retrieval, load_task

    task = load_task(path)
    data = task.data
    if not isinstance(data, Retrieval) or len(data.passage_ids) <= passages:
        return task
    judged = {passage for grades in data.qrels.values() for passage in grades}
    others = [name for name in data.passage_ids if name not in judged]
    room = max(0, passages - len(judged))
    chosen = np.random.default_rng(0).choice(len(others), size=min(room, len(others)), replace=False)
    kept = judged | {others[index] for index in chosen}
    texts = [t for name, t in zip(data.passage_ids, data.passages(), strict=True) if name in kept]
    ids = [name for name in data.passage_ids if name in kept]
    return replace(task, data=replace(data, passage_ids=ids, passages=lambda: iter(texts)))


def _reporter(stage: "StageRecipe") -> Callable[["StepRecord"], None]:
    """Return what shows a step: one line that is rewritten on a terminal, a line each log_every elsewhere."""
    steps, every = stage.optimizer.steps, stage.run.log_every
    live = sys.stderr.isatty()

    def report(step: "StepRecord") -> None:
        if live:
            messages().print(step.line(steps), end="\r")
        elif step.step % every == 0 or step.step == steps:
            say(step.line(steps))

    return report
