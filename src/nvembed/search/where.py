"""Filters on metadata: parsed and checked here, never pasted into anybody's query language.

``year >= 2020 and lang = "en"``: conditions joined by ``and``; a value with ``and`` or a quote in it stands
in (the other kind of) quotes. A passage without the field never matches.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nvembed.errors import InputError

Kind = Literal["int", "float", "bool", "string"]
Value = str | int | float | bool
OPERATORS = ("=", "!=", "<", "<=", ">", ">=")
# Fields that every passage has, beside those of its metadata.
OWN_FIELDS: dict[str, Kind] = {"id": "string", "document": "string"}

_CONDITION = re.compile(
    r"""\s*(?:"(?P<quoted>[^"]+)"|(?P<field>[^\s=!<>"']+))
        \s*(?P<op>==|!=|<=|>=|=|<|>)
        \s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>[^\s"'=!<>](?:(?!\s+and\s)[^"'=!<>])*?))
        \s*(?P<end>$|\sand\s)""",
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Condition:
    """``field op value``; the value has the field's type."""

    field: str
    op: str
    value: Value


def parse_where(texts: Iterable[str], fields: Mapping[str, Kind]) -> tuple[Condition, ...]:
    """Return the conditions of several filters, all of which must hold.

    Args:
        texts: such as ``year >= 2020 and lang = "en"``, or ``lang=en``.
        fields: the fields of this index's metadata and their types.

    Raises:
        InputError: not a filter, no such field, or a value that the field cannot have.
    """
    known = {**fields, **OWN_FIELDS}
    return tuple(condition for text in texts for condition in _parse(text, known))


def _parse(text: str, known: Mapping[str, Kind]) -> Iterable[Condition]:
    place = 0
    while True:
        found = _CONDITION.match(text, place)
        if found is None:
            raise InputError(
                f"cannot read the filter {text!r} at {text[place : place + 30]!r}; expected FIELD "
                f'OP VALUE with {" ".join(OPERATORS)}, joined by and: year >= 2020 and lang = "en"'
            )
        field = found["quoted"] or found["field"]
        if field not in known:
            raise InputError(f"no field {field!r} to filter on; this index has {', '.join(sorted(known))}")
        op = "=" if found["op"] == "==" else found["op"]
        given = next(found[name] for name in ("double", "single", "bare") if found[name] is not None)
        yield Condition(field, op, _value(field, op, given.strip() if found["bare"] else given, known[field]))
        if not found["end"]:
            return
        place = found.end()


def _value(field: str, op: str, text: str, kind: Kind) -> Value:
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        wanted = "a whole number" if kind == "int" else "a number"
        raise InputError(f"the field {field!r} is {wanted}; got {text!r}") from None
    if kind == "bool":
        if text.lower() not in ("true", "false") or op not in ("=", "!="):
            raise InputError(f"the field {field!r} is true or false; got {op} {text!r}")
        return text.lower() == "true"
    return text


def kinds_of(records: Iterable[str], known: Mapping[str, Kind] | None = None) -> dict[str, Kind]:
    """Return the type of every field in metadata (JSON objects), beginning with what is ``known`` already.

    Whole numbers and others make ``float``, anything else that is mixed ``string``; fields that hold lists,
    objects or null are left out. A known field keeps its type.
    """
    found: dict[str, Kind] = {}
    for record in records:
        if record == "{}":
            continue
        for name, value in json.loads(record).items():
            kind = _KINDS.get(type(value))
            if kind is not None and found.get(name) != kind:
                found[name] = _joined(found.get(name, kind), kind)
    return {**{name: kind for name, kind in found.items() if name not in OWN_FIELDS}, **(known or {})}


_KINDS: dict[type, Kind] = {int: "int", float: "float", bool: "bool", str: "string"}


def _joined(one: Kind, other: Kind) -> Kind:
    if one == other:
        return one
    return "float" if {one, other} == {"int", "float"} else "string"


def field_values(records: Sequence[str], fields: Mapping[str, Kind]) -> dict[str, list[Value | None]]:
    """Return a column of each field: values with the field's type, None where it has none of that type."""
    rows = [json.loads(record) for record in records]
    return {name: [as_kind(row.get(name), kind) for row in rows] for name, kind in fields.items()}


def as_kind(value: object, kind: Kind) -> Value | None:
    """Return a metadata value as its field's type, or None: null, a list, or of another type."""
    if kind == "string":
        if isinstance(value, str):
            return value
        return json.dumps(value) if type(value) in _KINDS else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind == "float":
        return float(value) if abs(value) <= sys.float_info.max else None
    return int(value) if value == int(value) and abs(value) < 2**63 else None
