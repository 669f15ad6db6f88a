"""Events without what their stream requires by now, as a change that was allowed to break leaves in the offline log."""

from collections.abc import Sequence

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import column_of
from tidemill_features.finalise import NOT_FOUND, PRESENT, FeatureValues
from tidemill_features.fold import Events, ViewShards
from tidemill_features.offline import Rows, features_at
from tidemill_features.plan import ViewPlan, compile_view
from tidemill_features.reader import Lookup, Reader

SECOND = 1_000_000
TEXT, FLOAT, INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
FUNCTIONS = {"COUNT": INT, "MEAN": FLOAT, "MIN": FLOAT, "VARIANCE": FLOAT}


def plan(*, nullable: bool) -> ViewPlan:
    stream = definition.Stream(
        name="paid",
        key_field="who",
        partitions=1,
        fields=[
            definition.Field(name="who", type=TEXT),
            definition.Field(name="amount", type=FLOAT, nullable=nullable),
        ],
    )
    features = [
        definition.Aggregation(
            name=function.lower(),
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
            expression="" if function == "COUNT" else "amount",
            window_ms=60_000,
            type=kind,
        )
        for function, kind in FUNCTIONS.items()
    ]
    return compile_view(definition.View(name="payer", stream="paid", entity=["who"], features=features), stream)


def events(who: Sequence[str], amount: Sequence[float | None]) -> Events:
    places = np.arange(len(who))
    columns = {"who": column_of(who, TEXT), "amount": column_of(amount, FLOAT)}
    return Events(places * 0, places, places * SECOND, columns)


def offline(view: ViewPlan, log: Events) -> list[FeatureValues]:
    rows = Rows([column_of(["ann", "bob"], TEXT)], np.full(2, 9 * SECOND), np.full((2, 1), 99))
    return features_at(view, log, rows).features


def online(view: ViewPlan, log: Events) -> list[FeatureValues]:
    shards = ViewShards(view, "default", 10)
    found = shards.find(log)
    shards.fold(log, shards.load(found, [None] * len(found.keys), lambda _: bytes(16)))
    stored = dict(shards.dirty({0: len(log)}))
    assert shards.counts.folded + shards.counts.null_keys == len(log)
    reader = Reader([view])
    request = reader.request([Lookup("payer", [("ann",), ("bob",)])])
    return reader.values(request, [stored.get(key) for key in request.keys], 9 * SECOND).views[0].features


def test_an_event_without_what_is_required_now_is_passed_over_as_where_it_is_read_from_kafka() -> None:
    log = events(["ann", "ann", "bob", "ann"], [6.0, None, None, 8.0])
    for features in (offline(plan(nullable=False), log), online(plan(nullable=False), log)):
        assert [feature.values[0] for feature in features] == [2, 7.0, 6.0, 2.0]
        assert {int(feature.status[1]) for feature in features} == {NOT_FOUND}


def test_where_null_is_allowed_such_an_event_counts() -> None:
    log = events(["ann", "ann", "bob", "ann"], [6.0, None, None, 8.0])
    for features in (offline(plan(nullable=True), log), online(plan(nullable=True), log)):
        assert [feature.values[0] for feature in features] == [3, 7.0, 6.0, 2.0]
        assert int(features[0].status[1]) == PRESENT
