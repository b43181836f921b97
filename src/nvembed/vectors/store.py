"""The cache of vectors on disk, by model, settings and text.

Shapes: B texts, D numbers of a vector.

``ROOT/KEY/`` has the vectors of one ``VectorSettings``, whose digest is ``KEY``: ``about.txt`` with the
settings, and any number of blocks. A block is a file of three numpy arrays, one after the other:

    keys     (B,) 16 bytes each, a digest of the text
    counts   (B, 3) int32: tokens, whether the text was cut, whether it is empty
    vectors  (B, D) float32; or float16, or int8 for unit vectors, as ``VectorSettings.stored`` says

The name of a block is a digest of its bytes, and a block appears whole or not at all. So a killed run leaves
only whole blocks, and several processes may write at the same time. A block is checked when it is first read:
a damaged one is removed with a warning, and its texts are embedded again.
"""

import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from nvembed.errors import InputError, NumericsError, OutputError
from nvembed.files import Damage, FolderReport, atomic_path, remove_leftovers
from nvembed.vectors.embeddings import Embeddings, join

BLOCK_TEXTS = 1024  # texts embedded and written at a time: the most that a kill loses
KEY_BYTES = 16
_KEY = np.dtype(f"S{KEY_BYTES}")
_WINDOW = 16_384  # texts looked up at a time
_RECENT = 65_536  # new keys in a dict before they are sorted into the index
_SUFFIX = ".vectors"


Stored = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class VectorSettings:
    """Everything besides the text that decides a vector.

    ``stored``: float32 is exact. float16 has half the bytes. int8 is ``round(127 v / max|v|)``, a quarter of
    the bytes, for unit vectors only: they are normalised when they are read.
    """

    fingerprint: str  # of the model
    prompt: str
    max_length: int  # tokens
    dtype: str  # what the model computes in
    stored: Stored = "float32"

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.record, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def record(self) -> dict[str, Any]:
        """The settings as JSON; without ``stored`` where it is float32, as earlier versions wrote them."""
        record = asdict(self)
        if self.stored == "float32":
            del record["stored"]
        return record


