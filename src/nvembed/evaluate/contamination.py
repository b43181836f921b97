"""Does the training set hold what the evaluation asks? Exact and near duplicates, task by task.

What is looked for depends on the task: the pair (in either order) for STS and pair classification, the query
for retrieval, the text for classification and clustering. These are indexed; training texts stream by.

Exact and near are as ``text/near.py`` has it; a pair is compared as one text, its two sorted and joined.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nvembed.errors import DataError
from nvembed.evaluate import read
from nvembed.evaluate.tasks import Labelled, Pairs, Retrieval, Sets, Task
from nvembed.text.near import NEAR, SHORTEST, NearIndex, normalise

EXAMPLES = 5


@dataclass(frozen=True)
class Contamination:
    """What of one task stands in the training texts."""

    task: str
    unit: str  # "pair", "query" or "text"
    units: int
    exact: int
    near: int  # not exact
    examples: list[tuple[str, str, float]] = field(default_factory=list)  # evaluation, training, similarity


def contamination(
    task: Task, training: Iterable[Sequence[str]], *, threshold: float = NEAR, shortest: int = SHORTEST
) -> Contamination:
    """Find the task's units among training examples (the texts of one example each).

    Every text of an example is compared, and for pair tasks every two neighbours of it together. Units of
    fewer than ``shortest`` characters match only exactly.
    """
    unit, texts = _units(task)
    index = NearIndex(map(normalise, texts), near=threshold, shortest=shortest)
    exact: set[int] = set()
    best: dict[int, tuple[str, float]] = {}  # what is most like each unit: training text, similarity
    seen: set[str] = set()
    for example in training:
        parts = [normalise(text) for text in example]
        for part in map(_pair, parts, parts[1:]) if unit == "pair" else iter(parts):
            if part in seen:
                continue
            seen.add(part)
            equal, near = index.matches(part)
            exact |= equal
            best |= dict.fromkeys(equal, (part, 1.0))
            for number, similarity in near.items():
                if number not in exact and similarity >= best.get(number, ("", 0.0))[1]:
                    best[number] = (part, similarity)
    nearly = sorted(best.keys() - exact)
    shown = [(texts[number], *best[number]) for number in [*nearly, *sorted(exact)][:EXAMPLES]]
    return Contamination(task.name, unit, len(texts), len(exact), len(nearly), shown)


def training_texts(path: Path) -> Iterator[list[str]]:
    """Yield the texts of every example of a JSON-lines file: query, positive, negatives; a pair; or one text.

    Raises:
        DataError: a line has none of these.
    """
    for line, row in read.rows(path):
        texts = [
            row[key]
            for key in ("query", "positive", "text1", "text2", "text")
            if isinstance(row.get(key), str)
        ]
        texts += [text for text in row.get("negatives", []) if isinstance(text, str)]
        if not texts:
            raise DataError(
                f"{path}:{line}: expected query and positive, text1 and text2, or text; got {sorted(row)}"
            )
        yield texts


def contamination_markdown(rows: Sequence[Contamination]) -> str:
    lines = ["| task | unit | units | exact | near | contaminated |", "|---|---|---:|---:|---:|---:|"]
    for row in rows:
        share = (row.exact + row.near) / row.units
        lines.append(
            f"| {row.task} | {row.unit} | {row.units:,} | {row.exact:,} | {row.near:,} | {share:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _units(task: Task) -> tuple[str, list[str]]:
    data = task.data
    if isinstance(data, Pairs):
        return "pair", [
            _pair(normalise(x), normalise(y)) for x, y in zip(data.text1, data.text2, strict=True)
        ]
    if isinstance(data, Retrieval):
        return "query", list(data.queries.values())
    if isinstance(data, Labelled):
        return "text", list(data.texts)
    if isinstance(data, Sets):
        return "text", [text for texts in data.texts for text in texts]
    return "text", [text for texts in data.machine for text in texts]


def _pair(x: str, y: str) -> str:
    """Two normalised texts as one, whichever comes first."""
    return " ".join(sorted((x, y))).strip()
