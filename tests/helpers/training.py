"""What the training tests share: a small model with a tokenizer, a recipe, and a stream of examples."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from conftest import TINY_A
from nvembed.data.example import Example
from nvembed.model.nv_embed import NVEmbed
from nvembed.text.tokenize import TextTokenizer
from nvembed.train.distil import Teacher
from nvembed.train.loop import TrainingJob
from nvembed.train.recipe import StageRecipe
from nvembed.weights.checkpoint import load_model, open_checkpoint

RECIPE: dict[str, Any] = {
    "stage": 1,
    "blend": "blend.toml",
    "model": {
        "base": "tiny",
        "bidirectional": True,
        "pooling": "latent",
        "num_latents": 8,
        "num_heads": 2,
        "head_dim": 8,
        "max_tokens": 64,
    },
    "batch": {"global_batch": 6, "hard_negatives": 2, "in_batch_negatives": True, "micro_batch_tokens": 90},
    "loss": {"temperature": 0.05},
    "optimizer": {
        "steps": 6,
        "learning_rate": 1e-2,
        "pooler_learning_rate": 1e-2,
        "warmup_steps": 2,
        "schedule": "linear",
        "weight_decay": 0.03,
        "betas": [0.9, 0.999],
        "epsilon": 1e-8,
        "max_grad_norm": 1.0,
    },
    "adapter": {"kind": "lora", "rank": 4, "alpha": 8, "dropout": 0.1},
    "run": {"dtype": "float32", "seed": 3, "evaluate_every": 2, "save_every": 2},
}


def recipe(**sections: dict[str, Any]) -> StageRecipe:
    """The recipe above with some keys of some sections changed."""
    merged = {
        name: {**value, **sections[name]} if name in sections else value for name, value in RECIPE.items()
    }
    merged |= {name: value for name, value in sections.items() if name not in merged}
    return StageRecipe.model_validate(merged, strict=False)


def toml(recipe: dict[str, Any]) -> str:
    """Write a recipe as its TOML file."""
    sections = {name: value for name, value in recipe.items() if isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in recipe.items() if name not in sections]
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines)


def tiny() -> tuple[NVEmbed, TextTokenizer]:
    """The parity checkpoint, plain and trainable, in float32."""
    import torch

    checkpoint = open_checkpoint(TINY_A)
    model = load_model(checkpoint, device="cpu", dtype=torch.float32, fold=False)
    return model, TextTokenizer(checkpoint.tokenizer_files()["tokenizer.json"], checkpoint.text)


WORDS = [
    "judo",
    "mask",
    "token",
    "river",
    "green",
    "seven",
    "technician",
    "michigan",
    "throw",
    "radio",
    "paper",
    "glass",
]


def examples(step: int, size: int) -> Sequence[Example]:
    """Return the examples of a step: the same whenever it is asked for."""
    draw = random.Random(step)

    def text(key: str) -> str:
        return " ".join([key, *draw.choices(WORDS, k=draw.randint(1, 12))])

    found = []
    for _ in range(size):
        key, other = draw.sample(WORDS, 2)
        found.append(
            Example(
                query=text(key),
                positives=(text(key),),
                hard_negatives=tuple(text(other) for _ in range(draw.randint(0, 3))),
                task=draw.choice(["NQ", "SNLI", "ArguAna"]),
            )
        )
    return found


DISTIL = {"cosine": 1.0, "squared": 0.5, "teachers": {"words": {"model": "words"}}}
TEACHER = {"model": "words", "instruct": False, "weight": 2.0, "temperature": 0.1}


def teach(texts: Sequence[tuple[str, str]]) -> np.ndarray:
    """A teacher that counts words: the unit vectors (n, 12)."""
    counts = np.array([[text.split().count(word) for word in WORDS] for _, text in texts], dtype=np.float32)
    counts += 0.1
    return np.asarray(counts / np.linalg.norm(counts, axis=1, keepdims=True))


def job(folder: Path, settings: StageRecipe, **changes: Any) -> TrainingJob:
    model, tokenizer = tiny()
    values = {
        "model": model,
        "tokenizer": tokenizer,
        "recipe": settings,
        "examples": examples,
        "folder": folder,
        "identity": {"base": "tiny"},
        "teachers": {name: Teacher(len(WORDS), teach) for name in settings.teachers},
    }
    return TrainingJob(**{**values, **changes})


def log_of(folder: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    timed = ("tokens_per_s", "seconds", "remaining_s")
    return [{key: value for key, value in record.items() if key not in timed} for record in records]
