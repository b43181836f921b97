"""Embeds the texts of an evaluation, each once, and keeps the vectors on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nvembed.errors import InputError, NumericsError
from nvembed.evaluate.subject import EncodeFn, Subject
from nvembed.vectors.embeddings import Embeddings, join
from nvembed.vectors.store import BLOCK_TEXTS, VectorSettings, VectorStore, text_key


class Embedder:
    """Embeds for one subject, ``BLOCK_TEXTS`` at a time.

    The texts that are not stored are always divided at the same places, so a resumed run computes the same
    batches.

    Args:
        subject: its fingerprint, precision and length decide which stored vectors are used.
        encode: embeds the texts that are not stored.
        folder: the store's folder; None stores nothing.
        on_texts: called with the number of texts done since the last call.
    """

    def __init__(
        self, subject: Subject, encode: EncodeFn, *, folder: Path | None, on_texts: Callable[[int], None]
    ) -> None:
        self.subject = subject
        self.folder = folder
        self.on_texts = on_texts
        self._encode = encode
        self._stores: dict[str, VectorStore] = {}

    def __call__(self, texts: Sequence[str], prompt: str) -> Embeddings:
        """Return a unit vector and the counts of every text, in order."""
        if self.folder is None:
            return self._embed_all(texts, prompt)
        store = self._store(self.folder, prompt)
        keys = store.fill(
            texts,
            lambda part: _checked(self._encode(part, prompt), len(part)),
            progress=lambda stored, embedded: self.on_texts(stored + embedded),
        )
        return store.read(keys)

    def _embed_all(self, texts: Sequence[str], prompt: str) -> Embeddings:
        keys = [text_key(text) for text in texts]
        distinct = dict(zip(keys, texts, strict=True))
        new = list(distinct.values())
        self.on_texts(len(texts) - len(new))
        parts: list[Embeddings] = []
        for start in range(0, len(new), BLOCK_TEXTS):
            part = new[start : start + BLOCK_TEXTS]
            parts.append(_checked(self._encode(part, prompt), len(part)))
            self.on_texts(len(part))
        row = {key: i for i, key in enumerate(distinct)}
        return join(parts).rows(np.array([row[key] for key in keys], dtype=np.int64))

    def _store(self, folder: Path, prompt: str) -> VectorStore:
        if prompt not in self._stores:
            settings = VectorSettings(
                self.subject.content or self.subject.fingerprint,
                prompt,
                self.subject.max_tokens or 0,
                self.subject.precision,
            )
            self._stores[prompt] = VectorStore(folder, settings, block_texts=BLOCK_TEXTS)
        return self._stores[prompt]


def _checked(embeddings: Embeddings, count: int) -> Embeddings:
    vectors = embeddings.vectors
    if vectors.ndim != 2 or len(vectors) != count:
        raise InputError(
            f"the encode function returned shape {vectors.shape} for {count} texts; expected ({count}, d)"
        )
    length = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(~(np.abs(length - 1) < 1e-3))
    if bad.size:
        raise NumericsError(
            f"expected finite unit vectors, got length {length[bad[0]]:g} for {bad.size} of {count} texts: "
            "check the model's precision and its weights"
        )
    return embeddings
