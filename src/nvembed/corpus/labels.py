"""Labels of examples: one string per text, in the order of the texts."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nvembed.corpus.read import format_of, read_texts
from nvembed.corpus.source import Source
from nvembed.errors import DataError, InputError, MissingExtraError
from nvembed.files import json_lines


def read_labels(path: str | Path, field: str) -> list[str]:
    """Return the labels of a .jsonl, .csv, .tsv or .parquet file: strings, or whole numbers as strings.

    Raises:
        DataError: a record without the field, or a label that is neither; names the line and the fields.
        InputError: a format without fields.
        MissingExtraError: Parquet without pyarrow.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "txt":
        raise InputError(f"{path}: a .txt file has no labels; expected .jsonl, .csv, .tsv or .parquet")
    if kind == "jsonl":
        return [_field(row, field, f"{path}:{number}") for number, row in json_lines(path)]
    if kind == "parquet":
        return [_label(value, field, f"{path}, row {row}") for row, value in enumerate(_column(path, field))]
    labels = (passage.text for passage in read_texts(path, field=field))
    return [_label(value, field, f"{path}, row {row}") for row, value in enumerate(labels)]


def source_labels(source: Source, field: str, name: str) -> list[str]:
    """Return the labels that stand in the metadata of an embedded corpus."""
    rows = (json.loads(text) for block in source.blocks() for text in block.metadata)
    return [_field(row, field, f"{name}, row {number}") for number, row in enumerate(rows)]


def _field(row: dict[str, Any], field: str, where: str) -> str:
    if field not in row:
        raise _no_label(where, field, row)
    return _label(row[field], field, where)


def _label(value: object, field: str, where: str) -> str:
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: the label {field!r} is {value!r}; expected a string or a whole number")
    return value


def _column(path: Path, field: str) -> Iterator[object]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("Parquet needs pyarrow: pip install 'nvembed[corpus]'") from error
    try:
        with pq.ParquetFile(path) as file:
            if field not in file.schema_arrow.names:
                raise _no_label(str(path), field, file.schema_arrow.names)
            for batch in file.iter_batches(columns=[field]):
                yield from batch.column(0).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a whole Parquet file ({error})") from error


def _no_label(where: str, field: str, names: Iterable[str]) -> DataError:
    has = ", ".join(sorted(repr(name) for name in names)) or "none"
    return DataError(f"{where}: no field {field!r}; the fields here are {has}: name it with --label-field")
