"""Several sets as one stream of batches: by sample count, in an order decided by the seed and the step.

Paper: section 2.2: batches mix all sets ("well-blended"), so that no step belongs to one task. Ours: a batch
may mix runs of examples of one set, whose passages are harder in-batch negatives of each other (Merrick et
al. 2024, 2405.05374, use one set per batch).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from nvembed.data.example import Example, open_examples
from nvembed.errors import DataError, InputError


def draw(
    sizes: Sequence[int], samples: Sequence[int], *, seed: int, epoch: int, group: int = 1
) -> np.ndarray:
    """Return one epoch's order (N, 3) int64: set, row and turn of each place, ``sum(samples)`` in all.

    ``samples`` rows of a set of ``size`` are drawn: every row ``samples // size`` times, and some once more,
    chosen in each epoch. The turn counts how often the row came before. Then all rows are shuffled together,
    or runs of ``group`` rows of a set.

    Raises:
        InputError: an empty set, or a count below 1.
    """
    if len(sizes) != len(samples) or not sizes or min(*sizes, *samples) < 1:
        raise InputError(f"expected sets of 1 row or more and counts of 1 or more, got {sizes} and {samples}")
    rng = np.random.default_rng([seed, epoch])
    parts = []
    for number, (size, count) in enumerate(zip(sizes, samples, strict=True)):
        whole, rest = divmod(count, size)
        rows = np.concatenate([np.tile(np.arange(size), whole), rng.permutation(size)[:rest]])
        turns = np.repeat(np.arange(whole + 1), [size] * whole + [rest]) + epoch * -(-count // size)
        parts.append(np.stack([np.full(count, number), rows, turns], axis=1))
    if group == 1:
        return np.asarray(rng.permutation(np.concatenate(parts)), dtype=np.int64)
    runs = [part[i : i + group] for part in map(rng.permutation, parts) for i in range(0, len(part), group)]
    return np.concatenate([runs[index] for index in rng.permutation(len(runs))])


class Blend:
    """The training stream of one stage.

    ``batch(step, size)`` depends only on its arguments and the seed: to resume, request the next step. Memory
    holds the line starts and the order of one epoch.

    Args:
        files: name -> JSONL file of examples.
        samples: name -> how many examples an epoch draws; None for each once.
        seed: decides the order.
        group: how many examples of one set follow each other.

    Raises:
        DataError: a set without a file, or an empty one.
    """

    def __init__(
        self, files: Mapping[str, Path], samples: Mapping[str, int | None], *, seed: int, group: int = 1
    ) -> None:
        missing = [name for name in samples if name not in files or not files[name].is_file()]
        if missing:
            raise DataError(f"no file for {', '.join(missing)}: make it with nvembed mine")
        self.names = tuple(samples)
        self._sets = [open_examples(files[name]) for name in self.names]
        for name, examples in zip(self.names, self._sets, strict=True):
            if not len(examples):
                raise DataError(f"{files[name]}: expected examples of {name}, got an empty file")
        sizes = map(len, self._sets)
        self._samples = [samples[name] or size for name, size in zip(self.names, sizes, strict=True)]
        self._seed, self._group = seed, group
        self._epoch, self._order = -1, np.empty((0, 3), dtype=np.int64)

    def __len__(self) -> int:
        """How many examples an epoch has."""
        return sum(self._samples)

    def __getitem__(self, place: int) -> Example:
        """Return the example at a place of the endless stream; its first positive changes every turn."""
        epoch, index = divmod(place, len(self))
        if epoch != self._epoch:
            sizes = [len(examples) for examples in self._sets]
            self._order = draw(sizes, self._samples, seed=self._seed, epoch=epoch, group=self._group)
            self._epoch = epoch
        number, row, turn = map(int, self._order[index])
        return _turned(self._sets[number][row], turn)

    def batch(self, step: int, size: int) -> list[Example]:
        """Return the ``size`` examples of one step, counted from 0; a step may span two epochs."""
        return [self[place] for place in range(step * size, (step + 1) * size)]

    def check(self) -> int:
        """Read every record, and return how many there are.

        Raises:
            DataError: a record that cannot be trained on; the message names file and line.
        """
        return sum(1 for examples in self._sets for _ in examples)

    @property
    def identity(self) -> dict[str, str]:
        """What decides the stream, besides seed and group: the samples and the file's digest of each set."""
        sets = zip(self.names, self._samples, self._sets, strict=True)
        return {f"set {name}": f"{count} samples of {each.digest}" for name, count, each in sets}

    def close(self) -> None:
        for examples in self._sets:
            examples.close()


def _turned(example: Example, turn: int) -> Example:
    """Return the example with its positives rotated, so that each turn trains on another one."""
    first = turn % len(example.positives)
    ids = example.positive_ids
    return replace(
        example,
        positives=example.positives[first:] + example.positives[:first],
        positive_ids=ids[first:] + ids[:first],
    )
