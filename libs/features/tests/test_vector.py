"""A pipeline's vector: what its expressions make of the request and of what was looked up, by plain Python."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import ExpressionError
from tidemill_features.finalise import (
    BEYOND_KEPT,
    HEAD_EXCLUDED_BIT,
    HOP_ACCURACY_BIT,
    NOT_FOUND,
    NULL,
    OUTSIDE_MAX_AGE,
    PRESENT,
    STATUS_BITS,
    FeatureValues,
)
from tidemill_features.offline import OfflineValues
from tidemill_features.plan import PlanError
from tidemill_features.vector import PipelineVector, compile_vector
from tidemill_testkit.effort import examples

_BOOL, _INT, _FLOAT = definition.FIELD_TYPE_BOOL, definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64
_STRING, _TIME = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_TIMESTAMP

PAID = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=_STRING),
        definition.Field(name="payee", type=_STRING),
        definition.Field(name="card", type=_STRING, nullable=True),
        definition.Field(name="amount", type=_FLOAT, nullable=True),
        definition.Field(name="items", type=_INT),
        definition.Field(name="gift", type=_BOOL),
        definition.Field(name="at", type=_TIME),
    ],
    key_field="payer",
    time_field="at",
    partitions=1,
)


def aggregation(name: str, function: str, expression: str, kind: Any) -> definition.Aggregation:
    number = definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}")
    return definition.Aggregation(name=name, function=number, window_ms=3_600_000, expression=expression, type=kind)


FEATURES = {
    "payments": aggregation("payments", "COUNT", "", _INT),
    "items": aggregation("items", "SUM", "items", _INT),
    "mean": aggregation("mean", "MEAN", "amount", _FLOAT),
    "card": aggregation("card", "LAST", "card", _STRING),
    "gift": aggregation("gift", "LAST", "gift", _BOOL),
}
PAYER = definition.View(
    name="payer", stream="paid", entity=["payer"], accuracy=definition.ACCURACY_HOP, features=FEATURES.values()
)
NOTHING: dict[int, Any] = {_INT: 0, _FLOAT: math.nan, _STRING: None, _BOOL: False}
DTYPES: dict[int, Any] = {_INT: np.int64, _FLOAT: np.float64, _STRING: np.object_, _BOOL: np.bool_}
Row = dict[str, Any]


def divided(first: Any, second: Any) -> Any:
    if first is None or second is None or second == 0:
        return None
    found = first / second
    return found if math.isfinite(found) else None


# The expression, and what it means of a request and two look-ups.
DERIVED: dict[str, tuple[str, Callable[[Row], Any]]] = {
    "ratio": ("amount / who.mean", lambda row: divided(row["amount"], row["who.mean"])),
    "apart": (
        "who.mean - whom.mean",
        lambda row: None if None in (row["who.mean"], row["whom.mean"]) else row["who.mean"] - row["whom.mean"],
    ),
    # Beyond 2^53 a float would have lost the last digit.
    "odd": (
        "who.items % 2 = 1",
        lambda row: None if row["who.items"] is None else row["who.items"] > 0 and row["who.items"] % 2 == 1,
    ),
    "known": ("COALESCE(whom.payments, -1) > 0", lambda row: (row["whom.payments"] or -1) > 0),
    "card": (
        "COALESCE(who.card, card, 'none')",
        lambda row: next((c for c in (row["who.card"], row["card"]) if c is not None), "none"),
    ),
    "gifts": (
        "CASE WHEN gift AND who.gift THEN 2 WHEN gift OR whom.gift THEN 1 ELSE 0 END",
        lambda row: 2 if row["gift"] and row["who.gift"] else 1 if row["gift"] or row["whom.gift"] else 0,
    ),
}


def vector(**expressions: str) -> PipelineVector:
    """Expressions stand before, between and behind what they read."""
    texts = [definition.FeatureSource(name=name, expression=text) for name, text in expressions.items()]
    who, whom = (
        definition.FeatureSource(name=name, view=definition.ViewLookup(view="payer", on=[on]))
        for name, on in (("who", "payer"), ("whom", "payee"))
    )
    pipeline = definition.Pipeline(
        name="fraud", request="paid", features=[*texts[:2], who, *texts[2:4], whom, *texts[4:]]
    )
    return compile_vector(pipeline, {"payer": PAYER}, {"paid": PAID})


class Read(NamedTuple):
    """A feature of one row as it was read: None where it has no value."""

    value: Any
    status: int
    event_us: int
    coarse: bool


VALUES = {
    _INT: st.integers(-3, 3) | st.integers(2**53, 2**53 + 3),
    _FLOAT: st.floats(-1e6, 1e6),
    _STRING: st.sampled_from(["visa", "master", ""]),
    _BOOL: st.booleans(),
}
STATUSES = st.sampled_from([PRESENT, PRESENT, NULL, NOT_FOUND, OUTSIDE_MAX_AGE, BEYOND_KEPT])


@st.composite
def reads(draw: st.DrawFn, name: str) -> Read:
    status, kind = draw(STATUSES), FEATURES[name].type
    value = draw(VALUES[kind]) if status == PRESENT else None
    if name == "payments":
        # A count of nothing is 0.
        status = PRESENT if status == NULL else status
        value = draw(st.integers(0, 3)) if status == PRESENT else 0 if status == OUTSIDE_MAX_AGE else None
    return Read(value, status, draw(st.integers(0, 100)), draw(st.booleans()))


LOOKED_UP = st.fixed_dictionaries({name: reads(name) for name in FEATURES})
REQUESTS = st.fixed_dictionaries(
    {
        "amount": st.none() | st.floats(-1e6, 1e6),
        "card": st.none() | st.sampled_from(["visa", "amex"]),
        "gift": st.booleans(),
    }
)
ROWS = st.lists(st.tuples(REQUESTS, LOOKED_UP, LOOKED_UP, st.booleans(), st.booleans()), min_size=1, max_size=5)


def as_read(rows: list[dict[str, Read]], excluded: list[bool]) -> OfflineValues:
    found = []
    for name, one in FEATURES.items():
        column = [row[name] for row in rows]
        values = np.array(
            [NOTHING[one.type] if read.value is None else read.value for read in column], DTYPES[one.type]
        )
        status = np.array([read.status for read in column], np.uint8)
        event_us = np.array([read.event_us for read in column])
        coarse = np.array([read.coarse for read in column])
        found.append(FeatureValues(name, one.type, name == "payments", values, status, event_us, coarse))
    return OfflineValues(found, np.array(excluded))


@settings(max_examples=examples(150), deadline=None)
@given(ROWS)
def test_an_expression_over_what_was_looked_up_is_what_python_makes_of_its_values(rows: list[Any]) -> None:
    made = vector(**{name: text for name, (text, _) in DERIVED.items()})
    requests, who, whom, no_head_of_who, no_head_of_whom = map(list, zip(*rows, strict=True))
    views = [as_read(who, no_head_of_who), as_read(whom, no_head_of_whom)]
    found = made.rows(views, made.columns(requests), len(rows))
    for index, (request, mine, theirs, mine_cut, theirs_cut) in enumerate(rows):
        values = {
            **request,
            **{f"who.{n}": r.value for n, r in mine.items()},
            **{f"whom.{n}": r.value for n, r in theirs.items()},
        }
        for name, (text, brute_force) in DERIVED.items():
            wanted, place = brute_force(values), made.names.index(name)
            if made.category[place]:
                assert found.categories[name][index] == wanted
            else:
                number = float(found.numbers[name][index])
                assert (None if math.isnan(number) else number) == (None if wanted is None else float(wanted)), text
            status = int(found.status[index, place])
            assert status & STATUS_BITS == (NULL if wanted is None else PRESENT)
            read = [mine[n] for n in mine if f"who.{n}" in text] + [theirs[n] for n in theirs if f"whom.{n}" in text]
            cut = (mine_cut and "who." in text) or (theirs_cut and "whom." in text)
            assert bool(status & HEAD_EXCLUDED_BIT) == cut
            assert bool(status & HOP_ACCURACY_BIT) == any(one.coarse for one in read)
            assert found.event_us[index, place] == max(one.event_us for one in read)


def test_only_the_requests_own_fields_are_asked_of_it() -> None:
    made = vector(ratio="amount / who.mean", hour="hour(at)")
    assert made.fields == ("amount", "at")
    assert made.names[:2] == ("ratio", "hour")
    assert [lookup.view for lookup in made.lookups([])] == ["payer", "payer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("amount / them.mean", "no view is looked up as 'them'"),
        ("amount / who.median", "no feature 'median' in 'who'"),
        ("twice + 1", "no field 'twice'"),
    ],
)
def test_an_expression_reads_fields_and_what_is_looked_up_and_no_other_expression(text: str, message: str) -> None:
    with pytest.raises(ExpressionError, match=message):
        vector(twice="amount * 2", other=text)


def test_a_time_that_an_expression_makes_of_a_view_is_no_feature_either() -> None:
    with pytest.raises(PlanError, match="feature 'when' is a timestamp"):
        vector(when="CASE WHEN who.payments > 0 THEN at END")
