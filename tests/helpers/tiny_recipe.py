"""A recipe of both stages on twelve animals, for tests that run whole commands."""

import json
from pathlib import Path

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
