"""Does training contain what is tested on? Equal and nearly equal texts, and whole records that leak.

Two texts *match* when they are equal but for case, punctuation and white space, or when the Jaccard
similarity of their sets of 5-character shingles is at least ``NEAR``, for texts of ``NEAR_LENGTH`` characters
and more: in shorter ones that would be a word, and another meaning. A training record *leaks* a held-out
record when it has a match for each of that record's texts: both sentences of an STS pair, the one text of a
classification record, the query of a retrieval set. Passages of a retrieval corpus are no held-out record of
their own: to train on a passage that is also searched is no leak of what its query asks.

Paper: section 4.2 filters Emotion and AmazonCounterfactual by BM25 similarity to the test sets, with no
threshold given, and clustering sets by equality. Differs: near duplicates replace the BM25 score, whose scale
depends on the corpus.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nvembed.data.example import Example

NEAR = 0.8
NEAR_LENGTH = 60

Record = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What one training set has in common with one held-out set."""

    training: str
    held_out: str
    records: int
    """Training records looked at."""
    touching: int
    """Training records of which some text matches a held-out text."""
    leaking: int
    """Training records that leak a held-out record."""
    leaked: int
    """Held-out records that are leaked: what the published overlap counts count."""
    leaked_exactly: int
    """Of these, the ones whose texts are all equal, not only near."""
    examples: tuple[tuple[Record, Record], ...]
    """A few leaks for the eye: the training record, the held-out record."""


class HeldOut:
    """The records of one held-out set, ready to be asked what a training record leaks."""

    def __init__(self, records: Iterable[Record], *, near: float = NEAR) -> None:
        self.records: list[Record] = [tuple(record) for record in records]
        numbers: dict[str, int] = {}
        # every record as the set of its texts' numbers, and for each text the records it stands in
        self._texts_of: list[frozenset[int]] = [
            frozenset(numbers.setdefault(plain(text), len(numbers)) for text in record)
            for record in self.records
        ]
        self._records_of: dict[int, list[int]] = defaultdict(list)
        for index, texts in enumerate(self._texts_of):
            for number in texts:
                self._records_of[number].append(index)
        self._index = TextIndex(list(numbers), near=near)

    def leaks(self, record: Record) -> tuple[list[int], list[int]]:
        """Return the numbers of the held-out records that ``record`` leaks, and of those it leaks exactly."""
        equal, near = self.matches(record)
        return self._covered(equal | near), self._covered(equal)

    def matches(self, record: Record) -> tuple[set[int], set[int]]:
        """Return the held-out texts that some text of ``record`` equals, and those it is only near to."""
        equal: set[int] = set()
        near: set[int] = set()
        for text in record:
            found_equal, found_near = self._index.matches(plain(text))
            equal |= found_equal
            near |= found_near
        return equal, near - equal

    def _covered(self, matched: set[int]) -> list[int]:
        candidates = {index for number in matched for index in self._records_of[number]}
        return sorted(index for index in candidates if self._texts_of[index] <= matched)


def audit(training: Mapping[str, Iterable[Record]], held_out: Mapping[str, HeldOut]) -> list[Finding]:
    """Compare every training set with every held-out set; sets that share nothing are left out.

    Each training set is read once and one record at a time.
    """
    findings = []
    for name, records in training.items():
        counts: dict[str, Counter[str]] = {other: Counter() for other in held_out}
        leaked: dict[str, tuple[set[int], set[int]]] = {other: (set(), set()) for other in held_out}
        shown: dict[str, list[tuple[Record, Record]]] = defaultdict(list)
        total = 0
        for record in records:
            total += 1
            for other, held in held_out.items():
                equal, near = held.matches(record)
                if not equal | near:
                    continue
                counts[other]["touching"] += 1
                found, exact = held.leaks(record)
                if found:
                    counts[other]["leaking"] += 1
                    leaked[other][0].update(found)
                    leaked[other][1].update(exact)
                    if len(shown[other]) < 5:
                        shown[other].append((record, held.records[found[0]]))
        for other, count in counts.items():
            if count["touching"]:
                everything, exactly = leaked[other]
                findings.append(
                    Finding(
                        training=name,
                        held_out=other,
                        records=total,
                        touching=count["touching"],
                        leaking=count["leaking"],
                        leaked=len(everything),
                        leaked_exactly=len(exactly),
                        examples=tuple(shown[other]),
                    )
                )
    return findings


