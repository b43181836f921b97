"""The metadata fields of an index and their types, which all values of the corpus decide.

A CSV file contains only text, so text that reads as a number, a truth value or a date counts as one. A field
has the type of most of its values; the other values are reported as misfits and match no filter. Text with a
leading zero ("01234") is an identifier, never a number. Nested objects become dotted names (``author.name``),
lists become ``TYPE[]``. Integers above 64 bits count as text, which compares them exactly.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

Kind = Literal[
    "int", "float", "bool", "date", "string", "int[]", "float[]", "bool[]", "date[]", "string[]"
]  # fmt: skip
Value = str | int | float | bool
INT64 = 2**63  # integers are below this, in absolute value
MAX_FIELDS, MAX_DEPTH = 500, 8
TEXT_SIZE = 40  # longer text is neither a number nor a date

_INT = re.compile(r"-?(?:0|[1-9]\d{0,18})", re.ASCII)
_FLOAT = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?", re.ASCII)
_CODE = re.compile(r"0\d+", re.ASCII)
_DATE = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:Z|[+-]\d\d:?\d\d)?)?", re.ASCII
)


@dataclass(frozen=True)
class Misfit:
    """Values of a field that do not have its type: their number, one of them, and its passage."""

    field: str
    kind: Kind
    count: int
    value: str
    passage: str

    def __str__(self) -> str:
        values = "value is" if self.count == 1 else "values are"
        return (
            f"{self.field}: {self.count:,} {values} not of type {self.kind}, such as {self.value} of passage "
            f"{self.passage!r}"
        )


@dataclass
class _FieldTally:
    """How the values of a field can be read, with an example of each reading."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, tuple[Any, str]] = field(default_factory=dict)
    is_list: bool = False


# The readings of a value and their base kinds. Text that reads as a number has a reading of its own: it is a
# number only if no value of the field has a leading zero. Native numbers in a text field are reported.
_READINGS = {"int text": "int", "float text": "float", "bool text": "bool", "code": "string"}


def field_kinds(
    records: Iterable[tuple[str, str]], known: Mapping[str, Kind] | None = None
) -> tuple[dict[str, Kind], list[Misfit]]:
    """Return the type of every metadata field, and the values that do not have it.

    Args:
        records: the passage id and the metadata (a JSON object) of each passage.
        known: fixed types: of the index that the records are added to, or of the user.
    """
    tallies: dict[str, _FieldTally] = {}
    last: tuple[str, list[tuple[str, Any, bool]]] = ("{}", [])
    for passage, record in records:
        if record != last[0]:  # the passages of a document share its metadata
            last = (record, list(_flat(json.loads(record))))
        for name, value, in_list in last[1]:
            if name not in tallies and len(tallies) >= MAX_FIELDS:
                continue
            tally = tallies.setdefault(name, _FieldTally())
            tally.is_list |= in_list
            reading = _reading(value)
            if reading is not None:
                tally.counts[reading] = tally.counts.get(reading, 0) + 1
                tally.examples.setdefault(reading, (value, passage))
    kinds: dict[str, Kind] = dict(known or {})
    misfits = []
    for name, tally in tallies.items():
        if tally.counts:
            kind = kinds.setdefault(name, _kind(tally))
            misfits += _misfits(name, kind, tally)
    return kinds, misfits


def _kind(tally: _FieldTally) -> Kind:
    sums: dict[str, int] = {}
    for reading, count in tally.counts.items():
        base = _base(reading, tally)
        sums[base] = sums.get(base, 0) + count
    numbers, total = sums.get("int", 0) + sums.get("float", 0), sum(sums.values())
    if numbers * 2 > total:
        base = "float" if "float" in sums else "int"
    else:
        base = next((name for name in ("bool", "date") if sums.get(name, 0) * 2 > total), "string")
    kind: Kind = f"{base}[]" if tally.is_list else base  # type: ignore[assignment]
    return kind


def _base(reading: str, tally: _FieldTally) -> str:
    if "code" in tally.counts and reading in ("int text", "float text"):
        return "string"
    return _READINGS.get(reading, reading)


