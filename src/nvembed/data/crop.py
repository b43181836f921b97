"""Unlabelled text as training pairs: a sentence, and the passage it stood in.

Ours, for training beside a teacher (``[teacher]``), which grades every text of a step and so learns from any
text; the paper trains on labelled sets only.
"""

from collections.abc import Iterable, Iterator

from nvembed.data.example import Example
from nvembed.data.label import seeded
from nvembed.text.mark import sentences

PASSAGE_WORDS = 100  # ours: about the passages of Wikipedia that retrieval sets are made of
QUERY_WORDS = 5  # ours: shorter sentences tell nothing of their passage


def by_crop(texts: Iterable[str], *, task: str, seed: int) -> Iterator[Example]:
    """Cut each text into passages; yield one sentence of each as a query, and the rest as its positive.

    A passage is whole sentences, as many as reach ``PASSAGE_WORDS`` words, or the last of a text. The query
    is drawn from its sentences of ``QUERY_WORDS`` words or more; a passage without one, or of one sentence
    alone, gives no example. There are no negatives; mining finds some among the passages.

    The inverse cloze task (Lee et al. 2019, 1906.00300), with its exception: one passage in ten keeps the
    sentence, for word overlap is a signal too.
    """
    for text in texts:
        for parts in _passages(text):
            fit = [index for index, part in enumerate(parts) if len(part.split()) >= QUERY_WORDS]
            if len(parts) < 2 or not fit:
                continue
            rng = seeded(seed, f"{task}/{' '.join(parts)}")
            chosen = fit[int(rng.integers(len(fit)))]
            kept = rng.random() < 0.1
            rest = [part for index, part in enumerate(parts) if kept or index != chosen]
            yield Example(query=parts[chosen], positives=(" ".join(rest),), task=task)


def _passages(text: str) -> Iterator[list[str]]:
    """Yield the sentences of each passage in turn; white space, line breaks too, becomes single spaces."""
    plain = " ".join(text.split())
    parts: list[str] = []
    words = 0
    for start, end in sentences(plain):
        parts.append(plain[start:end])
        words += len(parts[-1].split())
        if words >= PASSAGE_WORDS:
            yield parts
            parts, words = [], 0
    if parts:
        yield parts
