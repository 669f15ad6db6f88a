"""The column form and the row form of an expression give the same results, and so does its canonical text."""

import math
import sqlite3
from collections.abc import Mapping
from datetime import date
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import Column, Expression, compile_expression, schema_of
from tidemill_testkit.effort import examples

SCHEMA = schema_of(
    definition.Field(name=f"{prefix}{suffix}", type=type_, nullable=suffix != "0")
    for prefix, type_ in [
        ("b", definition.FIELD_TYPE_BOOL),
        ("i", definition.FIELD_TYPE_INT64),
        ("f", definition.FIELD_TYPE_FLOAT64),
        ("s", definition.FIELD_TYPE_STRING),
        ("t", definition.FIELD_TYPE_TIMESTAMP),
    ]
    for suffix in ("0", "1")
)

# Of a view that is looked up; any of its features may be null.
OF_VIEW = schema_of(
    definition.Field(name=name, type=one.type, nullable=True) for name, one in SCHEMA.items() if "1" in name
)
TYPED = {**{name: name[0] for name in SCHEMA}, **{f"v.{name}": name[0] for name in OF_VIEW}}

INTEGERS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(-3, 3), st.sampled_from([-(2**63), 2**63 - 1, 2**53 + 1])
)
FLOATS = st.one_of(st.floats(), st.floats(-3, 3), st.sampled_from([0.0, -0.0, 0.5, 1.5, 2.5, 2.0**63, 1e308, 5e-324]))
STRINGS = st.text(max_size=4)
# A year beyond the ends of int64 microseconds does not exist; every other instant does.
VALUES = {"b": st.booleans(), "i": INTEGERS, "f": FLOATS, "s": STRINGS, "t": INTEGERS}
NEUTRAL: dict[str, Any] = {"b": False, "i": 0, "f": 0.0, "s": None, "t": 0}
DTYPES: dict[str, Any] = {"b": np.bool_, "i": np.int64, "f": np.float64, "s": np.object_, "t": np.int64}


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


Strategies = dict[str, st.SearchStrategy[str]]
LEAVES: Strategies = {
    "b": st.sampled_from(["b0", "b1", "v.b1", "TRUE", "FALSE"]),
    "i": st.sampled_from(["i0", "i1", "v.i1"]) | INTEGERS.map(str),
    "f": st.sampled_from(["f0", "f1", "v.f1"]) | FLOATS.filter(math.isfinite).map(repr),
    "s": st.sampled_from(["s0", "s1", "v.s1"]) | STRINGS.map(quoted),
    "t": st.sampled_from(["t0", "t1", "v.t1", "TIMESTAMP '2013-06-04T01:02:03.000004Z'"]),
}
# Result type, text, type of each slot; `*` stands for every type, in the result and in the slots alike.
FORMS = [
    ("*", "CASE WHEN ({}) THEN ({}) ELSE ({}) END", "b**"),
    ("*", "CASE ({}) WHEN ({}) THEN ({}) WHEN 1 THEN ({}) END", "ii**"),
    ("*", "COALESCE(({}), ({}))", "**"),
    *[(letter, "LEAST(({}), ({}), ({}))", letter * 3) for letter in "ifst"],
    *[(letter, "greatest(({}), ({}))", letter * 2) for letter in "ifst"],
    *[(letter, f"({{}}) {op} ({{}})", letter * 2) for letter in "if" for op in "+-*%"],
    *[(letter, text, letter) for letter in "if" for text in ("-({})", "ABS({})")],
    *[(letter, "NULLIF(({}), ({}))", letter * 2) for letter in "if"],
    *[
        ("b", f"({{}}) {op} ({{}})", pair)
        for op in ("=", "<>", "<", "<=", ">", ">=")
        for pair in ("ii", "if", "ff", "ss", "tt")
    ],
    ("b", "({}) <> ({})", "bb"),
    ("b", "({}) AND ({})", "bb"),
    ("b", "({}) OR ({}) OR ({})", "bbb"),
    ("b", "NOT ({})", "b"),
    ("b", "({}) BETWEEN ({}) AND ({})", "ifi"),
    ("b", "({}) NOT IN (({}), ({}))", "sss"),
    ("b", "({}) IN (({}))", "fi"),
    ("b", "({}) IS NULL", "s"),
    ("b", "({}) IS NOT NULL", "f"),
    ("i", "({}) DIV ({})", "ii"),
    ("i", "CAST(({}) AS BIGINT)", "f"),
    ("i", "CAST(({}) AS INT)", "b"),
    ("i", "LENGTH({})", "s"),
    *[("i", f"{name}({{}})", "t") for name in ("hour", "MINUTE", "month", "dow", "DAY_OF_WEEK")],
    ("f", "({}) / ({})", "if"),
    ("f", "({}) / ({})", "ii"),
    ("f", "({}) + ({})", "if"),
    ("f", "CAST(({}) AS DOUBLE)", "i"),
    *[("f", f"{name}({{}})", "f") for name in ("ROUND", "floor", "ceil")],
    ("s", "LOWER({})", "s"),
    ("s", "upper({})", "s"),
    ("s", "({}) || ({})", "ss"),
    ("s", "CONCAT(({}), ({}), 'é')", "ss"),
    ("s", "CAST(({}) AS VARCHAR)", "i"),
]


