"""A stream of payments, two views and a pipeline of it, and their rings as the online role would have left them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import Checkpoint, build_id, checkpoint_key
from tidemill_features.plan import ViewPlan

# 2013-06-04T12:00:00Z
NOON_US, MINUTE_US = 1_370_347_200_000_000, 60_000_000
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
_TIME, _BOOL = definition.FIELD_TYPE_TIMESTAMP, definition.FIELD_TYPE_BOOL
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=_STRING, nullable=True),
        definition.Field(name="amount", type=_FLOAT, nullable=True),
        definition.Field(name="items", type=_INT),
        definition.Field(name="card", type=_STRING),
        definition.Field(name="gift", type=_BOOL),
        definition.Field(name="at", type=_TIME),
    ],
    key_field="card",
    time_field="at",
    partitions=2,
    max_event_bytes=65_536,
)


def _aggregation(name: str, function: str, expression: str = "", kind: Any = _INT) -> definition.Aggregation:
    number = definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}")
    return definition.Aggregation(name=name, function=number, window_ms=3_600_000, expression=expression, type=kind)


PAYER = definition.View(
    name="payer",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_HOP,
    features=[
        _aggregation("payments", "COUNT"),
        _aggregation("items", "SUM", "items"),
        _aggregation("mean", "MEAN", "amount", _FLOAT),
        _aggregation("most", "MAX", "amount", _FLOAT),
        _aggregation("card", "LAST", "card", _STRING),
        _aggregation("gift", "LAST", "gift", _BOOL),
        _aggregation("latest", "MAX", "at", _TIME),
        _aggregation("cards", "APPROX_DISTINCT", "card"),
    ],
)
BASKET = definition.View(
    name="basket",
    stream="paid",
    entity=["items", "at", "gift"],
    accuracy=definition.ACCURACY_HOP,
    features=[_aggregation("payments", "COUNT")],
)
PIPELINE = definition.Pipeline(
    name="fraud",
    request="paid",
    features=[
        definition.FeatureSource(name="who", view=definition.ViewLookup(view="payer", on=["card"])),
        definition.FeatureSource(name="large", expression="amount > 100"),
    ],
)


def definition_record() -> definition.DefinitionRecord:
    """Return the pipeline as `registry.pipelines.v1` carries it."""
    closure = definition.Definition(streams=[STREAM], views=[PAYER, BASKET], pipelines=[PIPELINE])
    return definition.DefinitionRecord(kind="pipeline", name=PIPELINE.name, revision=1, definition=closure)


def rings(plans: Iterable[ViewPlan], project: str) -> dict[bytes, bytes]:
    """Return what Redis holds: ten payments of ann, one old payment of bob.

    Ann's are one a minute before noon, of 1 to 10, the last unknown.
    """
    at = np.array([NOON_US - (10 - n) * MINUTE_US for n in range(10)] + [NOON_US - 180 * MINUTE_US], np.int64)
    rows = len(at)
    nulls = np.zeros(rows, np.bool_)
    unknown = nulls.copy()
    unknown[9] = True
    columns = {
        "payer": Column(np.array(["ann"] * 10 + ["bob"], object), nulls),
        "amount": Column(np.arange(1.0, rows + 1), unknown),
        "items": Column(np.full(rows, 2), nulls),
        "card": Column(np.array([f"c{n}" for n in range(rows)], object), nulls),
        "gift": Column(np.arange(rows) % 2 == 1, nulls),
        "at": Column(at, nulls),
    }
    events = Events(np.arange(rows) % 2, np.arange(rows) // 2, at, columns)
    ends = {0: 6, 1: 5}
    stored: dict[bytes, bytes] = {}
    plans = list(plans)
    for plan in plans:
        shards = ViewShards(plan, project, 1_000)
        found = shards.find(events)
        shards.fold(events, shards.load(found, [None] * len(found.keys), lambda _: bytes(16)))
        stored |= dict(shards.dirty(ends))
    ids = frozenset(build_id(plan.hash) for plan in plans)
    for partition, end in ends.items():
        key = checkpoint_key(project, "feature-online", "events.paid", partition)
        stored[key] = Checkpoint(bytes(16), end, 0, NOON_US, ids).pack()
    return stored
