"""Does training contain what is tested on? Equal and nearly equal texts, and whole records that leak.

Two texts *match* when they are equal or near, as ``text/near.py`` has it. A training record *leaks* a
held-out record when it has a match for each of that record's texts: both sentences of an STS pair, the one
text of a classification record, the query of a retrieval set. Passages of a retrieval corpus are no held-out
record of their own: to train on a passage that is also searched is no leak of what its query asks.

Paper: section 4.2 filters Emotion and AmazonCounterfactual by BM25 similarity to the test sets, with no
threshold given, and clustering sets by equality. Differs: near duplicates replace the BM25 score, whose scale
depends on the corpus.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from nvembed.data.example import Example
from nvembed.text.near import NEAR, NearIndex, normalise

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
        # Every record as the set of its texts' numbers, and for each text the records it stands in. A text
        # without a letter or digit says nothing: it matches no other.
        plains = [[text for text in map(normalise, record) if text] for record in self.records]
        self._texts_of = [
            frozenset(numbers.setdefault(text, len(numbers)) for text in each) for each in plains
        ]
        self._records_of: dict[int, list[int]] = defaultdict(list)
        for index, texts in enumerate(self._texts_of):
            for number in texts:
                self._records_of[number].append(index)
        self._index = NearIndex(numbers, near=near)

    def leaks(self, record: Record) -> tuple[list[int], list[int]]:
        """Return the numbers of the held-out records that ``record`` leaks, and of those it leaks exactly."""
        equal, near = self.matches(record)
        return self._covered(equal | near), self._covered(equal)

    def matches(self, record: Record) -> tuple[set[int], set[int]]:
        """Return the held-out texts that some text of ``record`` equals, and those it is only near to."""
        equal: set[int] = set()
        near: set[int] = set()
        for text in record:
            found_equal, found_near = self._index.matches(normalise(text))
            equal |= found_equal
            near |= found_near.keys()
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
        if not leaks_any(record_of(example), held_out):
            yield example


def leaks_any(record: Record, held_out: Iterable[HeldOut]) -> bool:
    """Return whether ``record`` leaks a record of some held-out set."""
    return any(held.leaks(record)[0] for held in held_out)


class Runs:
    """All runs of ``words`` words of some texts: finds passages cut from one source, whole or in part."""

    def __init__(self, texts: Iterable[str], *, words: int = 8) -> None:
        self._words = words
        self._runs = {run for text in texts for run in self._runs_of(text)}

    def shares(self, text: str) -> bool:
        """Return whether ``text`` has a run of words in common with the texts."""
        return any(run in self._runs for run in self._runs_of(text))

    def _runs_of(self, text: str) -> Iterator[int]:
        parts = normalise(text).split()
        return (hash(tuple(parts[i : i + self._words])) for i in range(len(parts) - self._words + 1))


def record_of(example: Example) -> Record:
    """The texts by which an example can leak: the query and its positives."""
    return (example.query, *example.positives)