def one_level_up(below: Strategies) -> Strategies:
    """Texts whose outermost operation takes texts of the level below."""
    return {
        letter: st.one_of(
            below[letter],
            *[
                st.builds(text.format, *[below[letter if slot == "*" else slot] for slot in slots])
                for result, text, slots in FORMS
                if result in ("*", letter)
            ],
        )
        for letter in LEAVES
    }


EXPRESSIONS = one_level_up(one_level_up(one_level_up(LEAVES)))
TEXTS = st.one_of(*EXPRESSIONS.values())
ROWS = st.lists(
    st.fixed_dictionaries(
        {name: VALUES[kind] if name.endswith("0") else st.none() | VALUES[kind] for name, kind in TYPED.items()}
    ),
    min_size=1,
    max_size=6,
)


def as_columns(rows: list[Mapping[str, Any]]) -> dict[str, Column]:
    columns = {}
    for name, kind in TYPED.items():
        values = np.empty(len(rows), dtype=DTYPES[kind])
        for index, row in enumerate(rows):
            values[index] = NEUTRAL[kind] if row[name] is None else row[name]
        columns[name] = Column(values, np.array([row[name] is None for row in rows], dtype=np.bool_))
    return columns


def by_columns(expression: Expression, rows: list[Mapping[str, Any]]) -> list[Any]:
    values, nulls = expression.evaluate(as_columns(rows))
    return [None if null else value for value, null in zip(values.tolist(), nulls.tolist(), strict=True)]


def exactly(values: list[Any]) -> list[str]:
    """Tells 0.0 from -0.0 and 1 from 1.0 and True."""
    return [repr(value) for value in values]


def compiled(text: str) -> Expression | None:
    try:
        return compile_expression(text, SCHEMA, views={"v": OF_VIEW})
    except ValueError as error:
        # Random texts may be too large when written out; nothing else may fail.
        if "too large" in str(error):
            return None
        raise


@settings(max_examples=examples(600), deadline=None)
@given(TEXTS, ROWS)
def test_row_form_and_column_form_agree_to_the_bit(text: str, rows: list[Mapping[str, Any]]) -> None:
    expression = compiled(text)
    if expression is None:
        return
    assert exactly([expression.evaluate_row(row) for row in rows]) == exactly(by_columns(expression, rows))


@settings(max_examples=examples(300), deadline=None)
@given(TEXTS, ROWS)
def test_canonical_text_means_the_same_and_is_its_own_canonical_text(text: str, rows: list[Mapping[str, Any]]) -> None:
    expression = compiled(text)
    if expression is None:
        return
    again = compile_expression(expression.canonical, SCHEMA, views={"v": OF_VIEW})
    assert again.canonical == expression.canonical
    assert (again.columns, again.features) == (expression.columns, expression.features)
    assert again.type == expression.type
    assert again.nullable == expression.nullable
    assert exactly(by_columns(again, rows)) == exactly(by_columns(expression, rows))


