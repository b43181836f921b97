"""Vectors to files, block by block, whole or not at all.  N rows, D numbers each.

==========  ===========================================================================
.npy        float32 (N, D)
.parquet    columns id, text, vector (fixed-size list of D float32)
.jsonl      ``{"id": ..., "text": ..., "vector": [...]}`` per line; digits that read back exactly
==========  ===========================================================================
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nvembed.errors import DataError, InputError, OutputError
from nvembed.files import atomic_path
from nvembed.read.beir import Passage

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
    """Write blocks of (passages, float32 (n, D) vectors); return the number of rows.

    Args:
        target: the file; an existing one is replaced when everything is written.
        blocks: at least one; memory holds one at a time.
        format: one of ``FORMATS``; None: by the file's name.
        metadata: how the vectors were made; only Parquet files contain it.

    Raises:
        OutputError: the file cannot be written; an existing one is unchanged.
        InputError: the format is unknown.
        DataError: there is no block, or a block has another shape.
    """
    target = Path(target)
    kind = format or output_format(target)
    if kind not in FORMATS:
        raise InputError(f"unknown output format {kind!r}; expected one of {', '.join(FORMATS)}")
    if target.is_dir():
        raise OutputError(f"could not write {target}: it is a folder; give a file name")
    with atomic_path(target) as temporary:
        return _write_blocks(temporary, target, kind, blocks, metadata or {})


def write_jsonl(stream: BinaryIO, passages: Sequence[Passage], vectors_ND: np.ndarray) -> None:
    """Write one block as JSON lines to an open binary stream."""
    for passage, digits in zip(passages, np.asarray(vectors_ND, np.float32).astype(str), strict=True):
        # numpy writes the shortest digits that give the same float32; json would write those of a float64
        head = json.dumps({"id": passage.id, "text": passage.text}, ensure_ascii=False)
        stream.write(f'{head[:-1]}, "vector": [{", ".join(digits)}]}}\n'.encode())


def output_format(target: Path) -> str:
    """Return the format of a file by its name.

    Raises:
        InputError: the ending of the name is unknown.
    """
    kind = target.suffix.lower().lstrip(".")
    if kind not in FORMATS:
        endings = ", ".join(f".{name}" for name in FORMATS)
        cure = f"Supported: {endings}; or choose one with --format"
        raise InputError(f"{target}: unknown file type {target.suffix!r}. {cure}")
    return kind


def _write_blocks(
    temporary: Path, target: Path, kind: str, blocks: Iterable[Block], metadata: Mapping[str, str]
) -> int:
    write: Write | None = None
    rows = dim = 0
    with ExitStack() as stack:
        for passages, vectors in blocks:
            if vectors.ndim != 2 or len(vectors) != len(passages) or (write and vectors.shape[1] != dim):
                expected = f"({len(passages)}, {dim or 'D'})"
                raise DataError(f"a block of vectors has shape {vectors.shape}; expected {expected}")
            with as_output_error(target):
                if write is None:
                    dim = vectors.shape[1]
                    write = stack.enter_context(_WRITERS[kind](temporary, dim, metadata))
                write(passages, np.ascontiguousarray(vectors, dtype="<f4"))
            rows += len(vectors)
        if write is None:
            raise DataError(f"nothing to write to {target}: there was no text")
        with as_output_error(target):
            stack.close()
    return rows


@contextmanager
def as_output_error(target: Path) -> Iterator[None]:
    """Turn the errors of libraries while writing into OutputError."""
    try:
        yield
    except OSError as error:  # numpy's and pyarrow's often come without an errno
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"could not write {target}: {reason}; nothing was left behind") from error


@contextmanager
def _npy_writer(path: Path, dim: int, _metadata: Mapping[str, str]) -> Iterator[Write]:
    rows = 0

    def header() -> None:
        # numpy pads the header, so that it can be written again when the first axis has grown
        shape = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(handle, shape)

    def write(_passages: Sequence[Passage], vectors_ND: np.ndarray) -> None:
        nonlocal rows
        handle.write(vectors_ND.data)
        rows += len(vectors_ND)

    with path.open("wb") as handle:
        header()
        first = handle.tell()
        yield write
        handle.seek(0)
        header()
        assert handle.tell() == first


@contextmanager
def _jsonl_writer(path: Path, _dim: int, _metadata: Mapping[str, str]) -> Iterator[Write]:
    with path.open("wb") as handle:
        yield lambda passages, vectors_ND: write_jsonl(handle, passages, vectors_ND)


@contextmanager
def _parquet_writer(path: Path, dim: int, metadata: Mapping[str, str]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [("id", pa.string()), ("text", pa.string()), ("vector", pa.list_(pa.float32(), dim))]
    schema = pa.schema(columns, metadata={"nvembed": json.dumps(dict(metadata))})

    def write(passages: Sequence[Passage], vectors_ND: np.ndarray) -> None:
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(vectors_ND.reshape(-1)), dim)
        arrays = [pa.array([p.id for p in passages]), pa.array([p.text for p in passages]), vectors]
        table = pa.table(arrays, schema=schema)
        try:
            writer.write_table(table)
        except pa.ArrowException as error:  # of no standard kind
            raise OSError(str(error)) from error

    with path.open("wb") as handle:
        writer = pq.ParquetWriter(handle, schema, compression="zstd", use_dictionary=False)
        try:
            yield write
        except BaseException:
            with suppress(Exception):  # closing writes the footer, which may fail as the write did
                writer.close()
            raise
        writer.close()


_WRITERS: dict[str, Callable[[Path, int, Mapping[str, str]], AbstractContextManager[Write]]] = {
    "npy": _npy_writer,
    "parquet": _parquet_writer,
    "jsonl": _jsonl_writer,
}