class VectorStore:
    """The vectors of one ``VectorSettings``, on disk.

    >>> store = VectorStore(folder, settings)
    >>> keys = store.fill(texts, encode)  # embeds the texts that the store lacks
    >>> store.read(keys).vectors

    Memory: 32 bytes for every text in the store, and one block.

    Args:
        root: the folder of all stores; the first write creates it.
        block_texts: texts passed to ``encode`` at a time and written as one block. A run that was killed and
            resumed computes the same batches, because the missing texts are split at the same positions.

    Raises:
        OutputError: the folder cannot be read.
    """

    def __init__(self, root: Path, settings: VectorSettings, *, block_texts: int = BLOCK_TEXTS) -> None:
        self.folder = root / settings.key
        self.settings = settings
        self._block_texts = block_texts
        self._blocks: list[_Block] = []
        self._keys = np.empty(0, dtype=_KEY)  # sorted
        self._places = np.empty(0, dtype=np.int64)  # block << 32 | row
        self._recent: dict[bytes, int] = {}
        try:
            remove_leftovers(self.folder)
            paths = sorted(self.folder.glob(f"*{_SUFFIX}"))
        except OSError as error:
            raise OutputError(f"cannot read {self.folder}: {error.strerror or error}") from error
        for path in paths:
            if (block := _open_block(path, np.dtype(settings.stored))) is not None:
                self._add(block)
        self._merge()

    def fill(
        self,
        texts: Iterable[str],
        encode: Callable[[list[str]], Embeddings],
        *,
        progress: Callable[[int, int], None] = lambda _stored, _embedded: None,
    ) -> np.ndarray:
        """Embed the texts that the store lacks, and return the keys of all of them, (B,), in order.

        Args:
            texts: read once, a window at a time.
            encode: texts (at most ``block_texts``) -> their embeddings.
            progress: called with the number of further texts that the store had, and that were embedded.

        Raises:
            InputError: ``encode`` returned a wrong number of rows, or vectors of a wrong length.
            NumericsError: a vector is not finite.
            OutputError: the folder cannot be written; earlier blocks are kept.
        """
        keys: list[np.ndarray] = []
        missing: dict[bytes, str] = {}
        texts = iter(texts)
        while window := list(islice(texts, _WINDOW)):
            digests = [text_key(text) for text in window]
            array = np.array(digests, dtype=_KEY)
            keys.append(array)
            new: set[bytes] = set()  # keys of this window that the store lacked
            for i in np.flatnonzero(self._sound_places(array) < 0):
                if digests[i] in missing or digests[i] in new:
                    continue
                new.add(digests[i])
                missing[digests[i]] = window[i]
                if len(missing) == self._block_texts:
                    self._embed(missing, encode)
                    progress(0, len(missing))
                    missing = {}
            progress(len(window) - len(new), 0)
        if missing:
            self._embed(missing, encode)
            progress(0, len(missing))
        return np.concatenate(keys) if keys else np.empty(0, dtype=_KEY)

    def read(self, keys: np.ndarray) -> Embeddings:
        """Return the embeddings of keys that ``fill`` returned.

        Raises:
            OutputError: a block was removed or damaged since.
        """
        places = self._places_of(keys)
        if len(places) == 0:
            return join([], self.dim)
        if places.min() < 0:
            raise OutputError(f"{self.folder}: vectors were removed meanwhile: run the command again")
        block_of, row_of = places >> 32, places & 0xFFFFFFFF
        vectors = np.empty((len(keys), self.dim), dtype=np.float32)
        counts = np.empty((len(keys), 3), dtype=np.int32)
        for number in np.unique(block_of):
            block = self._blocks[number]
            if not block.is_sound():
                raise OutputError(f"{block.path} is damaged: run the command again to embed its texts again")
            here = np.flatnonzero(block_of == number)
            counts[here], vectors[here] = block.read(row_of[here])
        return Embeddings(vectors, counts[:, 0].astype(np.int64), counts[:, 1] > 0, counts[:, 2] > 0)

    @property
    def dim(self) -> int:
        """Numbers of a vector; 0 while the store is empty."""
        return self._blocks[0].dim if self._blocks else 0

    def __len__(self) -> int:
        return len(self._keys) + len(self._recent)

    def _embed(self, texts: dict[bytes, str], encode: Callable[[list[str]], Embeddings]) -> None:
        embeddings = encode(list(texts.values()))
        check_vectors(embeddings.vectors, list(texts.values()), self.dim)
        self._add(_write_block(self.folder, self.settings, list(texts), embeddings))
        if len(self._recent) >= _RECENT:
            self._merge()

    def _add(self, block: "_Block") -> None:
        if self.dim and block.dim != self.dim:
            raise OutputError(
                f"{block.path} has vectors of {block.dim} numbers, the others of {self.dim}: remove "
                f"{self.folder}"
            )
        first = len(self._blocks) << 32
        self._blocks.append(block)
        for row, key in enumerate(block.keys.tolist()):
            self._recent.setdefault(key.ljust(KEY_BYTES, b"\0"), first | row)
        if len(self._recent) >= _RECENT:
            self._merge()

    def _merge(self) -> None:
        """Sort the recent keys into the index; the first of several blocks with a key counts."""
        keys = np.concatenate([self._keys, np.array(list(self._recent), dtype=_KEY)])
        places = np.concatenate([self._places, np.array(list(self._recent.values()), dtype=np.int64)])
        self._keys, first = np.unique(keys, return_index=True)
        self._places = places[first]
        self._recent = {}

    def _places_of(self, keys: np.ndarray) -> np.ndarray:
        """Return block and row of each key; -1 for a key that the store lacks."""
        at = np.searchsorted(self._keys, keys)
        places = np.full(len(keys), -1, dtype=np.int64)
        inside = np.flatnonzero(at < len(self._keys))
        hits = inside[self._keys[at[inside]] == keys[inside]]
        places[hits] = self._places[at[hits]]
        if self._recent:
            for i in np.flatnonzero(places < 0):
                places[i] = self._recent.get(bytes(keys[i]).ljust(KEY_BYTES, b"\0"), -1)
        return places

    def _sound_places(self, keys: np.ndarray) -> np.ndarray:
        """Return ``_places_of`` after a check of the blocks; damaged ones are removed."""
        places = self._places_of(keys)
        damaged = [n for n in np.unique(places[places >= 0] >> 32) if not self._blocks[n].is_sound()]
        if not damaged:
            return places
        for number in damaged:
            _drop(self._blocks[number].path, "its checksum differs")
        self._merge()
        keep = ~np.isin(self._places >> 32, damaged)
        self._keys, self._places = self._keys[keep], self._places[keep]
        return self._places_of(keys)