def without_leaks(examples: Iterable[Example], held_out: Sequence[HeldOut]) -> Iterator[Example]:
    """Yield the examples that leak no held-out record."""
    for example in examples:
        record = record_of(example)
        if not any(held.leaks(record)[0] for held in held_out):
            yield example


class Runs:
    """All runs of ``words`` words of some texts: finds passages cut from one source, whole or in part."""

    def __init__(self, texts: Iterable[str], *, words: int = 8) -> None:
        self._words = words
        self._runs = {run for text in texts for run in self._runs_of(text)}

    def shares(self, text: str) -> bool:
        """Return whether ``text`` has a run of words in common with the texts."""
        return any(run in self._runs for run in self._runs_of(text))

    def _runs_of(self, text: str) -> Iterator[int]:
        parts = plain(text).split()
        return (hash(tuple(parts[i : i + self._words])) for i in range(len(parts) - self._words + 1))


def record_of(example: Example) -> Record:
    """The texts by which an example can leak: the query and its positives."""
    return (example.query, *example.positives)


def plain(text: str) -> str:
    """Return the letters and digits of ``text`` in lower case, words parted by one space."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


class TextIndex:
    """Finds the texts of a list that equal, or nearly equal, a given one.

    Near duplicates come from MinHash signatures in bands (a pair of similarity ``s`` shares a band with
    probability ``1 - (1 - s**4)**12``: 0.998 at 0.8), and each candidate's similarity is then computed.
    """

    def __init__(self, texts: Sequence[str], *, near: float = NEAR) -> None:
        self._near = near
        self._equal: dict[str, int] = {text: number for number, text in enumerate(texts)}
        self._texts = list(texts)
        self._bands: dict[bytes, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            for band in _bands(shingles(text)) if len(text) >= NEAR_LENGTH else ():
                self._bands[band].append(number)

    def matches(self, text: str) -> tuple[set[int], set[int]]:
        """Return the numbers of the texts that equal ``text``, and of those that are near to it."""
        equal = {self._equal[text]} if text in self._equal else set()
        if len(text) < NEAR_LENGTH:
            return equal, set()
        own = shingles(text)
        candidates = {number for band in _bands(own) for number in self._bands.get(band, ())} - equal
        return equal, {n for n in candidates if jaccard(own, shingles(self._texts[n])) >= self._near}


SHINGLE = 5
_ROWS, _BANDS = 4, 12
_MIX = np.random.default_rng(0).integers(1, 2**63, size=(2, _ROWS * _BANDS), dtype=np.uint64)
_POWERS = np.uint64(1_099_511_628_211) ** np.arange(SHINGLE, dtype=np.uint64)


def shingles(text: str) -> np.ndarray:
    """Return the distinct hashes (uint64, sorted) of the runs of 5 bytes; a shorter text has one."""
    data = np.frombuffer(text.encode().ljust(SHINGLE), dtype=np.uint8).astype(np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(data, SHINGLE)
    return np.unique(runs @ _POWERS)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return ``|A and B| / |A or B|`` of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _bands(own: np.ndarray) -> list[bytes]:
    # multiply-shift hashing: the high half of a * x + b, modulo 2**64
    hashed = (own[:, None] * (_MIX[0] | np.uint64(1)) + _MIX[1]) >> np.uint64(32)
    signature = hashed.min(axis=0).astype(np.uint32).reshape(_BANDS, _ROWS)
    return [bytes([band]) + row.tobytes() for band, row in enumerate(signature)]