@settings(max_examples=examples(300), deadline=None)
@given(TEXTS, ROWS)
def test_an_expression_that_says_it_is_never_null_never_is(text: str, rows: list[Mapping[str, Any]]) -> None:
    expression = compiled(text)
    # A float field may hold a value that is not finite, which reads as NULL; ingestion refuses those.
    finite: list[Mapping[str, Any]] = [
        {k: 0.0 if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows
    ]
    if expression is not None and not expression.nullable:
        assert None not in by_columns(expression, finite)


LOGIC = st.recursive(
    st.sampled_from(["i0", "i1", "i2", "NULL"])
    .map(lambda name: f"({name} > 0)")
    .filter(lambda text: "NULL" not in text)
    | st.sampled_from(
        ["(i1 IS NULL)", "(i1 = i2)", "(i1 IN (0, i2))", "(i1 NOT BETWEEN i0 AND i2)", "(COALESCE(i1, i2) = 1)"]
    ),
    lambda inner: st.one_of(
        st.builds("({} AND {})".format, inner, inner),
        st.builds("({} OR {})".format, inner, inner),
        st.builds("(NOT {})".format, inner),
        st.builds("(CASE WHEN {} THEN {} ELSE {} END)".format, inner, inner, inner),
        st.builds("(CASE WHEN {} THEN {} END)".format, inner, inner),
    ),
    max_leaves=8,
)
SMALL = st.none() | st.integers(-1, 2)


@settings(max_examples=examples(200), deadline=None)
@given(LOGIC, SMALL, SMALL, SMALL)
def test_three_valued_logic_is_that_of_an_sql_database(
    text: str, i0: int | None, i1: int | None, i2: int | None
) -> None:
    names = ("i0", "i1", "i2")
    schema = schema_of(definition.Field(name=name, type=definition.FIELD_TYPE_INT64, nullable=True) for name in names)
    database = sqlite3.connect(":memory:")
    try:
        sql = f"SELECT {text} FROM (SELECT ? AS i0, ? AS i1, ? AS i2)"
        (wanted,) = database.execute(sql, (i0, i1, i2)).fetchone()
    finally:
        database.close()
    answer = compile_expression(text, schema).evaluate_row({"i0": i0, "i1": i1, "i2": i2})
    assert answer == (None if wanted is None else bool(wanted))


@pytest.mark.parametrize(
    ("text", "row", "wanted"),
    [
        ("i0 / i1", {"i0": 7, "i1": 2}, 3.5),
        ("i0 DIV i1", {"i0": -7, "i1": 2}, -3),
        ("i0 % i1", {"i0": -7, "i1": 2}, -1),
        ("i0 / 0", {"i0": 7}, None),
        ("i0 DIV 0", {"i0": 7}, None),
        ("i0 % 0", {"i0": 7}, None),
        ("f0 % 0", {"f0": 7.0}, None),
        ("i0 + 1", {"i0": 2**63 - 1}, None),
        ("i0 * 2", {"i0": 2**62}, None),
        ("-i0", {"i0": -(2**63)}, None),
        ("-i0", {"i0": 2**63 - 1}, -(2**63) + 1),
        ("i0 + 1", {"i0": 2**63 - 2}, 2**63 - 1),
        ("i0 - 1", {"i0": -(2**63) + 1}, -(2**63)),
        ("i0 - 1", {"i0": -(2**63)}, None),
        ("ROUND(i0)", {"i0": 4}, 4.0),
        ("ABS(i0)", {"i0": -(2**63)}, None),
        ("i0 DIV -1", {"i0": -(2**63)}, None),
        ("f0 * f0", {"f0": 1e200}, None),
        ("i0 * i1", {"i0": -(2**63), "i1": -1}, None),
        ("i0 * i1", {"i0": -1, "i1": -(2**63)}, None),
        ("i0 * i1", {"i0": -(2**62), "i1": 2}, -(2**63)),
        ("i0 % i1", {"i0": -(2**63), "i1": -1}, 0),
        ("CASE WHEN f1 < 1 THEN 1 ELSE 2 END", {"f1": None}, 2),
        ("f1 < 1 OR b0", {"f1": None, "b0": False}, None),
        ("f1 < 1 OR b0", {"f1": None, "b0": True}, True),
        ("NOT f1 < 1 AND b0", {"f1": None, "b0": True}, None),
        ("NOT f1 < 1 AND b0", {"f1": None, "b0": False}, False),
        ("0 / i0 IS NULL", {"i0": 0}, True),
        ("LEAST(f0, f1)", {"f0": 0.0, "f1": -0.0}, 0.0),
        ("LEAST(f0, f1)", {"f0": -0.0, "f1": 0.0}, -0.0),
        ("GREATEST(f0, f1)", {"f0": 0.0, "f1": -0.0}, 0.0),
        ("GREATEST(f0, f1)", {"f0": -0.0, "f1": 0.0}, -0.0),
        ("ROUND(f0)", {"f0": 2.5}, 2.0),
        ("ROUND(f0)", {"f0": -0.2}, -0.0),
        ("f0 > 15", {"f0": float("nan")}, None),
        ("CAST(f0 AS BIGINT)", {"f0": -2.9}, -2),
        ("CAST(f0 AS BIGINT)", {"f0": 1e19}, None),
        ("hour(t0)", {"t0": -1}, 23),
        ("dow(t0)", {"t0": 0}, 4),
        ("month(t0)", {"t0": 1_362_096_000_000_000}, 3),
        ("CONCAT(s0, s1)", {"s0": "a", "s1": None}, None),
        ("LEAST(i0, i1)", {"i0": 1, "i1": None}, None),
        ("s0 < s1", {"s0": "Z", "s1": "a"}, True),
    ],
)
def test_the_documented_edges(text: str, row: dict[str, Any], wanted: Any) -> None:
    expression = compile_expression(text, SCHEMA)
    assert repr(expression.evaluate_row(row)) == repr(wanted)
    full = {name: row.get(name) for name in TYPED}
    assert repr(by_columns(expression, [full])[0]) == repr(wanted)


def test_months_of_every_day_are_the_calendars_in_years_that_it_has_and_repeat_after_400_years_in_others() -> None:
    day_us = 86_400_000_000
    days = np.arange(*(date(year, 1, 1).toordinal() - date(1970, 1, 1).toordinal() for year in (1_800, 2_201)))
    wanted = [date.fromordinal(int(day) + date(1970, 1, 1).toordinal()).month for day in days]
    expression = compile_expression("month(t0)", SCHEMA)
    for cycles in (0, 100, -100):
        # The last microsecond of each day.
        instants = (days + cycles * 146_097) * day_us + day_us - 1
        columns = {"t0": Column(instants, np.zeros(len(days), np.bool_))}
        assert expression.evaluate(columns, len(days)).values.tolist() == wanted
        assert [expression.evaluate_row({"t0": instant}) for instant in instants.tolist()] == wanted