def is_store(root: Path) -> bool:
    """Return whether a folder has stores of vectors."""
    return any(root.glob("*/about.txt")) or any(root.glob(f"*/*{_SUFFIX}"))


def check_store(root: Path) -> FolderReport:
    """Compare every block of all stores in ``root`` with its checksum; nothing is removed."""
    damages: list[Damage] = []
    blocks = 0
    stores = sorted(path for path in root.iterdir() if path.is_dir())
    for folder in stores:
        about, again = folder / "about.txt", "run the command that wrote it again to embed these texts again"
        try:
            settings = VectorSettings(**json.loads(about.read_bytes()))
            if settings.key != folder.name:
                damages.append(Damage(about, "not the settings of its folder's name", f"rm {about}"))
        except (OSError, ValueError, TypeError) as error:
            damages.append(Damage(about, f"missing or damaged ({error})", f"rm -f {about}; {again}"))
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            blocks += 1
            with path.open("rb") as handle:
                if hashlib.file_digest(handle, _hasher).hexdigest() != path.stem:
                    damages.append(Damage(path, "damaged: its checksum differs", again))
    return FolderReport(root, "stored vectors", f"{len(stores):,} settings, {blocks:,} blocks", damages)


def text_key(text: str) -> bytes:
    """Return the key of a text: a digest of 16 bytes."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def check_vectors(vectors: np.ndarray, texts: Sequence[str], dim: int = 0) -> None:
    """Check that there is one finite vector for every text.

    Args:
        dim: the length that a vector must have; 0 allows any.

    Raises:
        InputError: the number of vectors or their length is wrong.
        NumericsError: a vector is not finite; the message shows the first such text.
    """
    width = dim or max(1, vectors.shape[-1])
    if vectors.ndim != 2 or vectors.shape != (len(texts), width):
        raise InputError(
            f"the model returned vectors of shape {vectors.shape}; expected ({len(texts)}, {dim or 'D'})"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if bad.size:
        raise NumericsError(
            f"{bad.size:,} of {len(texts):,} vectors are not finite; the first is of {texts[bad[0]][:80]!r}: "
            "use --dtype float32, and check the model's weights with  nvembed check"
        )


@dataclass
class _Block:
    """A block's file and the offsets of its arrays; the file is open only while it is read."""

    path: Path
    keys: np.ndarray
    dim: int
    offsets: tuple[int, int]  # of counts and vectors, in bytes
    dtype: np.dtype[Any]  # of the vectors
    sound: bool | None = None  # whether its checksum is right; None: not checked yet

    def is_sound(self) -> bool:
        """Return whether the file's checksum is right."""
        if self.sound is None:
            try:
                with self.path.open("rb") as handle:
                    self.sound = hashlib.file_digest(handle, _hasher).hexdigest() == self.path.stem
            except OSError:
                return False
        return self.sound

    def read(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return counts and vectors of some rows."""
        size = len(self.keys)
        counts = np.memmap(self.path, np.int32, "r", self.offsets[0], (size, 3))
        vectors = np.memmap(self.path, self.dtype, "r", self.offsets[1], (size, self.dim))[rows]
        if self.dtype == np.int8:
            vectors = vectors / np.linalg.norm(vectors.astype(np.float32), axis=1, keepdims=True)
        return counts[rows], vectors.astype(np.float32, copy=False)


def _open_block(path: Path, dtype: np.dtype[Any]) -> _Block | None:
    """Open a block with vectors of a dtype; a damaged one is removed with a warning."""
    try:
        with path.open("rb") as handle:
            size = path.stat().st_size
            (rows,), _ = _array_header(handle, _KEY, size)
            keys = np.frombuffer(handle.read(rows * KEY_BYTES), dtype=_KEY)
            shape, counts = _array_header(handle, np.dtype(np.int32), size)
            handle.seek(counts + 12 * rows)
            (count, dim), vectors = _array_header(handle, dtype, size)
            end = vectors + dtype.itemsize * rows * dim
            if len(keys) != rows or shape != (rows, 3) or count != rows or size != end:
                raise ValueError("its sizes do not agree")
        return _Block(path, keys, dim, (counts, vectors), dtype)
    except FileNotFoundError:  # another process removed it
        return None
    except (ValueError, EOFError, OSError, SyntaxError, TypeError, OverflowError) as error:
        _drop(path, str(error))
        return None


def _array_header(handle: BinaryIO, dtype: np.dtype[Any], file_size: int) -> tuple[tuple[int, ...], int]:
    """Return the shape of the array at the handle's position, and the offset of its values."""
    if np.lib.format.read_magic(handle) != (1, 0):
        raise ValueError("not an array")
    shape, fortran_order, array_dtype = np.lib.format.read_array_header_1_0(handle)
    start = handle.tell()
    if fortran_order or array_dtype != dtype or start + dtype.itemsize * math.prod(shape) > file_size:
        raise ValueError("another array than expected")
    return shape, start


def _drop(path: Path, reason: str) -> None:
    warnings.warn(f"{path} is damaged ({reason}): its texts are embedded again", stacklevel=4)
    with suppress(OSError):  # Windows cannot remove a mapped file; the next run does
        path.unlink()


def _write_block(
    folder: Path, settings: VectorSettings, keys: Sequence[bytes], embeddings: Embeddings
) -> _Block:
    about = folder / "about.txt"
    if not about.exists():
        with atomic_path(about) as temporary:
            temporary.write_text(json.dumps(settings.record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    counts = np.stack([embeddings.num_tokens, embeddings.truncated, embeddings.empty], axis=1)
    arrays = (
        np.array(keys, dtype=_KEY),
        counts.astype(np.int32),
        _coded(np.ascontiguousarray(embeddings.vectors, dtype=np.float32), settings.stored),
    )
    pieces: list[bytes] = []
    offsets: list[int] = []
    for array in arrays:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
        pieces += [header.getvalue(), array.tobytes()]
        offsets.append(sum(map(len, pieces[:-1])))
    digest = _hasher()
    for piece in pieces:
        digest.update(piece)
    target = folder / f"{digest.hexdigest()}{_SUFFIX}"
    with atomic_path(target) as temporary, temporary.open("wb") as handle:
        handle.writelines(pieces)
    return _Block(
        target, arrays[0], arrays[2].shape[1], (offsets[1], offsets[2]), arrays[2].dtype, sound=True
    )


def _coded(vectors: np.ndarray, stored: Stored) -> np.ndarray:
    """Return vectors as they are stored.

    Raises:
        InputError: int8 of vectors that are not unit vectors.
    """
    if stored != "int8":
        return vectors.astype(stored, copy=False)
    if len(vectors) and np.abs(np.linalg.norm(vectors, axis=1) - 1).max() > 1e-2:
        raise InputError("only unit vectors are stored as int8: store these as float16 or float32")
    return np.asarray(np.round(127 * vectors / np.abs(vectors).max(axis=1, keepdims=True)), dtype=np.int8)


def _hasher() -> Any:  # typeshed: blake2b is not a HASH
    return hashlib.blake2b(digest_size=KEY_BYTES)
