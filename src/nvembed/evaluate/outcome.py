"""Input and result of a protocol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Embed = Callable[[Sequence[str], str], np.ndarray]  # texts, the prompt to prepend to each -> unit rows

# The origin of a prompt: --instruction, the recipe, the metadata of mteb's task, mteb's default for the type
# of task, the model's own prompts, or none.
PromptSource = Literal["option", "recipe", "mteb task", "mteb task type", "model", "none"]


@dataclass(frozen=True)
class Prompts:
    """The strings to prepend to the texts of each side; a symmetric task uses ``query`` for every text."""

    query: str = ""
    corpus: str = ""
    source: PromptSource = "none"


@dataclass(frozen=True)
class Items:
    """The rows that a comparison resamples: the main score is ``statistic`` of them.

    ``statistic`` is ``mean`` of value, or ``spearman``, ``average_precision`` or ``v_measure`` of gold and
    value.
    """

    statistic: str
    ids: list[str]
    value: np.ndarray
    gold: np.ndarray | None = None


@dataclass(frozen=True)
class TaskOutcome:
    """The scores of a task (fractions, as in mteb's result files), the main one's name, and its items."""

    scores: dict[str, Any]
    main: str
    items: Items


def numbered(values: Sequence[Any] | np.ndarray) -> list[str]:
    """Return positions as ids, for items that have none."""
    return [str(i) for i in range(len(values))]
