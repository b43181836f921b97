"""The filter language: what is read, what is refused, and that its time is linear."""

import json
import time
from typing import Any

import pytest

from nvembed.errors import InputError
from nvembed.search.fields import Kind, field_kinds, field_values
from nvembed.search.where import MAX_CHARS, MAX_CONDITIONS, Condition, parse_where

KINDS: dict[str, Kind] = {
    "year": "int",
    "price": "float",
    "draft": "bool",
    "lang": "string",
    "day": "date",
    "tags": "string[]",
    "sizes": "int[]",
    "and": "int",
    "a.b": "int",
    "two words": "string",
    "metadata.document": "string",
}


def one(text: str) -> tuple[Any, ...]:
    (condition,) = parse_where([text], KINDS)
    return condition.field, condition.op, condition.value


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("year >= 2020", ("year", ">=", 2020)),
        ("year==2020.0", ("year", "=", 2020)),
        ("year > 2020.5", ("year", ">", 2020)),
        ("year >= 2020.5", ("year", ">", 2020)),
        ("year < -0.5", ("year", "<=", -1)),
        ("year = 1e3", ("year", "=", 1000)),
        ("price = 100", ("price", "=", 100.0)),
        ("price<=1.5e2", ("price", "<=", 150.0)),
        ("draft = TRUE", ("draft", "=", True)),
        ("lang = en", ("lang", "=", "en")),
        ("lang = rock   and-roll", ("lang", "=", "rock   and-roll")),
        ('lang = "cats and dogs"', ("lang", "=", "cats and dogs")),
        ("lang = 'say \"hi\"'", ("lang", "=", 'say "hi"')),
        ('lang = "5"" pipe, it\'s new"', ("lang", "=", "5\" pipe, it's new")),
        ("lang = 'it''s \"new\"'", ("lang", "=", 'it\'s "new"')),
        ('lang = ""', ("lang", "=", "")),
        (r'lang = "C:\dir\"', ("lang", "=", "C:\\dir\\")),
        ('lang > "10"', ("lang", ">", "10")),
        ('"two words" = x', ("two words", "=", "x")),
        ("and = 3", ("and", "=", 3)),
        ("a.b >= 3", ("a.b", ">=", 3)),
        ("tags = x", ("tags", "=", "x")),
        ("sizes != 3", ("sizes", "!=", 3)),
        ("id = a", ("id", "=", "a")),
        ("metadata.year >= 2020", ("year", ">=", 2020)),
        ("metadata.document = a", ("metadata.document", "=", "a")),
        ("day = 2024-02", ("day", "=", ("2024-02-01T00:00:00.000000", "2024-03-01T00:00:00.000000"))),
        ("day > 2024", ("day", ">=", "2025-01-01T00:00:00.000000")),
        ("day <= 2024-12-31", ("day", "<", "2025-01-01T00:00:00.000000")),
        ("day < 2024-01-02T10:00:00+02:00", ("day", "<", "2024-01-02T08:00:00.000000")),
        ("day <= 9999", ("day", "<", "~")),
    ],
)
def test_conditions(text: str, condition: tuple[Any, ...]) -> None:
    assert one(text) == condition


