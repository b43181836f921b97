"""Students in any layout, teachers and projections, within the one training loop."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from tiny_sentence import sentence_folder
from training import DISTIL, TEACHER, WORDS, job, log_of, recipe, teach

from nvembed.data.example import Example
from nvembed.errors import ConfigError
from nvembed.train import checkpoint
from nvembed.train.distil import Teacher, teacher_texts
from nvembed.train.log import StepRecord
from nvembed.train.loop import TrainingJob, encode, train
from nvembed.train.recipe import StageRecipe
from nvembed.weights.adapter import read_adapter
from nvembed.weights.checkpoint import (
    fingerprint,
    first_layers,
    load_model,
    load_tokenizer,
    merged_tensors,
    open_checkpoint,
)
from nvembed.weights.save_sentence_transformers import save_trained
from nvembed.weights.tensors import Checkpoint

STUDENT = {"model": {"pooling": "mean", "max_tokens": 24}}
FULL = {"kind": "full", "dropout": 0.0}


class Killed(BaseException):
    """Stands for what no handler sees."""


def halves(texts: Sequence[tuple[str, str]]) -> np.ndarray:
    """A second teacher, which knows the first five words."""
    vectors = teach(texts)[:, :5]
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def student_job(folder: Path, model: Checkpoint, settings: StageRecipe, **changes: Any) -> TrainingJob:
    teachers = {"words": Teacher(len(WORDS), teach), "half": Teacher(5, halves), "": Teacher(5, halves)}
    made = job(folder, settings, teachers={name: teachers[name] for name in settings.teachers}, **changes)
    return replace(
        made,
        model=load_model(model, device="cpu", dtype=torch.float32, fold=False),
        tokenizer=load_tokenizer(model),
        identity={"base": fingerprint(model)},
    )


def written(model: Checkpoint, state: Path, out: Path) -> Path:
    save_trained(out, model, merged_tensors(model, read_adapter(state)))
    return out


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("bert", "full"),
        ("xlm-roberta", "lora"),
        ("mpnet", "full"),
        ("modernbert", "full"),
        ("gemma3", "full"),
        ("gemma3", "lora"),
        ("qwen3", "lora"),
    ],
)
def test_a_student_of_any_family_learns_and_opens_in_sentence_transformers(
    tmp_path: Path, family: str, kind: str
) -> None:
    sentence_folder(tmp_path / "student", family, dense=(20,) if family == "gemma3" else ())
    model = open_checkpoint(tmp_path / "student")
    settings = recipe(
        **STUDENT, distil=DISTIL, optimizer={"steps": 2, "warmup_steps": 1},
        adapter={**FULL, "kind": kind, "targets": ["q_proj", "v_proj"]},
        run={"evaluate_every": 9, "save_every": 9},
    )  # fmt: skip
    made = student_job(tmp_path / "run", model, settings)
    assert train(made).progress.step == 2
    out = written(model, tmp_path / "run" / "last", tmp_path / "out")
    texts = ["judo mask", "green river", "seven"]
    own = encode(made, texts, "", max_tokens=100)
    library = SentenceTransformer(str(out), device="cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(library, own, atol=1e-5)
    before = SentenceTransformer(str(tmp_path / "student"), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    assert np.abs(before - own).max() > 1e-3


@pytest.mark.parametrize("family", ["bert", "gemma3", "modernbert", "distilbert"])
def test_the_first_layers_are_a_model_of_their_own(tmp_path: Path, family: str) -> None:
    sentence_folder(tmp_path / "student", family)
    model = first_layers(open_checkpoint(tmp_path / "student"), 1)
    settings = recipe(
        **STUDENT, adapter={"kind": "full"}, optimizer={"steps": 1, "warmup_steps": 0},
        run={"evaluate_every": 9, "save_every": 9},
    )  # fmt: skip
    made = student_job(tmp_path / "run", model, settings)
    train(made)
    out = written(model, tmp_path / "run" / "last", tmp_path / "out")
    library = SentenceTransformer(str(out), device="cpu")
    texts = ["judo mask", "green river"]
    np.testing.assert_allclose(
        library.encode(texts, normalize_embeddings=True), encode(made, texts, "", max_tokens=100), atol=1e-5
    )
    assert open_checkpoint(out).config.backbone.num_layers == 1
    with pytest.raises(ConfigError, match="layers"):
        first_layers(open_checkpoint(out), 2)


@pytest.mark.parametrize("joined", [False, True])
def test_a_killed_distillation_goes_on_exactly(tmp_path: Path, joined: bool) -> None:
    sentence_folder(tmp_path / "student", "bert")
    model = open_checkpoint(tmp_path / "student")
    two = {"words": {"model": "words", "weight": 2.0}, "half": {"model": "half"}}
    settings = recipe(
        **STUDENT,
        loss={"dims": [16, 8], "outputs": ["float32", "int8", "binary"], "spread_out": 0.1, "info_nce": 0.5},
        distil={**DISTIL, "teachers": two, "joined": joined},
        teacher=TEACHER,
        adapter={"kind": "full", "frozen_layers": 1},
    )

    def kill(record: StepRecord) -> None:
        if record.step == 3:
            raise Killed

    whole = train(student_job(tmp_path / "whole", model, settings))
    with pytest.raises(Killed):
        train(student_job(tmp_path / "killed", model, settings), report=kill)
    assert train(student_job(tmp_path / "killed", model, settings)) == whole
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    states = [checkpoint.latest(tmp_path / name) for name in ("killed", "whole")]
    files = [{path.name: path.read_bytes() for path in state.iterdir()} for state in states if state]
    assert files[0] == files[1]
    assert "projections.safetensors" in files[0]
    assert not any("projection" in name for name in read_adapter(tmp_path / "whole" / "last").replaced)
    # a later stage without teachers starts from it
    plain = recipe(**STUDENT, adapter={"kind": "full", "frozen_layers": 1}, optimizer={"steps": 3})
    train(student_job(tmp_path / "next", model, plain, start=tmp_path / "whole" / "last"))


def test_the_loss_of_distillation_alone_falls(tmp_path: Path) -> None:
    sentence_folder(tmp_path / "student", "bert")
    settings = recipe(
        **STUDENT, loss={"info_nce": 0.0}, distil={**DISTIL, "squared": 0.0}, adapter={"kind": "full"},
        optimizer={"steps": 30, "learning_rate": 3e-3}, run={"evaluate_every": 30, "save_every": 30},
    )  # fmt: skip
    seen: list[StepRecord] = []
    train(student_job(tmp_path / "run", open_checkpoint(tmp_path / "student"), settings), report=seen.append)
    assert np.mean([record.loss for record in seen[-5:]]) < 0.6 * np.mean(
        [record.loss for record in seen[:3]]
    )


def test_what_a_teacher_reads() -> None:
    teachers = {
        "a": {"model": "a"},
        "b": {"model": "b", "own_prompts": True},
        "c": {"model": "c", "instruct": True},
    }
    settings = recipe(distil={**DISTIL, "teachers": teachers, "translations": ["Tatoeba"]})
    pair = Example(
        "hello", ("hallo",), "Tatoeba", hard_negatives=("nein",), instruction="Find", passage_instruction=""
    )
    same = Example("x", ("y",), "STS12", both_sides=True, instruction="Alike")
    own = ("Instruct: Find\nQuery: ", "hello")

    def reads(name: str, example: Example) -> dict[tuple[str, str], tuple[str, str]]:
        return teacher_texts(
            [example], settings, name, student_prompts=_prompts, own_prompts=("query: ", "passage: ")
        )

    assert reads("a", pair) == {own: ("", "hello"), ("", "hallo"): ("", "hello"), ("", "nein"): ("", "nein")}
    assert reads("b", pair) == {
        own: ("query: ", "hello"), ("", "hallo"): ("query: ", "hello"), ("", "nein"): ("passage: ", "nein")
    }  # fmt: skip
    assert reads("c", pair)[own] == own
    assert set(reads("b", same).values()) == {("query: ", "x"), ("query: ", "y")}


def _prompts(example: Example) -> tuple[str, str]:
    from nvembed.data.example import prompts

    return prompts(example)


def test_a_recipe_without_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="info_nce"):
        recipe(loss={"info_nce": 0.0})
    with pytest.raises(ValueError, match="cosine"):
        recipe(distil={**DISTIL, "cosine": 0.0, "squared": 0.0})
