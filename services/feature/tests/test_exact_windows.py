"""An exact window's answer: what says that it could not be cut, and which events its explanation shows."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_feature.answers import answer
from tidemill_feature.explaining import explain
from tidemill_features.reader import Lookup, Reader
from tidemill_testkit.brute_force import Logged, Wanted
from tidemill_testkit.ring_world import PROJECT, RingWorld

SECOND = 1_000_000
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="who", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="amount", type=definition.FIELD_TYPE_FLOAT64),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="who",
    time_field="at",
    partitions=1,
    lateness_ms=60_000,
    dedup_window_ms=60_000,
)
# Bucket 0 holds three events of ann, of bob one; buckets are five seconds.
AMOUNTS = {0: ("ann", 1.0), 1: ("ann", 2.0), 2: ("bob", 8.0), 3: ("ann", 4.0), 30: ("ann", 16.0), 31: ("bob", 32.0)}
LOG = [
    Logged(0, offset, offset * SECOND, f"{offset}", {"who": who, "amount": amount})
    for offset, (who, amount) in AMOUNTS.items()
]
# The window is a minute: what came at the first second has just fallen out of it.
AS_OF_US = 61 * SECOND


def world(edge_events: int) -> RingWorld:
    view = definition.View(
        name="payer",
        stream="paid",
        entity=["who"],
        accuracy=definition.ACCURACY_EXACT,
        edge_events=edge_events,
        features=[
            definition.Aggregation(
                name="total",
                function=definition.AGGREGATION_FUNCTION_SUM,
                expression="amount",
                window_ms=60_000,
                type=definition.FIELD_TYPE_FLOAT64,
            )
        ],
    )
    wanted = Wanted("total", "sum", 60 * SECOND, 5 * SECOND, 14, itemgetter("amount"), edge_events=edge_events)
    return RingWorld(view, STREAM, [("ann",), ("bob",)], [wanted])


def read(lived: RingWorld, keys: Any, as_of_us: int, log: Sequence[Logged] = LOG) -> tuple[Any, list[bytes | None]]:
    """Return the result of a read, and the bytes that it was made from."""
    store = lived.live(log)
    reader = Reader([lived.plan], project=PROJECT)
    request = reader.request([Lookup("payer", keys)])
    raws = [store.get(key) for key in request.keys]
    return reader.values(request, raws, as_of_us), raws


@pytest.mark.parametrize(
    ("edge_events", "totals", "coarse"),
    [(3, [4.0 + 16.0, 8.0 + 32.0], [False, False]), (2, [23.0, 40.0], [True, False])],
)
def test_a_value_that_could_not_be_cut_says_so_by_row_and_by_column(
    edge_events: int, totals: list[float], coarse: list[bool]
) -> None:
    result, _ = read(world(edge_events), [("ann",), ("bob",)], AS_OF_US)
    by_row = answer(result, AS_OF_US, columnar=False).views[0].rows
    (by_column,) = answer(result, AS_OF_US, columnar=True).columns
    assert [row.values[0].value.float64_value for row in by_row] == totals
    assert list(by_column.features[0].float64_values) == totals
    assert [row.values[0].hop_accuracy for row in by_row] == coarse
    assert by_column.features[0].hop_accuracy == (bytes(coarse) if any(coarse) else b"")
    assert not by_column.head_excluded


def test_a_read_in_the_past_cuts_the_head_and_leaves_out_one_that_cannot_be_cut() -> None:
    for edge_events, total, excluded in ((3, 1.0 + 2.0, False), (2, 0.0, True)):
        result, _ = read(world(edge_events), [("ann",)], 2 * SECOND, LOG[:4])
        value = answer(result, 2 * SECOND, columnar=False).views[0].rows[0].values[0]
        assert (value.value.float64_value, value.head_excluded, value.hop_accuracy) == (total, excluded, excluded)


def explained(edge_events: int) -> messages.FeatureExplanation:
    lived = world(edge_events)
    result, raws = read(lived, [("ann",)], AS_OF_US)
    return explain(lived.plan, result, raws, AS_OF_US).features[0]


def test_an_explanation_shows_which_events_made_the_tail() -> None:
    found = explained(3)
    assert (found.from_us, found.to_us) == (SECOND + 1, AS_OF_US + 1)
    tail, inner = found.slots
    assert [(one.offset, one.event_time_us, one.counts) for one in tail.events] == [
        (0, 0, False),
        (1, SECOND, False),
        (3, 3 * SECOND, True),
    ]
    assert [one.partials[1].value.float64_value for one in found.slots] == [4.0, 16.0]
    assert not inner.events
    assert sum(one.partials[1].value.float64_value for one in found.slots) == found.value.value.float64_value


def test_an_explanation_says_of_a_slot_that_it_kept_no_events() -> None:
    tail = explained(2).slots[0]
    assert (tail.hop_accuracy, tail.head_excluded, list(tail.events)) == (True, False, [])
    assert tail.partials[1].value.float64_value == 7.0
