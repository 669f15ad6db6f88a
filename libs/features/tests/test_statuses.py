"""What each aggregate says of whom it knows, of whom it knew once, and of nobody."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.finalise import FeatureValues
from tidemill_testkit.brute_force import Logged
from tidemill_testkit.ring_world import STATUSES, RingWorld

MINUTE_US = 60_000_000
_TYPES = {
    "who": definition.FIELD_TYPE_STRING,
    "note": definition.FIELD_TYPE_STRING,
    "units": definition.FIELD_TYPE_INT64,
    "amount": definition.FIELD_TYPE_FLOAT64,
    "paid": definition.FIELD_TYPE_BOOL,
    "at": definition.FIELD_TYPE_TIMESTAMP,
}
STREAM = definition.Stream(
    name="paid",
    fields=[definition.Field(name=name, type=kind) for name, kind in _TYPES.items()],
    key_field="who",
    time_field="at",
    partitions=1,
)
_FLOAT, _INT, _BOOL, _STRING = (_TYPES[name] for name in ("amount", "units", "paid", "note"))
# Function, expression, type, and the value of one event of 2.5 and 4 units, paid, ten minutes ago.
DECLARED: list[tuple[str, str, Any, Any]] = [
    ("COUNT", "", _INT, 1),
    ("RATE", "", _FLOAT, 1 / 3600),
    ("APPROX_DISTINCT", "note", _INT, 1),
    ("SUM", "amount", _FLOAT, 2.5),
    ("MEAN", "units", _FLOAT, 4.0),
    ("MIN", "units", _INT, 4),
    ("MAX", "paid", _BOOL, True),
    ("FIRST", "units", _INT, 4),
    ("LAST", "paid", _BOOL, True),
    ("LAST", "note", _STRING, "tea"),
    ("TIME_SINCE_LAST", "", _FLOAT, 600.0),
    ("QUANTILE", "amount", _FLOAT, pytest.approx(2.5, rel=0.01)),
]
COUNTING = 3
VIEW = definition.View(
    name="payer",
    stream="paid",
    entity=["who"],
    max_age_ms=24 * 3_600_000,
    budget_bytes=1_000_000,
    features=[
        definition.Aggregation(
            name=f"f{number}",
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
            expression=expression,
            window_ms=3_600_000,
            type=kind,
            quantile=0.5,
        )
        for number, (function, expression, kind, _) in enumerate(DECLARED)
    ],
)
WORLD = RingWorld(VIEW, STREAM, [("ann",), ("bob",)], [])
LOG = [Logged(0, 0, 0, "0", {"who": "ann", "note": "tea", "units": 4, "amount": 2.5, "paid": True})]


def told(as_of_us: int, world: RingWorld = WORLD) -> list[FeatureValues]:
    """Return what is said of ann and bob, having seen that the offline twin says the same."""
    live, offline = world.read(world.live(LOG), as_of_us), world.offline(LOG, as_of_us, [1])
    for one, other in zip(live, offline, strict=True):
        for name in ("values", "status", "event_us", "nulls"):
            assert repr(getattr(one, name)) == repr(getattr(other, name)), one.name
    return live


@pytest.mark.parametrize(
    ("as_of_us", "counting", "others"),
    [
        (10 * MINUTE_US, "PRESENT", "PRESENT"),
        (90 * MINUTE_US, "PRESENT", "NULL"),
        (25 * 60 * MINUTE_US, "OUTSIDE_MAX_AGE", "OUTSIDE_MAX_AGE"),
    ],
)
def test_every_aggregate_says_what_is_known(as_of_us: int, counting: str, others: str) -> None:
    for place, (found, (_, _, kind, wanted)) in enumerate(zip(told(as_of_us), DECLARED, strict=True)):
        statuses = [STATUSES[int(status)] for status in found.status]
        assert statuses == [counting if place < COUNTING else others, "NOT_FOUND"]
        present, counts = others == "PRESENT", place < COUNTING
        # Of nothing counts are 0; of nobody there is no value at all.
        assert found.nulls.tolist() == [not (present or counts), True]
        if present:
            assert found.values[0] == wanted
        elif counts:
            assert found.values[0] == 0
        assert found.event_us.tolist() == [0, 0]
        assert (found.values.dtype == np.bool_) == (kind == _BOOL)


def test_an_age_shorter_than_a_window_withholds_what_the_window_holds() -> None:
    strict = definition.View()
    strict.CopyFrom(VIEW)
    strict.max_age_ms = 5 * 60_000
    for place, found in enumerate(told(10 * MINUTE_US, replace(WORLD, view=strict))):
        assert [STATUSES[int(status)] for status in found.status] == ["OUTSIDE_MAX_AGE", "NOT_FOUND"]
        assert found.nulls.tolist() == [place >= COUNTING, True]
        assert place >= COUNTING or found.values[0] == 0


def test_numbers_are_nan_where_there_is_none_and_strings_are_none() -> None:
    for found, (_, _, kind, wanted) in zip(told(10 * MINUTE_US), DECLARED, strict=True):
        if kind == _STRING:
            with pytest.raises(TypeError, match=f"feature '{found.name}' is a string"):
                found.numbers()
            continue
        numbers = found.numbers()
        assert numbers.dtype == np.float64
        assert numbers[0] == wanted
        assert np.isnan(numbers[1])
