"""Every aggregate through Kafka, the service's process and Redis, killed on the way, is what brute force says."""

import itertools
import random
import signal
from typing import Any

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_features.plan import compile_view
from tidemill_testkit.agreement import agree
from tidemill_testkit.brute_force import Answer, brute_force, counted
from tidemill_testkit.ring_agreement import wanted_of

pytestmark = pytest.mark.servers

SECOND = 1_000_000
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
DECLARED: list[tuple[str, str, Any, dict[str, Any]]] = [
    ("COUNT", "", _INT, {}),
    ("RATE", "", _FLOAT, {}),
    ("TIME_SINCE_LAST", "", _FLOAT, {}),
    ("SUM", "items", _INT, {}),
    ("MEAN", "amount", _FLOAT, {}),
    ("MIN", "amount", _FLOAT, {}),
    ("MAX", "items", _INT, {}),
    ("FIRST", "payment", _STRING, {}),
    ("LAST", "amount", _FLOAT, {}),
    ("LAST_K", "payment", _STRING, {"k": 3}),
    ("LAST_K", "amount", _FLOAT, {"k": 2}),
    ("VARIANCE", "amount", _FLOAT, {}),
    ("STD", "items", _FLOAT, {}),
    ("SKEW", "items", _FLOAT, {}),
    ("HISTOGRAM", "amount", _INT, {"edges": [10.0, 50.0]}),
    ("DECAYED_SUM", "amount", _FLOAT, {"half_life_ms": 20_000}),
    ("EWMA", "amount", _FLOAT, {"half_life_ms": 20_000}),
    ("APPROX_DISTINCT", "payment", _INT, {}),
    ("QUANTILE", "amount", _FLOAT, {"quantile": 0.9}),
    ("TOP_K", "items", _INT, {"k": 2}),
]
EVERYTHING = definition.View(
    name="everything",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_HOP,
    features=[
        definition.Aggregation(
            name=f"f{number}",
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
            expression=expression,
            window_ms=60_000,
            type=kind,
            **options,
        )
        for number, (function, expression, kind, options) in enumerate(DECLARED)
    ],
)


EXACTLY = definition.View(
    name="exactly",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_EXACT,
    features=EVERYTHING.features,
    budget_bytes=1_000_000,
)


def payments(seed: int, count: int, at_us: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "id": f"{seed}-{number}",
            "partition": chance.randrange(2),
            "at_us": at_us + number * SECOND - chance.randrange(5) * SECOND,
            "fields": {
                "payment": f"{seed}-{number % 9}",
                "payer": chance.choice(["ann", "bob"]),
                "amount": None if chance.random() < 0.2 else round(chance.uniform(0, 99), 2),
                "items": chance.randrange(1, 6),
            },
        }
        for number in range(count)
    ]


async def test_every_aggregate_is_what_brute_force_says_also_after_kill_9(world: Any) -> None:
    await world.register(EVERYTHING, EXACTLY)
    feature = await world.start()
    await world.pay(payments(1, 60, world.noon_us))
    await feature.reached(await world.ends())
    await feature.stop(signal.SIGKILL)
    await world.pay(payments(2, 40, world.noon_us + 60 * SECOND))
    feature = await world.start()
    await feature.reached(await world.ends())
    stream = world.stream
    kept = counted(world.log.records, stream.dedup_window_ms * 1000, stream.lateness_ms * 1000, late_counts=False)
    moments = [world.noon_us + after_us for after_us in (70 * SECOND + 1, 105 * SECOND, 105_500_000, 3_600 * SECOND)]
    for view, as_of_us in itertools.product((EVERYTHING, EXACTLY), moments):
        wanted, max_age_us = wanted_of(view, stream), compile_view(view, stream).max_age_us
        rows = await feature.get(view.name, ["ann", "bob", "nobody"], as_of_us)
        for who, row in zip(["ann", "bob", "nobody"], rows, strict=True):
            mine = [record for record in kept if record.fields["payer"] == who]
            for one, pair in zip(wanted, row, strict=True):
                want = brute_force(one, mine, as_of_us, max_age_us)
                assert agree(one, Answer(*pair), want), (one.name, one.function, who, pair, want)
    key, as_of_us = messages.EntityKey(values=[messages.Scalar(string_value="ann")]), moments[2]
    asked = messages.ExplainFeaturesRequest(view="exactly", key=key, as_of_us=as_of_us)
    edges = (await feature.features.ExplainFeatures(asked, timeout=60)).features[0].slots
    cut = [event for slot in edges for event in slot.events]
    assert {event.counts for event in cut} == {True, False}
    assert all(event.counts == (as_of_us - 60 * SECOND < event.event_time_us <= as_of_us) for event in cut)
    asked = messages.ExplainFeaturesRequest(view="everything", key=key, as_of_us=as_of_us)
    explained = await feature.features.ExplainFeatures(asked, timeout=60)
    assert [one.feature for one in explained.features] == [one.name for one in wanted]
    assert all(one.slots for one in explained.features)
    sketched = [one for one in explained.features if one.function in ("approx_distinct", "quantile", "top_k")]
    assert all(any(partial.bytes for slot in one.slots for partial in slot.partials) for one in sketched)
