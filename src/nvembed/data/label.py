"""Classification, clustering and STS as triplets.

Paper: section 4.2 (label texts for binary sets; STS pairs of score 4 and more, in both directions) and
section 5.2.4 (examples of the class instead of its label for multi-class sets and clustering: +1.49 points).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nvembed.data.example import Example
from nvembed.data.rows import text_key
from nvembed.errors import DataError

NEGATIVES = 7  # paper: Table 11


def by_label(
    rows: Iterable[tuple[str, str]], label_texts: Mapping[str, str], *, task: str
) -> Iterator[Example]:
    """Turn (text, label) into examples whose passages are label texts: the right one, against others.

    At most ``NEGATIVES`` others, in random order: a batch takes the first ones. Label texts have no
    instruction (ours: they are answers of the task, not texts to classify).

    Raises:
        DataError: fewer than two label texts, or a label that has none.
    """
    if len(set(label_texts.values())) < 2:
        raise DataError(f"{task}: expected two label texts or more, got {dict(label_texts)}")
    for text, label in rows:
        if label not in label_texts:
            raise DataError(
                f"{task}: label {label!r} has no label text; known: {', '.join(sorted(label_texts))}"
            )
        others = list(dict.fromkeys(other for other in label_texts.values() if other != label_texts[label]))
        order = seeded(0, f"{task}/{text}").permutation(len(others))[:NEGATIVES]
        others = [others[index] for index in order]
        yield Example(query=text, positives=(label_texts[label],), hard_negatives=tuple(others), task=task)


def by_example(
    rows: Sequence[tuple[str, str]], *, task: str, seed: int, negatives: int = NEGATIVES
) -> Iterator[Example]:
    """Turn (text, label) into examples whose positive is another text of the class, at random.

    A negative is drawn in two steps, a class and then one of its texts, so that large and small classes are
    equally likely (ours: the paper says only "random"). A class with one text gives no query. All texts have
    the instruction. Ids name the classes, so that two texts of a class are never negatives of each other.

    Raises:
        DataError: fewer than two classes.
    """
    classes: dict[str, list[str]] = defaultdict(list)
    label_of: dict[bytes, str] = {}
    for text, label in rows:
        # Only the first of equal texts: with two labels a text would be its own negative.
        if label_of.setdefault(text_key(text), label) == label:
            classes[label].append(text)
    if len(classes) < 2:
        raise DataError(f"{task}: expected two classes or more, got {sorted(classes)}")
    names = sorted(classes)
    for text, label in rows:
        if label_of[text_key(text)] != label:
            continue
        rng = seeded(seed, f"{task}/{text}")  # by text: independent of the order and of texts left out
        positive = _another(classes[label], text, rng)
        if positive is None:
            continue
        wrong: dict[str, str] = {}  # text -> class
        for _ in range(4 * negatives):  # small classes may draw a text twice: try again, a few times
            if len(wrong) < negatives:
                name = _other(names, label, rng)
                wrong[_one_of(classes[name], rng)] = name
        yield Example(
            query=text,
            positives=(positive,),
            hard_negatives=tuple(wrong),
            task=task,
            both_sides=True,
            positive_ids=(f"{task}/{label}",),
            hard_negative_ids=tuple(f"{task}/{name}" for name in wrong.values()),
        )


def by_score(
    rows: Iterable[tuple[str, str, float]], *, task: str, min_score: float = 4.0
) -> Iterator[Example]:
    """Turn scored pairs into examples: each pair of ``min_score`` or more, in both directions.

    Both sides carry the instruction. Negatives are mined later, from the texts of all pairs.
    """
    for first, second, score in rows:
        if score >= min_score and text_key(first) != text_key(second):
            for query, positive in ((first, second), (second, first)):
                yield Example(query=query, positives=(positive,), task=task, both_sides=True)


def seeded(seed: int, text: str) -> np.random.Generator:
    """Return a generator that depends only on the seed and the text, not on its place in a set."""
    return np.random.default_rng([seed, int.from_bytes(text_key(text), "big")])


def _one_of(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]


def _another(texts: Sequence[str], text: str, rng: np.random.Generator) -> str | None:
    """Return one of ``texts`` that is not ``text``; ``None`` if all are the same."""
    key = text_key(text)
    for _ in range(8):
        if text_key(candidate := _one_of(texts, rng)) != key:
            return candidate
    others = [candidate for candidate in texts if text_key(candidate) != key]
    return _one_of(others, rng) if others else None


def _other(names: Sequence[str], name: str, rng: np.random.Generator) -> str:
    chosen = names[int(rng.integers(len(names) - 1))]
    return names[-1] if chosen == name else chosen
