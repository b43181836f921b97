"""Evaluation texts in training data: equal and nearly equal texts, and whole records that leak.

Two texts *match* when they are equal or nearly equal, as ``text/near.py`` defines it. A training record
*leaks* a held-out record when it has a match for each of that record's texts: both sentences of an STS pair,
the one text of a classification record, the query of a retrieval set. The passages of a retrieval corpus are
not held-out records: training on a passage that is also searched does not leak what a query asks.

Paper: section 4.2 filters Emotion and AmazonCounterfactual by BM25 similarity to the test sets, with no
threshold stated, and clustering sets by equality. Differs: near duplicates replace the BM25 score, whose
scale depends on the corpus.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from nvembed.data.example import Example
from nvembed.text.near import NEAR, NearIndex, normalise

TextRecord = tuple[str, ...]  # the texts of one training or held-out record
SHOWN = 5  # leaks that a finding shows


@dataclass(frozen=True)
class Overlap:
    """What one training set has in common with one held-out set."""

    training: str
    held_out: str
    records: int
    """Training records that were compared."""
    touching: int
    """Training records with a text that matches some held-out text."""
    leaking: int
    """Training records that leak a held-out record."""
    held_out_records: int
    """Records of the held-out set."""
    leaked: int
    """Held-out records that are leaked."""
    leaked_exactly: int
    """Leaked records whose texts are all equal to training texts, not only nearly."""
    examples: tuple[tuple[TextRecord, TextRecord], ...]
    """Up to five leaks: the training record, the held-out record."""

    @property
    def share(self) -> float:
        """The share of the held-out records that are leaked, 0 to 1."""
        return self.leaked / self.held_out_records


class HeldOut:
    """The records of one held-out set, indexed to compare a training record with all of them at once.

    Args:
        near: the similarity from which two texts match.
        joined: also compare pairs as one text, so that two short sentences, which must be equal to match by
            themselves, can be nearly equal together.
    """

    def __init__(self, records: Iterable[TextRecord], *, near: float = NEAR, joined: bool = False) -> None:
        self.records: list[TextRecord] = [tuple(record) for record in records]
        numbers: dict[str, int] = {}
        # Every record as the set of its texts' numbers, and for each text the records that contain it. A text
        # without a letter or digit carries no meaning: it matches no other.
        plain = [[text for text in map(normalise, record) if text] for record in self.records]
        self._texts_of = [
            frozenset(numbers.setdefault(text, len(numbers)) for text in each) for each in plain
        ]
        self._records_of: dict[int, list[int]] = defaultdict(list)
        for index, texts in enumerate(self._texts_of):
            for number in texts:
                self._records_of[number].append(index)
        self._index = NearIndex(numbers, near=near)
        self._pairs = [number for number, texts in enumerate(plain) if joined and len(texts) == 2]
        self._pair_index = NearIndex((_join(*plain[number]) for number in self._pairs), near=near)

    def matches(self, record: TextRecord) -> tuple[set[int], set[int]]:
        """Return the numbers of the held-out texts that ``record`` matches, and of those that it contains."""
        equal: set[int] = set()
        near: set[int] = set()
        for text in record:
            same, similar = self._index.matches(normalise(text))
            equal |= same
            near |= similar.keys()
        return equal | near, equal

    def covered(self, texts: set[int]) -> list[int]:
        """Return the numbers of the held-out records whose texts are all among ``texts``."""
        candidates = {index for number in texts for index in self._records_of[number]}
        return sorted(index for index in candidates if self._texts_of[index] <= texts)

    def near_pairs(self, record: TextRecord) -> set[int]:
        """Return the held-out pairs, by number, that two texts of ``record`` joined match."""
        if not self._pairs or len(record) < 2:
            return set()
        first, *others = plain = [normalise(text) for text in record]
        pairs: set[int] = set()
        for text in {_join(*pair) for pair in (*((first, other) for other in others), *pairwise(plain))}:
            equal, near = self._pair_index.matches(text)
            pairs |= {self._pairs[number] for number in (*equal, *near)}
        return pairs

    def leaks(self, record: TextRecord) -> list[int]:
        """Return the numbers of the held-out records that ``record`` leaks."""
        return sorted({*self.covered(self.matches(record)[0]), *self.near_pairs(record)})


def find_overlaps(
    training: Mapping[str, Iterable[TextRecord]], held_out: Mapping[str, HeldOut]
) -> list[Overlap]:
    """Compare every training set with every held-out set, each training set read once."""
    overlaps = []
    for name, records in training.items():
        tallies = {other: _Tally(held) for other, held in held_out.items()}
        total = 0
        for record in records:
            total += 1
            for tally in tallies.values():
                tally.add(record)
        overlaps += [tally.overlap(name, other, total) for other, tally in tallies.items()]
    return overlaps


class _Tally:
    """Counts what one training set has in common with one held-out set."""

    def __init__(self, held: HeldOut) -> None:
        self.held = held
        self.touching = self.leaking = 0
        self.leaked: set[int] = set()
        self.exactly: set[int] = set()
        self.shown: list[tuple[TextRecord, TextRecord]] = []

    def add(self, record: TextRecord) -> None:
        texts, equal = self.held.matches(record)
        leaked = sorted({*self.held.covered(texts), *self.held.near_pairs(record)})
        self.touching += bool(texts or leaked)
        if not leaked:
            return
        self.leaking += 1
        self.leaked.update(leaked)
        self.exactly.update(self.held.covered(equal))
        if len(self.shown) < SHOWN:
            self.shown.append((record, self.held.records[leaked[0]]))

    def overlap(self, training: str, held_out: str, total: int) -> Overlap:
        return Overlap(
            training=training,
            held_out=held_out,
            records=total,
            touching=self.touching,
            leaking=self.leaking,
            held_out_records=len(self.held.records),
            leaked=len(self.leaked),
            leaked_exactly=len(self.exactly),
            examples=tuple(self.shown),
        )


def without_leaks(examples: Iterable[Example], held_out: Sequence[HeldOut]) -> Iterator[Example]:
    """Yield the examples that leak no held-out record."""
    return (example for example in examples if not leaks_any(record_of(example), held_out))


def leaks_any(record: TextRecord, held_out: Iterable[HeldOut]) -> bool:
    """Return whether ``record`` leaks a record of some held-out set."""
    return any(held.leaks(record) for held in held_out)


def record_of(example: Example) -> TextRecord:
    """Return the texts by which an example, not yet mined, can leak: the query and its positives."""
    return (example.query, *example.positives)


def _join(first: str, second: str) -> str:
    """Return two normalised texts as one, the same in either order."""
    return " ".join(sorted((first, second)))
