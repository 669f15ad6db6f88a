"""An answer by column says what one by row says, also of views whose rows were merged together."""

from typing import cast

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_feature.answers import SCALARS, answer
from tidemill_features.columns import column_of
from tidemill_features.fold import Events, ViewShards
from tidemill_features.plan import ViewPlan, compile_view
from tidemill_features.reader import Lookup, Reader, Result

NOON_US = 1_370_347_200_000_000
MINUTE_US = 60_000_000
STRING, FLOAT, INT, BOOL = (
    definition.FIELD_TYPE_STRING,
    definition.FIELD_TYPE_FLOAT64,
    definition.FIELD_TYPE_INT64,
    definition.FIELD_TYPE_BOOL,
)
FIELDS = {"payer": STRING, "shop": STRING, "what": STRING, "amount": FLOAT, "refund": BOOL}
STREAM = definition.Stream(
    name="paid",
    fields=[definition.Field(name=name, type=kind, nullable=True) for name, kind in FIELDS.items()],
    key_field="payer",
    partitions=1,
)
WANTED = [
    ("count", definition.AGGREGATION_FUNCTION_COUNT, "", INT),
    ("mean", definition.AGGREGATION_FUNCTION_MEAN, "amount", FLOAT),
    ("what", definition.AGGREGATION_FUNCTION_LAST, "what", STRING),
    ("refund", definition.AGGREGATION_FUNCTION_LAST, "refund", BOOL),
]
VALUES = ("float64_values", "int64_values", "bool_values", "string_values")


def plan(entity: str) -> ViewPlan:
    features = [
        definition.Aggregation(
            name=f"{entity}_{name}", function=function, window_ms=3_600_000, expression=expression, type=kind
        )
        for name, function, expression, kind in WANTED
    ]
    return compile_view(definition.View(name=entity, stream="paid", entity=[entity], features=features), STREAM)


def result(as_of_us: int) -> Result:
    """Read two views of one shape, of entities with and without events, and of a null key."""
    given: dict[str, list[str | float | bool | None]] = {
        "payer": ["ann", "bob", "ann", "eve"],
        "shop": ["a", "b", "b", "a"],
        "what": ["tea", None, "ale", "gin"],
        "amount": [1.5, None, 2.5, 4.0],
        "refund": [True, None, False, True],
    }
    minutes = np.array([50, 40, 30, -10])
    columns = {name: column_of(values, FIELDS[name]) for name, values in given.items()}
    events = Events(np.zeros(4, np.int64), np.arange(4), NOON_US - minutes * MINUTE_US, columns)
    plans, rings = [plan("payer"), plan("shop")], dict[bytes, bytes]()
    for one in plans:
        shards = ViewShards(one, "default", 100)
        rows = shards.find(events)
        shards.fold(events, shards.load(rows, [None] * len(rows.keys), lambda _: bytes(16)))
        rings |= dict(shards.dirty({0: 4}))
    reader = Reader(plans)
    request = reader.request(
        [
            Lookup("payer", [("ann",), ("nobody",), ("bob",), ("eve",)]),
            Lookup("shop", [("b",), ("a",), ("none",)]),
            # So many that lengths take two bytes.
            Lookup("shop", [("a",), (None,), ("a",)] * 6),
        ]
    )
    return reader.values(request, [rings.get(key) for key in request.keys], as_of_us)


def by_row(view: messages.ViewColumns) -> messages.ViewValues:
    """Return a view by column as it is by row."""
    rows = [messages.FeatureRow() for _ in range(view.rows)]
    for column in view.features:
        (values,) = [list(getattr(column, name)) for name in VALUES if getattr(column, name)]
        for number, row in enumerate(rows):
            null = bool(column.nulls and column.nulls[number])
            row.values.add(
                value=messages.Scalar() if null else messages.Scalar(**{SCALARS[column.type][0]: values[number]}),
                status=cast("messages.Status.ValueType", column.statuses[number]),
                event_time_us=column.event_times_us[number],
                head_excluded=bool(view.head_excluded and view.head_excluded[number]),
                hop_accuracy=bool(column.hop_accuracy and column.hop_accuracy[number]),
            )
    names = [column.feature for column in view.features]
    return messages.ViewValues(view=view.view, features=names, rows=rows, view_hash=view.view_hash)


@pytest.mark.parametrize(
    ("minutes", "status"),
    [(0, messages.STATUS_PRESENT), (15, messages.STATUS_NULL), (120, messages.STATUS_OUTSIDE_MAX_AGE)],
)
def test_columns_say_what_rows_say(minutes: int, status: "messages.Status.ValueType") -> None:
    found = result(NOON_US + minutes * MINUTE_US)
    assert found.views[0].whole is found.views[1].whole, "two were merged together"
    for feature in found.views[0].whole:
        feature.coarse = np.arange(len(feature.status)) % 2 == 1
    rows = answer(found, NOON_US, columnar=False)
    columns = answer(found, NOON_US, columnar=True)
    assert [by_row(view) for view in columns.columns] == list(rows.views)
    assert list(columns.positions) == list(rows.positions)
    assert columns.as_of_us == rows.as_of_us == NOON_US
    seen = {value.status for view in rows.views for row in view.rows for value in row.values}
    assert {status, messages.STATUS_NOT_FOUND} <= seen