def _misfits(name: str, kind: Kind, tally: _FieldTally) -> list[Misfit]:
    base = kind.removesuffix("[]")
    fits = {"int"} if base == "int" else {"int", "float"} if base == "float" else {base}
    odd = [reading for reading in tally.counts if _READINGS.get(reading, reading) not in fits]
    if base == "string":  # text holds everything; a number in JSON is still worth a line
        odd = [reading for reading in tally.counts if reading in ("int", "float", "bool")]
    if not odd:
        return []
    value, passage = tally.examples[odd[0]]
    text = json.dumps(value, ensure_ascii=False)
    return [Misfit(name, kind, sum(tally.counts[reading] for reading in odd), text[:60], passage)]


def _reading(value: Any) -> str | None:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if abs(value) < INT64 else "string"
    if isinstance(value, float):
        return "float" if math.isfinite(value) else "string"
    text = value.strip()
    if not text:
        return None
    if len(text) > TEXT_SIZE:
        return "string"
    if _CODE.fullmatch(text):
        return "code"
    if _INT.fullmatch(text):
        return "int text" if abs(int(text)) < INT64 else "string"
    if _FLOAT.fullmatch(text):
        return "float text" if math.isfinite(float(text)) else "string"
    if text.lower() in ("true", "false"):
        return "bool text"
    return "date" if canonical_date(text) else "string"


def _flat(record: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yield (dotted name, scalar, whether it is in a list); ``id`` and ``document`` get a prefix."""
    stack: list[tuple[str, Any, bool, int]] = [
        (f"metadata.{name}" if name in ("id", "document") else name, value, False, 1)
        for name, value in reversed(list(record.items()))
    ]
    while stack:
        name, value, in_list, depth = stack.pop()
        if isinstance(value, str | int | float):
            yield name, value, in_list
        elif depth < MAX_DEPTH and isinstance(value, dict):
            stack += [(f"{name}.{key}", inner, in_list, depth + 1) for key, inner in reversed(value.items())]
        elif depth < MAX_DEPTH and isinstance(value, list):
            stack += [(name, inner, True, depth + 1) for inner in reversed(value)]


def field_values(records: Sequence[str], kinds: Mapping[str, Kind]) -> dict[str, list[Any]]:
    """Return a column for each field: values of the field's type, lists of them, or None."""
    columns: dict[str, list[Any]] = {name: [None] * len(records) for name in kinds}
    for row, record in enumerate(records):
        if record == "{}":
            continue
        for name, value, _ in _flat(json.loads(record)):
            kind = kinds.get(name)
            converted = None if kind is None else as_kind(value, kind)
            if kind is None or converted is None:
                continue
            if kind.endswith("[]"):
                columns[name][row] = [*(columns[name][row] or []), converted]
            elif columns[name][row] is None:
                columns[name][row] = converted
    return columns


def as_kind(value: Value, kind: Kind) -> Value | None:
    """Convert a metadata value or an element of a list to its field's type; None if it has another."""
    base, reading = kind.removesuffix("[]"), _reading(value)
    if reading is None:
        return None
    if base == "string":
        text = value if isinstance(value, str) else json.dumps(value)
        return None if "\0" in text else text  # databases refuse NUL
    reading = _READINGS.get(reading, reading)
    if base == "bool" and reading == "bool":
        return value if isinstance(value, bool) else str(value).strip().lower() == "true"
    if base == "int" and reading == "int":
        return int(value)
    if base == "float" and reading in ("int", "float"):
        return float(value)
    return canonical_date(str(value)) if base == "date" and reading == "date" else None


def canonical_date(text: str) -> str | None:
    """Return an ISO 8601 date or time as text in UTC that sorts by time; None if it is neither."""
    text = text.strip()
    if _DATE.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds")


def parse_kinds(texts: Iterable[str]) -> dict[str, Kind]:
    """Parse types written as ``NAME=TYPE``, such as ``version=string``.

    Raises:
        ValueError: a text has another form, or the type is unknown.
    """
    kinds: dict[str, Kind] = {}
    for text in texts:
        name, _, kind = text.rpartition("=")
        if not name or kind not in get_args(Kind):
            raise ValueError(f"got {text!r}; expected NAME=TYPE with a type of {', '.join(get_args(Kind))}")
        kinds[name] = kind  # type: ignore[assignment]
    return kinds
