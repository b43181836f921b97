"""Unlabelled text as training pairs: a sentence, and the passage that contained it.

Ours, for training with a teacher (``[teacher]``), which can learn from any text; the paper trains on labelled
sets only.
"""

import re
from collections.abc import Iterable, Iterator

from nvembed.data.example import Example
from nvembed.data.label import seeded
from nvembed.text.mark import sentences

PASSAGE_WORDS = 100  # ours: the usual length of Wikipedia passages in retrieval sets
QUERY_WORDS = 5  # ours: shorter sentences do not identify their passage
# Chinese, Japanese, Thai, Lao, Khmer and Burmese, without spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U000323af]"
)


def by_crop(texts: Iterable[str], *, task: str, seed: int) -> Iterator[Example]:
    """Cut each text into passages; yield one sentence of each as a query, and the rest as its positive.

    A passage consists of sentences, until they have ``PASSAGE_WORDS`` words or the text ends. The query is
    one of its sentences of at least ``QUERY_WORDS`` words, at random. A passage without such a sentence, or
    of a single sentence, gives no example. Mining finds negatives among the passages.

    The inverse cloze task (Lee et al. 2019, 1906.00300). As there, one passage in ten keeps the sentence,
    because word overlap is a signal too.
    """
    for text in texts:
        for parts in _passages(text):
            fit = [index for index, part in enumerate(parts) if _words(part) >= QUERY_WORDS]
            if len(parts) < 2 or not fit:
                continue
            rng = seeded(seed, f"{task}/{' '.join(parts)}")
            chosen = fit[int(rng.integers(len(fit)))]
            kept = rng.random() < 0.1
            rest = [part for index, part in enumerate(parts) if kept or index != chosen]
            yield Example(query=parts[chosen], positives=(" ".join(rest),), task=task)


def _words(text: str) -> int:
    """Return the number of words; two characters of a script without spaces count as one."""
    return max(len(text.split()), len(_UNSPACED.findall(text)) // 2)


def _passages(text: str) -> Iterator[list[str]]:
    """Yield the sentences of each passage in turn; white space, line breaks too, becomes single spaces."""
    plain = " ".join(text.split())
    parts: list[str] = []
    words = 0
    for start, end in sentences(plain):
        parts.append(plain[start:end])
        words += _words(parts[-1])
        if words >= PASSAGE_WORDS:
            yield parts
            parts, words = [], 0
    if parts:
        yield parts
