"""The way of a distilled model by the commands: mine, teach, train, merge, and sentence-transformers."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from tiny_recipe import BLEND, MINING, STAGE, tiny_recipe
from tiny_sentence import sentence_folder

from conftest import ROOT
from nvembed.cli.main import main
from nvembed.encoder import Encoder
from nvembed.recipe import read_recipe
from nvembed.train.recipe import StageRecipe

DISTIL = """
[distil]
cosine = 1.0
squared = 0.1
translations = ["SQuAD"]
[distil.teachers.one]
model = "{folder}/one"
own_prompts = true
[distil.teachers.two]
model = "{folder}/two"
instruct = true
weight = 0.5
"""
TEXTS = ["the otter swims", "badger", "a raven in the tree"]


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(word) for word in words])
    return int(exit_.value.code or 0)


def small_recipe(folder: Path) -> Path:
    """A recipe of one stage with two teachers, a student of two layers of which one is used, and its data."""
    recipe = tiny_recipe(folder)
    stage = STAGE.format(stage=1, in_batch="true")
    for key in ("num_latents = 16\n", "num_heads = 2\n", "head_dim = 32\n"):
        stage = stage.replace(key, "")
    stage = stage.replace('"latent"', '"mean"\nnum_layers = 1').replace("max_tokens = 120", "max_tokens = 24")
    stage = stage.replace('kind = "lora"', 'kind = "full"').replace("[optimizer]", "dims = [16]\n[optimizer]")
    (recipe / "stage1.toml").write_text(stage + DISTIL.format(folder=folder))
    prompts = {"query": "query: ", "document": "passage: "}
    for name, kind in (("student", "bert"), ("one", "xlm-roberta"), ("two", "mpnet")):
        (folder / f"{name}-made").mkdir()
        sentence_folder(folder / f"{name}-made" / name, kind, prompts=prompts if name == "one" else None)
        (folder / f"{name}-made" / name).rename(folder / name)
    return recipe


def test_from_texts_to_a_model_of_sentence_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = small_recipe(tmp_path)
    stage, data, vectors = recipe / "stage1.toml", tmp_path / "data", tmp_path / "vectors"
    assert run("mine", recipe, "--out", data, "--root", tmp_path) == 0
    assert run("teach", stage, "--data", data, "--out", vectors) == 0
    assert run("check", vectors) == 0
    blocks = {path: path.stat().st_mtime_ns for path in vectors.rglob("*.vectors")}
    assert run("teach", stage, "--data", data, "--out", vectors) == 0
    assert {path: path.stat().st_mtime_ns for path in vectors.rglob("*.vectors")} == blocks, "nothing is new"

    train = ("train", stage, "--model", tmp_path / "student", "--data", data, "--device", "cpu")
    for name in ("one", "two"):  # a run with vectors on disk needs no teacher
        (tmp_path / name).rename(tmp_path / f"{name}-away")
    assert run(*train, "--out", tmp_path / "run", "--vectors", vectors) == 0
    for name in ("one", "two"):
        (tmp_path / f"{name}-away").rename(tmp_path / name)
    assert run(*train, "--out", tmp_path / "live") == 0
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("run", "live")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=2e-2), "int8 on disk costs little"
    assert losses[0] != losses[1]

    assert run("merge", tmp_path / "student", tmp_path / "run" / "last", tmp_path / "small") == 0
    library = SentenceTransformer(str(tmp_path / "small"), device="cpu").encode(TEXTS)
    own = Encoder.from_pretrained(tmp_path / "small", device="cpu").encode(TEXTS)
    np.testing.assert_allclose(library, own, atol=1e-5)
    assert run("merge", tmp_path / "one", tmp_path / "run" / "last", tmp_path / "wrong") == 1

    block = next(iter(blocks))
    block.unlink()
    capsys.readouterr()
    assert run(*train, "--out", tmp_path / "again", "--vectors", vectors) == 1
    assert "nvembed teach" in capsys.readouterr().err
    other = stage.read_text().replace(f"{tmp_path}/two", f"{tmp_path}/three")
    (recipe / "stage1.toml").write_text(other)
    assert run(*train, "--out", tmp_path / "third", "--vectors", vectors) == 1
    assert "three" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["small-distil", "multilingual"])
def test_the_recipes_of_the_project_run_on_little_data(tmp_path: Path, name: str) -> None:
    """Their stages with tiny models in place of the released ones, and twelve pairs as every set."""
    folder = small_recipe(tmp_path)
    (folder / "blend.toml").write_text(
        BLEND.replace('task = "SQuAD"', 'task = "translation"\ninstruction = ""')
    )
    (folder / "mining.toml").write_text(MINING)
    assert run("mine", folder, "--out", tmp_path / "data", "--root", tmp_path) == 0
    previous: tuple[object, ...] = ()
    for stage in ("stage1.toml", "stage2.toml"):
        (folder / stage).write_text((ROOT / "recipes" / name / stage).read_text())
        places = []
        for key, teacher in read_recipe(folder / stage, StageRecipe).teachers.items():
            place = tmp_path / ("one" if "mpnet" in teacher.model or "gemma" in teacher.model else "two")
            places.append(f"distil.teachers.{key}.model={place}" if key else f"teacher.model={place}")
        sizes = ("batch.global_batch=4", "model.max_tokens=24", "loss.dims=[16]")
        values = ("optimizer.steps=2", "optimizer.warmup_steps=1", *sizes, *places)
        changes = [word for value in values for word in ("--set", value)]
        vectors = tmp_path / f"{stage}-vectors"
        common = ("--data", tmp_path / "data", *changes)
        assert run("teach", folder / stage, "--out", vectors, *common) == 0
        out = tmp_path / f"{stage}-run"
        options = ("--model", tmp_path / "student", "--vectors", vectors, "--out", out, "--device", "cpu")
        assert run("train", folder / stage, *options, *common, *previous) == 0
        previous = ("--start", out / "last")
        assert len((out / "log.jsonl").read_text().splitlines()) == 2
