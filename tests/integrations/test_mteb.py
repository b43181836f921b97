"""An encoder in ``mteb.evaluate``, in a user's own script."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_folders import make_all

from harness import as_mteb_task
from nvembed.encoder import Encoder
from nvembed.evaluate.outcome import Prompts
from nvembed.evaluate.protocol import run_task
from nvembed.evaluate.tasks import find_tasks, load_task

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    mteb = pytest.importorskip("mteb")
    from nvembed.integrations.mteb import mteb_model

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning", "ResourceWarning")
]


@pytest.mark.parametrize("name", ["news", "alike", "topics"])
def test_scores_are_those_of_nvembed_evaluate(tmp_path: Path, tiny_encoder: Encoder, name: str) -> None:
    task = load_task(find_tasks(make_all(tmp_path), [name])[0])
    model = mteb_model(tiny_encoder, instructions={name: ""})
    result = mteb.evaluate(model, as_mteb_task(task), cache=None, co2_tracker=False, show_progress_bar=False)
    scores: Any = next(iter(result.task_results[0].scores.values()))[0]

    def encode(texts: Any, prompt: str) -> np.ndarray:
        return tiny_encoder.encode(list(texts), prompt=prompt, max_length=512)

    outcome = run_task(task, encode, Prompts())
    assert scores["main_score"] == pytest.approx(outcome.scores[outcome.main], abs=1e-4)


def test_it_is_an_encoder_of_mteb(tiny_encoder: Encoder) -> None:
    from mteb.models import EncoderProtocol

    model = mteb_model(tiny_encoder, name="me/mine")
    assert isinstance(model, EncoderProtocol)
    assert model.mteb_model_meta.name == "me/mine"
