"""What each of two processes runs in ``test_parallel.py``: started by torchrun, not by pytest."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from training import DISTIL, TEACHER, job, recipe

from nvembed.data.example import Example
from nvembed.train.loop import TrainingJob, train
from nvembed.train.parallel import join
from nvembed.train.recipe import StageRecipe

# Adam divides by the gradient's size: without a large epsilon, rounding in a vanishing gradient would show.
SMOOTH = {"steps": 4, "epsilon": 0.01}


def settings(**sections: dict[str, Any]) -> StageRecipe:
    plain: dict[str, dict[str, Any]] = {"adapter": {"dropout": 0.0}, "optimizer": SMOOTH}
    return recipe(**{**plain, **sections})


SCENARIOS: dict[str, tuple[StageRecipe, bool]] = {  # name -> recipe, sharded
    "uneven": (settings(batch={"global_batch": 5}), False),
    "taught": (settings(batch={"global_batch": 5}, teacher=TEACHER), False),
    "taught_empty": (settings(batch={"global_batch": 1}, teacher=TEACHER), False),
    "distilled": (settings(batch={"global_batch": 5}, teacher=TEACHER, distil=DISTIL), False),
    "empty": (settings(batch={"global_batch": 1}), False),
    "sharded": (settings(batch={"global_batch": 5}), True),
    "sharded_empty": (settings(batch={"global_batch": 1}), True),
    "sharded_graphs": (settings(batch={"global_batch": 5, "graph_tokens": 100}), True),
    "sharded_full": (settings(adapter={"kind": "full"}), True),
}


class KilledError(Exception):
    """Stands for a kill, without ending the processes."""


def killed(made: TrainingJob) -> TrainingJob:
    """The job, on ranks that all fall over after step 3; the last state is that of step 2."""

    def examples(step: int, size: int) -> Sequence[Example]:
        if step == 3:
            raise KilledError
        return made.examples(step, size)

    return replace(made, examples=examples)


def main(folder: Path) -> None:
    ranks, device = join("cpu")
    assert ranks.count == 2
    assert device.type == "cpu"
    assert ranks.agreed(ranks.rank + 0.1, device) == 0.1
    for name, (chosen, sharded) in SCENARIOS.items():
        train(job(folder / name, chosen), ranks=ranks, sharded=sharded)
    for name in ("uneven", "sharded"):
        chosen, sharded = SCENARIOS[name]
        try:
            train(killed(job(folder / f"{name}_resumed", chosen)), ranks=ranks, sharded=sharded)
        except KilledError:
            train(job(folder / f"{name}_resumed", chosen), ranks=ranks, sharded=sharded)
        else:
            raise AssertionError("expected the run to be killed")
    ranks.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
