"""Vectors to files, block by block, whole or not at all.  N rows, D numbers each.

==========  ===========================================================================
.npy        float32 (N, D)
.parquet    columns id, text, vector (fixed-size list of D float32); extra ``search``
.jsonl      ``{"id": ..., "text": ..., "vector": [...]}`` per line; digits that read back exactly
==========  ===========================================================================
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nvembed.corpus.read import Passage
from nvembed.errors import DataError, InputError, MissingExtraError, OutputError
from nvembed.files import atomic_path

FORMATS = ("npy", "parquet", "jsonl")

Block = tuple[Sequence[Passage], np.ndarray]
Write = Callable[[Sequence[Passage], np.ndarray], None]


def write_vectors(
    target: str | Path,
    blocks: Iterable[Block],
    *,
    format: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write blocks of (passages, float32 (n, D) vectors) as they come; return how many rows there were.

    Args:
        target: the file; an existing one is replaced, once everything is written.
        blocks: at least one; memory holds one at a time.
        format: one of ``FORMATS``; None takes it from the file's name.
        metadata: what made the vectors; kept in Parquet's schema, left out elsewhere.

    Raises:
        OutputError: a full disk, no permission: ``target`` is as it was.
        InputError: the format is unknown.
        DataError: no block, or a block of another shape.
        MissingExtraError: Parquet without the extra ``search``.
    """
    target = Path(target)
    kind = format or output_format(target)
    if kind not in FORMATS:
        raise InputError(f"unknown output format {kind!r}; expected one of {', '.join(FORMATS)}")
    if kind == "parquet":
        _pyarrow()  # before the work, not after it
    if target.is_dir():
        raise OutputError(f"could not write {target}: it is a folder; give a file name")
    with atomic_path(target) as temporary:
        return _write_blocks(temporary, target, kind, blocks, metadata or {})


def write_jsonl(stream: BinaryIO, passages: Sequence[Passage], vectors_ND: np.ndarray) -> None:
    """Write one block as JSON lines to an open binary stream."""
    for passage, digits in zip(passages, np.asarray(vectors_ND, np.float32).astype(str), strict=True):
        # numpy's shortest digits that read back as the same float32; json would print a float64's
        head = json.dumps({"id": passage.id, "text": passage.text}, ensure_ascii=False)
        stream.write(f'{head[:-1]}, "vector": [{", ".join(digits)}]}}\n'.encode())


def output_format(target: Path) -> str:
    """Return the format a file name stands for.

    Raises:
        InputError: the extension is none of the known ones.
    """
    kind = target.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        known = ", ".join(f".{name}" for name in FORMATS)
        raise InputError(
            f"{target}: the format cannot be told from the name; expected one of {known}, or say it"
        )
    return kind


def _write_blocks(
    temporary: Path, target: Path, kind: str, blocks: Iterable[Block], metadata: Mapping[str, str]
) -> int:
    writer: AbstractContextManager[Write] | None = None
    write: Write | None = None
    rows = dim = 0
    try:
        for passages, vectors in blocks:
            if vectors.ndim != 2 or len(vectors) != len(passages) or (rows and vectors.shape[1] != dim):
                expected = f"({len(passages)}, {dim or 'D'})"
                raise DataError(f"vectors of shape {vectors.shape}; expected {expected}")
            with _as_output_error(target):
                if write is None:
                    dim = vectors.shape[1]
                    writer = _WRITERS[kind](temporary, dim, metadata)
                    write = writer.__enter__()
                write(passages, np.ascontiguousarray(vectors, dtype=np.float32))
            rows += len(vectors)
        if rows == 0:
            raise DataError(f"nothing to write to {target}: there was no text")
    finally:
        if writer is not None:
            with _as_output_error(target):
                writer.__exit__(None, None, None)
    return rows
