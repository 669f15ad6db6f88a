"""A stream of payments, views of it in hops and exact, and what brute force says of what was sent."""

from dataclasses import dataclass, field
from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.plan import EDGE_EVENTS, compile_view

from tidemill_testkit.brute_force import Answer, Logged, Wanted, brute_force, counted

SECOND = 1_000_000
# 2013-06-04T12:00:00Z
NOON_US = 1_370_347_200_000_000
PARTITIONS = 2
STATUSES = {1: "PRESENT", 2: "NULL", 3: "NOT_FOUND", 4: "OUTSIDE_MAX_AGE", 5: "BEYOND_KEPT"}
FUNCTIONS = {1: "count", 2: "sum", 3: "mean", 4: "min", 5: "max", 6: "last"}
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64

PAID = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payment", type=_STRING),
        definition.Field(name="payer", type=_STRING, nullable=True),
        definition.Field(name="amount", type=_FLOAT, nullable=True),
        definition.Field(name="items", type=_INT),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payment",
    time_field="at",
    partitions=PARTITIONS,
    lateness_ms=20_000,
    late_policy=definition.LATE_POLICY_DROP,
    dedup_window_ms=60_000,
    max_future_ms=600_000,
    max_event_bytes=4_096,
)


def aggregation(name: str, function: Any, window_s: int, expression: str = "", kind: Any = _INT) -> Any:
    return definition.Aggregation(
        name=name, function=function, window_ms=window_s * 1000, expression=expression, type=kind
    )


PAYER = definition.View(
    name="payer",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_HOP,
    features=[
        aggregation("payments_60s", definition.AGGREGATION_FUNCTION_COUNT, 60),
        aggregation("items_60s", definition.AGGREGATION_FUNCTION_SUM, 60, "items"),
        aggregation("mean_600s", definition.AGGREGATION_FUNCTION_MEAN, 600, "amount", _FLOAT),
        aggregation("most_600s", definition.AGGREGATION_FUNCTION_MAX, 600, "amount", _FLOAT),
        aggregation("last_600s", definition.AGGREGATION_FUNCTION_LAST, 600, "payment", _STRING),
    ],
)
SHARP = definition.View(
    name="sharp",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_EXACT,
    features=PAYER.features,
    budget_bytes=1_000_000,
)
# Without strings, so that the number of events alone decides which slots overflow: in half a minute, most do.
NARROW = definition.View(
    name="narrow",
    stream="paid",
    entity=["payer"],
    accuracy=definition.ACCURACY_EXACT,
    features=[PAYER.features[0], PAYER.features[2]],
    edge_events=2,
)
BUSY = definition.View(
    name="busy",
    stream="paid",
    entity=["items"],
    accuracy=definition.ACCURACY_HOP,
    features=[aggregation("n_600s", definition.AGGREGATION_FUNCTION_COUNT, 600)],
)


def wanted(view: definition.View) -> list[Wanted]:
    """Return a view's features as brute force takes them."""
    plan = compile_view(view, PAID)
    found = []
    for part, feature in zip(view.features, plan.features, strict=True):
        ring, name = plan.rings[feature.ring], part.expression
        value = (lambda fields, name=name: fields[name]) if name else None
        function, window_us = FUNCTIONS[part.function], feature.window_us
        edge_events = (view.edge_events or EDGE_EVENTS) if ring.raw else 0
        ring_of = (window_us, ring.hop_us, ring.slots)
        found.append(Wanted(part.name, function, *ring_of, value, edge_events=edge_events, ahead_us=ring.ahead_us))
    return found


@dataclass
class Log:
    """What was sent, as the brute force sees it."""

    records: list[Logged] = field(default_factory=list)

    def features(self, view: definition.View, key: Any, as_of_us: int) -> list[tuple[str, Any]]:
        """Return (status, value) of each feature by brute force."""
        return [(answer.status, answer.value) for answer in self.answers(view, key, as_of_us)]

    def answers(self, view: definition.View, key: Any, as_of_us: int) -> list[Answer]:
        """Return each feature by brute force."""
        kept = counted(self.records, PAID.dedup_window_ms * 1000, PAID.lateness_ms * 1000, late_counts=False)
        mine = [record for record in kept if record.fields[view.entity[0]] == key]
        max_age_us = compile_view(view, PAID).max_age_us
        return [brute_force(one, mine, as_of_us, max_age_us) for one in wanted(view)]
