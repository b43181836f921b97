"""Does the training set hold what the evaluation asks? Exact and near duplicates, task by task.

What is looked for depends on the task: the pair (in either order) for STS and pair classification, the query
for retrieval, the text for classification and clustering. These are indexed; training texts stream by.

Exact: equal after ``normalise``. Near: Jaccard similarity of the sets of 5-letter shingles at or above a
threshold; candidates come from MinHash signatures in bands, and each is verified on the whole sets.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from nvembed.errors import DataError
from nvembed.evaluate import read
from nvembed.evaluate.tasks import Labelled, Pairs, Retrieval, Sets, Task

SHINGLE = 5
BANDS, ROWS = 16, 4  # two texts of similarity 0.8 share a band with probability 0.9998; of 0.5, 0.64
THRESHOLD = 0.8
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


def normalise(text: str) -> str:
    """Lower case, compatibility forms, letters and digits only, one space between words."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).lower()).strip()


def contamination(
    task: Task, training: Iterable[Sequence[str]], *, threshold: float = THRESHOLD
) -> Contamination:
    """Find the task's units among training examples (the texts of one example each).

    Every text of an example is compared, and for pair tasks every two neighbours of it together.
    """
    unit, texts = _units(task)
    index = _Index([normalise(text) for text in texts], threshold)
    for example in training:
        parts = [normalise(text) for text in example]
        for part in map(_pair, parts, parts[1:]) if unit == "pair" else iter(parts):
            index.look_up(part)
    exact, near = index.found(exact=True), index.found(exact=False)
    shown = [(texts[i], *index.best[i]) for i in [*near, *exact][:EXAMPLES]]
    return Contamination(task.name, unit, len(texts), len(exact), len(near), shown)


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
    return " ".join(sorted((x, y)))


class _Index:
    """Evaluation texts by content and by MinHash bands, and the best training text found for each."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self.texts, self.threshold = texts, threshold
        self.best: dict[int, tuple[str, float]] = {}
        self._same: dict[str, list[int]] = {}
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        self._seen: set[str] = set()
        for i, text in enumerate(texts):
            self._same.setdefault(text, []).append(i)
            for band in bands(shingles(text)):
                self._bands.setdefault(band, []).append(i)

    def look_up(self, text: str) -> None:
        if text in self._seen:
            return
        self._seen.add(text)
        for i in self._same.get(text, ()):
            self.best[i] = (text, 1.0)
        grams = shingles(text)
        for i in {i for band in bands(grams) for i in self._bands.get(band, ())}:
            if self.texts[i] == text or self.best.get(i, ("", 0.0))[1] == 1.0:
                continue
            similarity = min(jaccard(grams, shingles(self.texts[i])), 1 - 1e-9)
            if similarity >= max(self.threshold, self.best.get(i, ("", 0.0))[1]):
                self.best[i] = (text, similarity)

    def found(self, *, exact: bool) -> list[int]:
        return sorted(i for i, (_, similarity) in self.best.items() if (similarity == 1.0) == exact)


def shingles(text: str) -> np.ndarray:
    """The set of 5-letter strings of a text as sorted 64-bit hashes; a shorter text is one shingle."""
    letters = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    if len(letters) < SHINGLE:
        letters = np.pad(letters, (0, SHINGLE - len(letters)))
    windows = np.lib.stride_tricks.sliding_window_view(letters, SHINGLE)
    mixed = np.zeros(len(windows), dtype=np.uint64)
    for column in windows.T:  # wraps around 2^64 on purpose
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)


def bands(grams: np.ndarray) -> list[tuple[int, bytes]]:
    """The signature of a set, cut into numbered bands: sets that share one are candidates.

    Each of the BANDS * ROWS hash functions takes its minimum over the set; two sets agree in one with the
    probability of their Jaccard similarity.
    """
    hashed = grams[None, :] * _MULTIPLIERS[:, None]
    hashed ^= hashed >> np.uint64(32)
    hashed *= np.uint64(0xD6E8FEB86659FD93)
    signature = hashed.min(axis=1).reshape(BANDS, ROWS)
    return [(number, row.tobytes()) for number, row in enumerate(signature)]