def test_several() -> None:
    text = 'year >= 2020 AND lang = "x and y" and draft=false'
    assert [c.field for c in parse_where([text, "price < 3"], KINDS)] == ["year", "lang", "draft", "price"]
    assert parse_where([], KINDS) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the filter"),
        ("year", "cannot read the filter"),
        ("year >=", "cannot read the filter"),
        ("= 3", "cannot read the filter"),
        ("year = = 3", "cannot read the filter"),
        ("year = 3 and", "at its end"),
        ("year = 3 and ", "at its end"),
        ("lang = it's", "double a quote"),
        ('lang = "open', "cannot read the filter"),
        ('lang = "a" b', "cannot read the filter"),
        ("year = 3 or year = 4", "cannot read the filter"),
        ("(year = 3)", "no field '\\(year'"),
        ("month = 3", "no field 'month'"),
        ("year = x", "'year' is a number"),
        ("year = nan", "'year' is a number"),
        ("year = 1_000", "'year' is a number"),
        ("year = " + "9" * 5_000, "'year' is a number"),
        ("draft > true", "true or false; expected = or !="),
        ("draft = 1", "true or false; got '1'"),
        ("lang > 3", "'lang' is text.*Quote the value"),
        ("tags > x", "'tags' is a list; expected = or !="),
        ("sizes = 1.5", "list of whole numbers"),
        ("day = soon", "'day' is a date; expected YYYY"),
        ("day = 2024-13", "'day' is a date; expected YYYY"),
        ("day = 0000", "'day' is a date; expected YYYY"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_where([text], KINDS)


def test_bounds() -> None:
    assert len(parse_where([" and ".join(["year=1"] * MAX_CONDITIONS)], KINDS)) == MAX_CONDITIONS
    for texts in (
        [" and ".join(["year=1"] * (MAX_CONDITIONS + 1))],
        ["year=1"] * (MAX_CONDITIONS + 1),
        ["lang = " + "x" * MAX_CHARS],
    ):
        with pytest.raises(InputError, match="expected at most"):
            parse_where(texts, KINDS)


@pytest.mark.parametrize(
    "text",
    [
        "lang = a" + " " * 19_900 + "b",
        " " * 19_900,
        "lang = " + '"' * 19_900,
        "lang = " + "''" * 9_900,
        "lang = " + "a " * 9_900,
        "lang = " + "and " * 4_900,
        "lang" + "=" * 19_900,
        "lang <= " + "!" * 19_900,
        "x" * 19_900,
        "year = " + "1" * 19_900,
        "year = 1e" + "9" * 6,
        "day = " + "2024-01-01" * 1_900,
        'lang = "' + '""' * 9_900,
    ],
)
def test_time_is_linear(text: str) -> None:
    start = time.process_time()
    for _ in range(20):
        try:
            parse_where([text], KINDS)
        except InputError as error:
            assert len(str(error)) < 1_000  # noqa: PT017  # the filter is not repeated whole
    assert time.process_time() - start < 5  # quadratic takes minutes


def kinds(*records: dict[str, Any]) -> tuple[dict[str, Kind], list[str]]:
    found, misfits = field_kinds((f"p{i}", json.dumps(record)) for i, record in enumerate(records))
    return found, [str(misfit) for misfit in misfits]


def test_types_of_a_csv_file() -> None:
    rows = [("9", "true"), ("50", "True"), ("100", "false"), ("1250.50", "true"), ("", "")]
    records = [
        {"price": price, "in_stock": stock, "zip": f"0{i}123"} for i, (price, stock) in enumerate(rows)
    ]
    found, misfits = kinds(*records)
    assert found == {"price": "float", "in_stock": "bool", "zip": "string"}
    assert misfits == []
    values = field_values([json.dumps(record) for record in records], found)
    assert values["price"] == [9.0, 50.0, 100.0, 1250.5, None]
    assert values["in_stock"] == [True, True, False, True, None]
    assert values["zip"][0] == "00123"


@pytest.mark.parametrize(
    ("values", "kind", "misfit"),
    [
        ([9, 10, 100.5, "free"], "float", "\"free\" of passage 'p3'"),
        ([1, 2, None], "int", ""),
        (["1", "2", "n/a"], "int", '"n/a"'),
        (["a", "b", 3], "string", "3 of passage"),
        (["a", "b", "3"], "string", ""),
        ([True, False, "yes"], "bool", '"yes"'),
        (["2024-01-02", "2024-01-02T10:00:00Z"], "date", ""),
        (["2024-01-02", "2024-02-31", "2024-03-01"], "date", '"2024-02-31"'),
        ([2**63 - 1, 5], "int", ""),
        ([2**63, 2**64, 10**400], "string", ""),
        ([1, 2, 2**63], "int", "9223372036854775808"),
        ([["a", "b"], "c"], "string[]", ""),
        ([[1, 2], [3.5]], "float[]", ""),
        ([[]], None, ""),
        ([{"b": 1}], None, ""),
    ],
)
def test_types(values: list[Any], kind: str | None, misfit: str) -> None:
    found, misfits = kinds(*[{"x": value} for value in values])
    assert found.get("x") == kind
    assert misfit in "".join(misfits)
    assert bool(misfit) == bool(misfits)


def test_nested_and_reserved_names() -> None:
    people = [{"name": "Ann"}, {"name": "Bo"}]
    record = {"a": {"b": 3, "c": {"d": "x"}}, "people": people, "document": "d", "id": 7}
    found, _ = kinds(record)
    assert found == {
        "a.b": "int",
        "a.c.d": "string",
        "people.name": "string[]",
        "metadata.document": "string",
        "metadata.id": "int",
    }
    values = field_values([json.dumps(record), "{}"], found)
    assert values["people.name"] == [["Ann", "Bo"], None]
    assert values["metadata.id"] == [7, None]


def test_known_types_stay() -> None:
    found, misfits = field_kinds([("p", '{"x": "text", "y": 1}')], {"x": "int"})
    assert found == {"x": "int", "y": "int"}
    assert [misfit.field for misfit in misfits] == ["x"]


def test_many_and_deep_fields_are_bounded() -> None:
    deep: Any = 1
    for _ in range(300):
        deep = {"d": deep}
    found, _ = kinds({f"f{i}": i for i in range(2_000)}, {"deep": deep})
    assert len(found) == 500
    assert all(name.count(".") < 8 for name in kinds({"deep": deep, "x": 1})[0])


def test_a_condition_of_ones_own() -> None:
    assert Condition("id", "=", "a").kind == "string"
