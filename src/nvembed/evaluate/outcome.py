"""What a protocol is given, and what it gives back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Embed = Callable[[Sequence[str], str], np.ndarray]  # texts, the whole prompt before each -> unit rows


@dataclass(frozen=True)
class Prompts:
    """The strings put before the texts of either side; a symmetric task puts ``query`` before every text."""

    query: str = ""
    corpus: str = ""


@dataclass(frozen=True)
class Items:
    """What a comparison resamples: the main score is ``statistic`` of these rows.

    ``statistic`` is ``mean`` of value, or ``spearman``, ``average_precision`` or ``v_measure`` of gold and
    value.
    """

    statistic: str
    ids: list[str]
    value: np.ndarray
    gold: np.ndarray | None = None


@dataclass(frozen=True)
class Outcome:
    """A task's scores (fractions, as in mteb's result files), the main one, and the items behind it."""

    scores: dict[str, Any]
    main: str
    items: Items


def numbered(values: Sequence[Any] | np.ndarray) -> list[str]:
    """Ids for items that have none: their positions."""
    return [str(i) for i in range(len(values))]
