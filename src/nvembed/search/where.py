"""Filters on metadata, parsed into typed conditions that never become part of a query's text.

``year >= 2020 and lang = "en"``: conditions joined by ``and``. A value with ``and``, a comparison sign or a
quote in it is quoted: ``title = "cats and dogs"``; a quote inside is doubled: ``"5"" pipe, it's new"``. A
passage without the field never matches. A list field matches ``=`` if the list contains the value.
``metadata.year`` is the field ``year``, unless the metadata itself has an object ``metadata``.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

from nvembed.errors import InputError
from nvembed.search.fields import INT64, Kind, Value, canonical_date

OPERATORS = ("=", "!=", "<", "<=", ">", ">=")
# Fields of every passage. Metadata fields with these names are called metadata.id and metadata.document.
OWN_FIELDS: dict[str, Kind] = {"id": "string", "document": "string"}
# Limits: databases build an expression tree as deep as the number of conditions.
MAX_CHARS, MAX_CONDITIONS, MAX_NUMBER = 20_000, 100, 100

# Linear: every quantifier is possessive, and each character is read once.
_TOKEN = re.compile(
    r"""\s*+(?:(?P<op>==|!=|<=|>=|=|<|>)
        |"(?P<double>(?:[^"]|"")*+)"
        |'(?P<single>(?:[^']|'')*+)'
        |(?P<word>[^\s=!<>"']++))""",
    re.VERBOSE,
)
_NUMBER = re.compile(r"[+-]?(?:\d++\.?\d*+|\.\d++)(?:[eE][+-]?\d{1,6}+)?")
_DATE_PREFIX = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")


@dataclass(frozen=True, slots=True)
class Condition:
    """``field op value``; the value has the field's type.

    For a list field, ``=`` means "contains". For a date, ``value`` may be a period ``(first, end)``: a day,
    month or year; ``=`` means inside (``first <= x < end``) and ``!=`` outside.
    """

    field: str
    op: str
    value: Value | tuple[str, str]
    kind: Kind = "string"


class _Token(NamedTuple):
    name: str  # op, word or quoted
    text: str
    start: int
    end: int


def parse_where(texts: Iterable[str], fields: Mapping[str, Kind]) -> tuple[Condition, ...]:
    """Return the conditions of several filters, all of which must hold.

    Args:
        texts: filters such as ``year >= 2020 and lang = "en"``; at most ``MAX_CONDITIONS`` conditions in all.
        fields: the fields of this index's metadata and their types.

    Raises:
        InputError: a text is not a filter or is too long, a field is unknown, or its type does not have the
            comparison.
    """
    kinds = {**fields, **OWN_FIELDS}
    conditions: list[Condition] = []
    for text in texts:
        if len(text) > MAX_CHARS:
            raise InputError(f"a filter has {len(text):,} characters; expected at most {MAX_CHARS:,}")
        for condition in _parse(text, kinds):
            conditions.append(condition)
            if len(conditions) > MAX_CONDITIONS:
                raise InputError(f"the filters have too many conditions; expected at most {MAX_CONDITIONS}")
    return tuple(conditions)


def _parse(text: str, kinds: Mapping[str, Kind]) -> Iterator[Condition]:
    tokens = list(_tokens(text))
    i = 0
    while True:
        if i + 2 >= len(tokens) or tokens[i].name == "op" or tokens[i + 1].name != "op":
            raise _unreadable(text, tokens[i].start if i < len(tokens) else len(text))
        name, op, value = tokens[i].text, tokens[i + 1].text, tokens[i + 2]
        if value.name == "op":
            raise _unreadable(text, value.start)
        i += 3
        end = value.end
        while i < len(tokens) and value.name == "word" and tokens[i].name == "word":
            if tokens[i].text.lower() == "and":
                break
            end = tokens[i].end
            i += 1
        if i < len(tokens) and (tokens[i].name != "word" or tokens[i].text.lower() != "and"):
            raise _unreadable(text, tokens[i].start)
        if name not in kinds and name.startswith("metadata."):
            name = name.removeprefix("metadata.")
        if name not in kinds:
            raise InputError(f"no field {_short(name)} to filter on; this index has {_listed(kinds)}")
        literal = value.text if value.name == "quoted" else text[value.start : end]
        yield _condition(name, "=" if op == "==" else op, literal, kinds[name], bare=value.name == "word")
        if i == len(tokens):
            return
        i += 1


def _tokens(text: str) -> Iterator[_Token]:
    place, end = 0, len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None or match.lastgroup is None:
            raise _unreadable(text, place)
        name, content = match.lastgroup, match[match.lastgroup]
        if name in ("double", "single"):
            quote = '"' if name == "double" else "'"
            name, content = "quoted", content.replace(quote * 2, quote)
        yield _Token(name, content, match.start(match.lastgroup), match.end(match.lastgroup))
        place = match.end()


def _unreadable(text: str, place: int) -> InputError:
    rest = text[place:].strip()
    where = f"at {_short(rest)}" if rest else "at its end"
    return InputError(
        f"cannot read the filter {_short(text)} {where}; expected FIELD OP VALUE with one of "
        f'{" ".join(OPERATORS)}, joined by and: year >= 2020 and lang = "en". Quote values with quotes or '
        "comparison signs in them, and double a quote inside quotes"
    )


def _condition(field: str, op: str, text: str, kind: Kind, *, bare: bool) -> Condition:
    base = kind.removesuffix("[]")
    if op not in ("=", "!=") and (base == "bool" or kind.endswith("[]")):
        what = "true or false" if base == "bool" and kind == base else "a list"
        raise InputError(f"the field {field!r} is {what}; expected = or !=, got {op}")
    if base == "bool":
        if text.lower() not in ("true", "false"):
            raise InputError(f"the field {field!r} is true or false; got {_short(text)}")
        return Condition(field, op, text.lower() == "true", kind)
    if base in ("int", "float"):
        if _NUMBER.fullmatch(text) is None or len(text) > MAX_NUMBER:
            raise InputError(f"the field {field!r} is a number; got {_short(text)}")
        number = Decimal(text)
        if base == "int":
            condition = Condition(field, *_on_integers(op, number), kind)
            if kind.endswith("[]") and condition.op not in ("=", "!="):
                raise InputError(f"the field {field!r} is a list of whole numbers; got {_short(text)}")
            return condition
        largest = sys.float_info.max
        return Condition(field, op, min(max(float(number), -largest), largest), kind)
    if base == "date":
        return _date(field, op, text, kind)
    if op not in ("=", "!=") and bare and _NUMBER.fullmatch(text):
        what = f"the field {field!r} is text; {op} {_short(text)} compares numbers"
        raise InputError(f"{what}. Quote the value to compare it as text")
    return Condition(field, op, text, kind)


def _on_integers(op: str, number: Decimal) -> tuple[str, int]:
    """Return a condition that is true for the same 64-bit integers as ``op number``."""
    largest = INT64 - 1
    if abs(number) < INT64:
        whole = int(number)  # towards zero
        if whole == number:
            return op, whole
        floor = whole if number > 0 else whole - 1
        if op in ("<", "<="):
            return "<=", floor
        if op in (">", ">="):
            return ">", floor
    always, never = ("<=", largest), (">", largest)
    if op in ("=", "!="):
        return never if op == "=" else always
    return always if (number > 0) == (op in ("<", "<=")) else never


def _date(field: str, op: str, text: str, kind: Kind) -> Condition:
    try:
        first, end = _period(text)
    except ValueError:
        raise InputError(
            f"the field {field!r} is a date; expected YYYY, YYYY-MM, YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS, got "
            f"{_short(text)}"
        ) from None
    if end is None or kind.endswith("[]"):
        return Condition(field, op, first, kind)
    if op in ("=", "!="):
        return Condition(field, op, (first, end), kind)
    if op in ("<=", ">"):  # of the whole period
        return Condition(field, "<" if op == "<=" else ">=", end, kind)
    return Condition(field, op, first, kind)


def _period(text: str) -> tuple[str, str | None]:
    """Return the beginning and end of a day, month or year; for a point in time, the point and None.

    Raises:
        ValueError: the text is not a date.
    """
    match = _DATE_PREFIX.fullmatch(text)
    if match is None:
        exact = canonical_date(text)
        if exact is None:
            raise ValueError(text)
        return exact, None
    parts = [int(part) for part in match.groups() if part]
    first = datetime(*(*parts, 1, 1)[:3])  # type: ignore[arg-type]
    begin = first.isoformat(timespec="microseconds")
    try:
        if len(parts) == 3:
            following = first + timedelta(days=1)
        elif len(parts) == 2:
            following = (first + timedelta(days=31)).replace(day=1)
        else:
            following = first.replace(year=first.year + 1)
    except (OverflowError, ValueError):  # the last day, month or year there is
        return begin, "~"
    return begin, following.isoformat(timespec="microseconds")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _listed(kinds: Mapping[str, Kind]) -> str:
    names = sorted(kinds)
    return ", ".join(names[:50]) + (f" and {len(names) - 50} more" if len(names) > 50 else "")
