"""A read of a time before what the rings hold says so; the offline twin says the same."""

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import column_of
from tidemill_features.finalise import BEYOND_KEPT, NOT_FOUND, PRESENT, FeatureValues
from tidemill_features.fold import Events, ViewShards
from tidemill_features.offline import Rows, features_at
from tidemill_features.plan import ViewPlan, compile_view
from tidemill_features.reader import Lookup, Reader

MINUTE_US = 60_000_000
HOP_US = 5 * MINUTE_US
NOON_US = 1_370_347_200_000_000
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
STREAM = definition.Stream(
    name="paid",
    fields=[definition.Field(name=name, type=_STRING) for name in ("payer", "what")]
    + [definition.Field(name="amount", type=_FLOAT)],
    key_field="payer",
    partitions=2,
)


def plan(accuracy: "definition.Accuracy.ValueType") -> ViewPlan:
    """Return a view whose windows of one and of two hours share a ring."""
    declared = [
        ("count_2h", definition.AGGREGATION_FUNCTION_COUNT, 120, "", _INT),
        ("rate_2h", definition.AGGREGATION_FUNCTION_RATE, 120, "", _FLOAT),
        ("sum_2h", definition.AGGREGATION_FUNCTION_SUM, 120, "amount", _FLOAT),
        ("what_2h", definition.AGGREGATION_FUNCTION_LAST, 120, "what", _STRING),
        ("count_1h", definition.AGGREGATION_FUNCTION_COUNT, 60, "", _INT),
    ]
    features = [
        definition.Aggregation(
            name=name, function=function, window_ms=minutes * 60_000, expression=expression, type=kind
        )
        for name, function, minutes, expression, kind in declared
    ]
    view = definition.View(name="payer", stream="paid", entity=["payer"], features=features, accuracy=accuracy)
    return compile_view(view, STREAM)


def events(newest_us: int) -> Events:
    """Return ann's payments of three hours before noon, and her newest one, which another partition has."""
    count = 37
    event_us = NOON_US - (count - 1 - np.arange(count)) * HOP_US
    return Events(
        np.array([0] * count + [1]),
        np.array([*range(count), 0]),
        np.array([*event_us, newest_us]),
        {
            "payer": column_of(["ann"] * (count + 1), _STRING),
            "what": column_of(["tea"] * (count + 1), _STRING),
            "amount": column_of([1.5] * (count + 1), _FLOAT),
        },
    )


def online(view: ViewPlan, folded: Events, as_of_us: int) -> list[FeatureValues]:
    shards = ViewShards(view, "default", 100)
    rows = shards.find(folded)
    shards.fold(folded, shards.load(rows, [None] * len(rows.keys), lambda _: bytes(16)))
    stored = dict(shards.dirty({0: 37, 1: 1}))
    reader = Reader([view])
    request = reader.request([Lookup("payer", [("ann",), ("bob",)])])
    return reader.values(request, [stored.get(key) for key in request.keys], as_of_us).views[0].features


def offline(view: ViewPlan, folded: Events, as_of_us: int) -> list[FeatureValues]:
    rows = Rows([column_of(["ann", "bob"], _STRING)], np.full(2, as_of_us), np.full((2, 2), 99))
    return features_at(view, folded, rows).features


@pytest.mark.parametrize("accuracy", [definition.ACCURACY_HOP, definition.ACCURACY_EXACT])
@pytest.mark.parametrize(
    ("newest_us", "beyond"),
    [
        (NOON_US + 2 * HOP_US - 1, []),
        (NOON_US + 2 * HOP_US, ["count_2h", "rate_2h", "sum_2h", "what_2h"]),
        (NOON_US + 14 * HOP_US - 1, ["count_2h", "rate_2h", "sum_2h", "what_2h"]),
        (NOON_US + 14 * HOP_US, ["count_2h", "rate_2h", "sum_2h", "what_2h", "count_1h"]),
        (NOON_US + 1_000 * HOP_US, ["count_2h", "rate_2h", "sum_2h", "what_2h", "count_1h"]),
    ],
)
def test_a_window_that_begins_before_what_is_kept_has_no_value(
    accuracy: "definition.Accuracy.ValueType", newest_us: int, beyond: list[str]
) -> None:
    view, folded = plan(accuracy), events(newest_us)
    found = online(view, folded, NOON_US)
    assert [feature.name for feature in found if feature.status[0] == BEYOND_KEPT] == beyond
    for feature in found:
        # Bob is nobody, in the past too.
        assert feature.status[1] == NOT_FOUND
        if feature.name in beyond:
            assert feature.nulls[0]
            assert feature.values[0] is None if feature.type == _STRING else np.isnan(feature.numbers()[0])
            assert feature.event_us[0] == 0
        else:
            assert feature.status[0] == PRESENT
    if not beyond:
        assert found[0].values[0] >= 24
    for one, other in zip(found, offline(view, folded, NOON_US), strict=True):
        for name in ("status", "event_us", "nulls", "values"):
            here, there = getattr(one, name), getattr(other, name)
            assert here.tolist() == there.tolist() if here.dtype == object else here.tobytes() == there.tobytes()
