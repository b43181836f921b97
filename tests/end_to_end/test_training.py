"""The whole way of a small recipe: mine, train, mine again, train again, export, evaluate."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import tiny_lm
from eval_folders import make_retrieval

from conftest import ROOT
from nvembed.encoder import Encoder

STAGE = """
stage = {stage}
blend = "blend.toml"
[model]
base = "tiny"
bidirectional = true
pooling = "latent"
num_latents = 16
num_heads = 2
head_dim = 32
max_tokens = 120
[batch]
global_batch = 4
hard_negatives = 2
in_batch_negatives = {in_batch}
micro_batch_tokens = 512
[loss]
temperature = 0.05
[optimizer]
steps = 4
learning_rate = 1e-2
pooler_learning_rate = 1e-2
warmup_steps = 1
schedule = "linear"
weight_decay = 0.03
betas = [0.9, 0.999]
epsilon = 1e-8
max_grad_norm = 1.0
[adapter]
kind = "lora"
rank = 4
alpha = 8
[run]
dtype = "float32"
seed = 1
evaluate_every = 2
save_every = 2
"""
BLEND = """
seed = 1
[sets.animals]
task = "SQuAD"
stages = [1, 2]
samples = 12
form = "pairs"
licence = "made here"
path = "pairs.jsonl"
rows = 12
"""
MINING = """
teacher = "bm25"
instruct = false
[rule]
method = "percentage"
threshold = 0.95
negatives = 3
depth = 8
sampling = "top"
top_up = true
"""
ANIMALS = [
    "otter",
    "heron",
    "badger",
    "lynx",
    "raven",
    "adder",
    "salmon",
    "beetle",
    "marten",
    "osprey",
    "weasel",
    "curlew",
]


def tiny_recipe(tmp_path: Path) -> Path:
    """Write a recipe's folder and its data; return the folder."""
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "blend.toml").write_text(BLEND)
    (recipe / "mining.toml").write_text(MINING)
    for stage, in_batch in ((1, "true"), (2, "false")):
        (recipe / f"stage{stage}.toml").write_text(STAGE.format(stage=stage, in_batch=in_batch))
    pairs = [
        {"query": f"where does the {name} live?", "positive": f"The {name} lives by the river and eats fish."}
        for name in ANIMALS
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return recipe


def test_reproduce_from_beginning_to_end(tmp_path: Path) -> None:
    """The script: stopped by a folder of another run, then given again."""
    recipe = tiny_recipe(tmp_path)
    tiny_lm.folder(tmp_path / "lm", tiny_lm.sizes())
    make_retrieval(tmp_path / "tasks" / "SQuAD", passages=12, queries=4)
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "nvembed").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from nvembed.cli.main import main; main()" "$@"\n'
    )
    (bin_folder / "nvembed").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "DATA": ".",
        "BASE": "lm",
        "DEV": "tasks/SQuAD",
        "EVAL": "tasks",
    }

    def run() -> subprocess.CompletedProcess[str]:
        command = ["bash", str(ROOT / "recipes" / "reproduce.sh"), str(recipe), "work"]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    (tmp_path / "work" / "stage1").mkdir(parents=True)
    (tmp_path / "work" / "stage1" / "settings.json").write_text("{}")
    stopped = run()
    assert stopped.returncode == 1, "a step that fails ends the script"
    assert "4/7" not in stopped.stderr
    (tmp_path / "work" / "stage1" / "settings.json").unlink()
    work = tmp_path / "work"
    finished = [work / "base" / "model.safetensors", work / "data1" / "animals.jsonl"]
    kept = [path.stat().st_mtime_ns for path in finished]
    done = run()
    assert done.returncode == 0, done.stderr
    assert [path.stat().st_mtime_ns for path in finished] == kept, "what is finished is not made again"
    assert sorted(path.name for path in work.iterdir()) == sorted(
        ["base", "data1", "data2", "model", "results", "stage1", "stage2", "teacher"]
    )
    assert (work / "model" / "adapter_model.safetensors").is_file()
    assert not (work / "model" / "model.safetensors").exists()
    for name in ("data1", "data2"):
        mined = [json.loads(line) for line in (work / name / "animals.jsonl").read_text().splitlines()]
        assert len(mined) == 12
        assert all(row["hard_negatives"] for row in mined)
        assert not any(row["positives"][0] in row["hard_negatives"] for row in mined)
    teachers = [(work / name / "animals.settings.json").read_text() for name in ("data1", "data2")]
    assert "bm25" in teachers[0]
    assert "work/teacher" in teachers[1]
    for stage in ("stage1", "stage2"):
        log = (work / stage / "log.jsonl").read_text().splitlines()
        assert (sum('"loss"' in line for line in log), sum('"scores"' in line for line in log)) == (4, 2)
    texts = [f"where does the {name} live?" for name in ANIMALS]
    vectors = {
        name: Encoder.from_pretrained(work / name, device="cpu").encode(texts)
        for name in ("base", "teacher", "model")
    }
    assert np.abs(vectors["teacher"] - vectors["base"]).max() > 1e-3
    assert np.abs(vectors["model"] - vectors["teacher"]).max() > 1e-3
    scored = {path.parent.parent.name for path in (work / "results").glob("*/*/SQuAD.json")}
    assert len(scored) == 4
    assert {"local__untrained", "local__stage1", "local__stage2"} < scored
