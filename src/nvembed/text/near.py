"""Finds equal and nearly equal texts.

Two texts are *equal* if their normal forms are equal, and *near* if the Jaccard similarity of their sets of
5-character shingles is at least ``NEAR``. Texts of fewer than ``SHORTEST`` characters are never near: in
these, a fifth of the shingles is a word that changes the meaning.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

NEAR = 0.8
SHORTEST = 60
SHINGLE = 5


@lru_cache(maxsize=1024)  # each text is compared with many sets
def normalise(text: str) -> str:
    """Return the text in NFKC and lower case, only letters and digits, one space between words."""
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).lower()).strip()


class NearIndex:
    """Finds the texts of a list that are equal or near to another text.

    Candidates come from MinHash signatures in bands: a pair of similarity ``s`` shares a band with
    probability ``1 - (1 - s**4)**16``, 0.9998 at 0.8. Each candidate's similarity is then computed.

    Args:
        texts: normal forms, as ``normalise`` returns them. An empty text matches no other.
        near: the similarity from which two texts are near, 0 to 1.
    """

    def __init__(self, texts: Iterable[str], *, near: float = NEAR) -> None:
        self._near = near
        self._numbers: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            if text:
                self._numbers[text].append(number)
        self._bands: dict[bytes, list[str]] = defaultdict(list)
        for text in self._numbers:
            for band in _fingerprint(text)[1] if len(text) >= SHORTEST else ():
                self._bands[band].append(text)

    def matches(self, text: str) -> tuple[set[int], dict[int, float]]:
        """Return the numbers of the equal texts, and the similarity of each near text by number."""
        equal = set(self._numbers.get(text, ()))
        if len(text) < SHORTEST:
            return equal, {}
        own, keys = _fingerprint(text)
        candidates = {other for key in keys for other in self._bands.get(key, ())} - {text}
        similar = ((other, jaccard(own, shingles(other))) for other in candidates)
        return equal, {
            n: value for other, value in similar if value >= self._near for n in self._numbers[other]
        }


def shingles(text: str) -> np.ndarray:
    """Return the distinct hashes (uint64, sorted) of the runs of 5 characters; a shorter text has one."""
    letters = np.frombuffer(text.ljust(SHINGLE).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(letters.astype(np.uint64), SHINGLE)
    mixed = np.zeros(len(windows), dtype=np.uint64)
    for column in windows.T:  # wraps around 2^64 on purpose; each step is one to one
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return np.unique(mixed)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Return ``|A and B| / |A or B|`` of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


BANDS, ROWS = 16, 4
_MULTIPLIERS = np.random.default_rng(0).integers(1, 2**63, BANDS * ROWS, dtype=np.uint64) | np.uint64(1)


def bands(hashes: np.ndarray) -> list[bytes]:
    """Return the MinHash signature of a set of hashes: one key for each band.

    Sets that share a key are candidates. The minimum of each of the BANDS * ROWS hash functions is equal for
    two sets with the probability of their Jaccard similarity.
    """
    hashed = hashes[None, :] * _MULTIPLIERS[:, None]
    hashed ^= hashed >> np.uint64(32)
    hashed *= np.uint64(0xD6E8FEB86659FD93)
    signature = hashed.min(axis=1).reshape(BANDS, ROWS)
    return [bytes([number]) + row.tobytes() for number, row in enumerate(signature)]


@lru_cache(maxsize=1024)
def _fingerprint(text: str) -> tuple[np.ndarray, list[bytes]]:
    own = shingles(text)
    return own, bands(own)
