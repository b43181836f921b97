"""Checked access to the fields of a record that ``lines`` has parsed.

Every function takes ``where``, the record's name in messages, and raises ``DataError`` if the value does not
have the expected type.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from nvembed.errors import DataError
from nvembed.read.lines import check_values, kind_of, shown

Fields = Mapping[str, Any]


def text(row: Fields, key: str, where: str) -> str:
    """Return a string, possibly empty."""
    value = row.get(key)
    if not isinstance(value, str):
        raise _wrong(row, key, where, "a string")
    check_values({key: value}, where)
    return value


def texts(row: Fields, key: str, where: str) -> list[str]:
    """Return a list of at least one string."""
    value = row.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise _wrong(row, key, where, "a list of strings")
    check_values({key: value}, where)
    return value


def number(row: Fields, key: str, where: str) -> float:
    """Return a finite number."""
    value = row.get(key)
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer beyond any float
        pass
    raise _wrong(row, key, where, "a finite number")


def label(row: Fields, key: str, where: str) -> str | int:
    """Return a class: a string that is not blank, or an integer."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _wrong(row, key, where, "a string or an integer")
    if isinstance(value, str) and not value.strip():
        raise _wrong(row, key, where, "a string that is not blank")
    return value


def identifier(row: Fields, keys: Sequence[str], where: str) -> str | None:
    """Return the value of the first of ``keys`` that exists, as a string; None if none of them does."""
    for key in keys:
        value = row.get(key)
        if value is None:
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise _wrong(row, key, where, "a string or an integer")
        if not value.strip():
            raise DataError(f"{where}: the id (field {key!r}) is blank; expected a unique name")
        check_values({key: value}, where)
        return value
    return None


def _wrong(row: Fields, key: str, where: str, expected: str) -> DataError:
    if key not in row:
        names = ", ".join(sorted(map(repr, row))[:20]) or "none"
        return DataError(f"{where}: no field {key!r}; expected {expected}. Its fields: {names}")
    value = row[key]
    kind = kind_of(value)
    content = "" if value is None else f" ({shown(value)})"
    return DataError(f"{where}: the field {key!r} is a {kind}{content}; expected {expected}")


def to_json(metadata: Fields) -> str:
    """Return the metadata of a passage as JSON in ASCII; dates and the like become strings.

    NaN and infinities, which JSON lacks, become null.
    """
    try:
        return json.dumps(metadata, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(metadata), default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
