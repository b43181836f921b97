"""Documents that a program passes: dictionaries, or the rows of a data frame."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nvembed.errors import InputError

# Mappings with ``id``, ``text`` and metadata; or a table of pandas, polars, PyArrow or ``datasets``.
Documents = Iterable[Mapping[str, Any]] | Any
Records = list[dict[str, Any]]

_MISSING = ("NAType", "NaTType")  # classes of pandas


def records_of(documents: Documents, *, numbered: bool = False) -> Records:
    """Return documents as records for JSON. Missing values are left out; dates become strings.

    Args:
        numbered: documents without an id have their number, from 0.

    Raises:
        InputError: a document has no text or no id, or an id occurs twice.
    """
    if isinstance(documents, str | bytes | Mapping):
        raise InputError(f"expected a list of documents or a data frame, got {type(documents).__name__}")
    records = [_record(row, number, numbered) for number, row in enumerate(_rows(documents))]
    ids: set[str] = set()
    for record in records:
        if record["id"] in ids:
            raise InputError(f"two documents have the id {record['id']!r}; expected unique ids")
        ids.add(record["id"])
    return records


def write_records(records: Records, path: Path) -> None:
    """Write records as JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _rows(documents: Any) -> Any:
    if hasattr(documents, "iter_rows"):  # polars
        return documents.to_dicts()
    if hasattr(documents, "to_pylist"):  # PyArrow
        return documents.to_pylist()
    if hasattr(documents, "itertuples"):  # pandas
        return documents.to_dict("records")
    return documents


def _record(row: Any, number: int, numbered: bool) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise InputError(f"document {number} is of type {type(row).__name__}; expected a dictionary")
    record = {str(name): _plain(value) for name, value in row.items() if not _is_missing(value)}
    name = record.get("id", number if numbered else None)
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        raise InputError(f"expected documents with an id, a string or an integer; got {str(row)[:200]}")
    if not isinstance(record.get("text"), str):
        raise InputError(f"expected documents with the string text; got {str(row)[:200]}")
    return {**record, "id": str(name)}


def _is_missing(value: Any) -> bool:
    number = isinstance(value, float | np.floating)
    return value is None or (number and np.isnan(value)) or type(value).__name__ in _MISSING


def _plain(value: Any) -> Any:
    """Return a value of JSON: numbers of numpy, dates and the like have their plain forms."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items() if not _is_missing(item)}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value if not _is_missing(item)]
    if type(value) in (str, int, float, bool):
        return value
    for method in ("tolist", "isoformat"):  # arrays and numbers of numpy; dates
        if hasattr(value, method):
            return getattr(value, method)()
    return str(value)
