"""The whole way of a small recipe on the command line: mine, train both stages, merge, encode."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from conftest import TINY_A

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
max_tokens = 48
[batch]
global_batch = 4
hard_negatives = 2
in_batch_negatives = {in_batch}
micro_batch_tokens = 128
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


def nvembed(*arguments: object, folder: Path) -> str:
    command = [sys.executable, "-c", "from nvembed.cli.main import main; main()", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_mine_train_merge_encode(tmp_path: Path) -> None:
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

    nvembed("mine", recipe, "--out", "data", folder=tmp_path)
    mined = [json.loads(line) for line in (tmp_path / "data" / "animals.jsonl").read_text().splitlines()]
    assert len(mined) == 12
    assert all(row["hard_negatives"] and row["positives"][0] not in row["hard_negatives"] for row in mined)

    common = ("--model", TINY_A, "--data", "data")
    nvembed("train", recipe / "stage1.toml", *common, "--out", "runs/1", folder=tmp_path)
    start = ("--start", "runs/1/last")
    nvembed("train", recipe / "stage2.toml", *common, "--out", "runs/2", *start, folder=tmp_path)
    steps = (tmp_path / "runs" / "2" / "log.jsonl").read_text().splitlines()
    assert sum('"loss"' in step for step in steps) == 4
    assert "4 steps" in nvembed(
        "train", recipe / "stage2.toml", *common, "--out", "runs/2", *start, folder=tmp_path
    ), "a finished run is said to be finished, not trained again"
    assert (tmp_path / "runs" / "2" / "log.jsonl").read_text().splitlines() == steps

    nvembed("merge", TINY_A, "runs/2/last", "merged", folder=tmp_path)
    (tmp_path / "texts.txt").write_text("where does the otter live?\n")
    vectors = {}
    for name, model in (("before", TINY_A), ("after", "merged")):
        nvembed("encode", model, "texts.txt", f"{name}.npy", "--dtype", "float32", folder=tmp_path)
        vectors[name] = np.load(tmp_path / f"{name}.npy")
    assert np.abs(vectors["after"] - vectors["before"]).max() > 1e-3
