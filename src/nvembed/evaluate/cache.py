"""Embeddings on disk, so that no text is embedded twice with the same model, prompt and precision.

A drawer (a folder) holds the texts of one model, fingerprint, prompt, precision and maximum length:

    about.json    what the drawer is for
    keys.bin      16 bytes per text: a hash of the text alone
    counts.bin    two int32 per text: tokens embedded, and whether the text was cut
    vectors.bin   float32 rows

A row counts once its key is written, which happens last: a process that is killed leaves whole rows only.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from nvembed.errors import InputError, NumericsError, OutputError
from nvembed.evaluate.subject import Encoded, EncodeFn, Subject, Vectors
from nvembed.files import atomic_path, take_lock

TEXTS_AT_ONCE = 1024  # texts between two writes: what a kill can cost
KEY_BYTES = 16


class Drawer:
    """The cached rows of one model and prompt; open it, read rows, append rows, close it."""

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        self.folder = folder
        if not (folder / "about.json").exists():
            with atomic_path(folder / "about.json") as path:
                path.write_text(
                    json.dumps(about, indent=1, sort_keys=True, ensure_ascii=False) + "\n", "utf-8"
                )
        self._files = {name: (folder / f"{name}.bin").open("a+b") for name in ("vectors", "counts", "keys")}
        try:
            _lock(self._files["keys"].fileno(), folder)
            self._files["keys"].seek(0)
            keys = self._files["keys"].read()
            self.row_of = {
                keys[i : i + KEY_BYTES]: i // KEY_BYTES
                for i in range(0, len(keys) - KEY_BYTES + 1, KEY_BYTES)
            }
            dim_file = folder / "dim"
            self.dim = int((dim_file.read_text() if dim_file.exists() else "") or 0)
            self._drop_rows_without_a_key(len(keys) // KEY_BYTES)
        except OutputError:
            self.close()
            raise

    def _drop_rows_without_a_key(self, rows: int) -> None:
        """A kill leaves such rows. Keys without a row are damage: truncating would make vectors of zeros."""
        for name, size in (("vectors", 4 * self.dim), ("counts", 8), ("keys", KEY_BYTES)):
            has = self._files[name].seek(0, os.SEEK_END)
            if has < rows * size or (rows and not size):
                raise OutputError(
                    f"the embedding cache {self.folder} is damaged ({name}.bin has {has:,} bytes for "
                    f"{rows:,} texts): remove that folder"
                )
            self._files[name].truncate(rows * size)

    def append(self, keys: Sequence[bytes], new: Vectors) -> None:
        """Write rows, the keys last."""
        if not self.dim:
            self.dim = new.vectors.shape[1]
            with atomic_path(self.folder / "dim") as path:
                path.write_text(f"{self.dim}\n")
        counts = np.stack([new.num_tokens, new.truncated], axis=1).astype(np.int32)
        for name, content in (
            ("vectors", np.ascontiguousarray(new.vectors, np.float32).tobytes()),
            ("counts", counts.tobytes()),
            ("keys", b"".join(keys)),
        ):
            try:
                self._files[name].write(content)
                self._files[name].flush()
                os.fsync(self._files[name].fileno())
            except OSError as error:
                raise OutputError(
                    f"could not write the embedding cache {self.folder}: {error.strerror}"
                ) from error
        for key in keys:
            self.row_of[key] = len(self.row_of)

    def read(self, keys: Sequence[bytes]) -> Vectors:
        rows = np.array([self.row_of[key] for key in keys], dtype=np.int64)
        vectors = np.memmap(self.folder / "vectors.bin", np.float32, "r").reshape(-1, self.dim)
        counts = np.memmap(self.folder / "counts.bin", np.int32, "r").reshape(-1, 2)
        return Vectors(np.array(vectors[rows]), counts[rows, 0].astype(np.int64), counts[rows, 1] > 0)

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def _lock(handle: int, folder: Path) -> None:
    """Refuse a second writer."""
    try:
        take_lock(handle)
    except OSError as error:
        raise OutputError(
            f"another process writes to the embedding cache {folder}: wait for it, or pass another --cache"
        ) from error


class Embedder:
    """Embeds for one subject, by way of the cache if there is one, in pieces of a fixed size.

    Pieces make a restart repeat the arithmetic of the first run: the texts that are not cached yet are cut at
    the same places, so every batch is made of the same texts.

    Args:
        subject: names the drawers.
        encode: embeds what is not cached.
        folder: of the cache; None embeds everything anew.
        on_texts: called with the number of texts that became known since the last call.
    """

    def __init__(
        self, subject: Subject, encode: EncodeFn, *, folder: Path | None, on_texts: Callable[[int], None]
    ) -> None:
        self.subject = subject
        self.folder = folder
        self.on_texts = on_texts
        self._encode = encode
        self._drawers: dict[str, Drawer] = {}

    def __call__(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Return a unit vector and the counts of every text, in order.

        Raises:
            InputError: the encode function returned another number of rows than texts.
            NumericsError: it returned a vector that is not finite or not of unit length.
        """
        keys = [hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).digest() for text in texts]
        drawer = self._drawer(prompt)
        known: dict[bytes, int] = drawer.row_of if drawer else {}
        new: dict[bytes, str] = {}
        for key, text in zip(keys, texts, strict=True):
            if key not in known:
                new.setdefault(key, text)
        self.on_texts(len(texts) - len(new))
        pieces: list[Vectors] = []
        for start in range(0, len(new), TEXTS_AT_ONCE):
            piece_keys = list(new)[start : start + TEXTS_AT_ONCE]
            piece = _checked(self._encode([new[key] for key in piece_keys], prompt), len(piece_keys))
            if drawer:
                drawer.append(piece_keys, piece)
            else:
                pieces.append(piece)
            self.on_texts(len(piece_keys))
        if drawer:
            return drawer.read(keys) if keys else _join([])
        whole = _join(pieces)
        row = {key: i for i, key in enumerate(new)}
        rows = [row[key] for key in keys]
        return Vectors(whole.vectors[rows], whole.num_tokens[rows], whole.truncated[rows])

    def close(self) -> None:
        for drawer in self._drawers.values():
            drawer.close()

    def _drawer(self, prompt: str) -> Drawer | None:
        if self.folder is None:
            return None
        if prompt not in self._drawers:
            about = {
                "model": self.subject.name,
                "fingerprint": self.subject.fingerprint,
                "precision": self.subject.precision,
                "max_tokens": str(self.subject.max_tokens),
                "prompt": prompt,
            }
            name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
            self._drawers[prompt] = Drawer(self.folder / name, about)
        return self._drawers[prompt]


def _checked(encoded: Encoded, count: int) -> Vectors:
    vectors = np.asarray(encoded.vectors, dtype=np.float32)
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
    tokens = np.asarray(encoded.num_tokens, dtype=np.int64)
    return Vectors(vectors, tokens, np.asarray(encoded.truncated, dtype=bool))


def _join(pieces: Sequence[Vectors]) -> Vectors:
    if not pieces:
        return Vectors(np.empty((0, 0), np.float32), np.empty(0, np.int64), np.empty(0, bool))
    return Vectors(
        np.concatenate([piece.vectors for piece in pieces]),
        np.concatenate([piece.num_tokens for piece in pieces]),
        np.concatenate([piece.truncated for piece in pieces]),
    )
