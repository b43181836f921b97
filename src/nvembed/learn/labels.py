"""Labels of examples: one string per text, in the order of the texts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvembed.errors import DataError, InputError
from nvembed.learn.source import EmbeddedSource
from nvembed.read import fields
from nvembed.read.lines import UTF8, TextLayout, file_records, format_of


def read_labels(path: str | Path, field: str, layout: TextLayout = UTF8) -> list[str]:
    """Return the labels of a .jsonl, .csv, .tsv or .parquet file: strings, or whole numbers as strings.

    Raises:
        DataError: a malformed record, one without the field, or a label that is neither; names the line.
        InputError: a format without fields.
        MissingExtraError: Parquet without pyarrow.
    """
    path = Path(path)
    kind = format_of(path)
    if kind == "txt":
        raise InputError(f"{path}: a .txt file has no labels; expected .jsonl, .csv, .tsv or .parquet")
    labels = []
    for record in file_records(path, kind, field=field, others=(), layout=layout):
        if isinstance(record.fields, DataError):
            raise record.fields
        labels.append(_label(record.fields, field, record.where))
    return labels


def source_labels(source: EmbeddedSource, field: str, name: str) -> list[str]:
    """Return the labels in the metadata of an embedded corpus.

    Raises:
        DataError: as ``read_labels``.
    """
    rows = (json.loads(text) for block in source.blocks() for text in block.metadata)
    return [_label(row, field, f"{name}, row {number}") for number, row in enumerate(rows)]


def _label(row: Mapping[str, Any], field: str, where: str) -> str:
    if field not in row:
        columns = ", ".join(sorted(map(repr, row))) or "none"
        raise DataError(f"{where}: no field {field!r}. Its fields: {columns}. Choose one with --label-field")
    return str(fields.label(row, field, where))
