"""Clocks differ: an event that a producer dates a little ahead takes nothing away from reads of now."""

from typing import Any

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_testkit.brute_force import Answer, Logged
from tidemill_testkit.ring_world import RingWorld, answers

SECOND = 1_000_000
NOON = 1_370_347_200 * SECOND
AHEAD_S = 60
_TYPES = {
    "who": definition.FIELD_TYPE_STRING,
    "amount": definition.FIELD_TYPE_FLOAT64,
    "at": definition.FIELD_TYPE_TIMESTAMP,
}
STREAM = definition.Stream(
    name="paid",
    fields=[definition.Field(name=name, type=kind) for name, kind in _TYPES.items()],
    key_field="who",
    time_field="at",
    partitions=2,
    max_future_ms=AHEAD_S * 1000,
)


def world(accuracy: Any, **options: Any) -> RingWorld:
    """Return a view whose windows of 30 days move in hops of days."""
    declared = [("COUNT", "", definition.FIELD_TYPE_INT64), ("TIME_SINCE_LAST", "", definition.FIELD_TYPE_FLOAT64)]
    view = definition.View(
        name="payer",
        stream="paid",
        entity=["who"],
        accuracy=accuracy,
        budget_bytes=10_000_000,
        features=[
            definition.Aggregation(
                name=function.lower(),
                function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
                expression=expression,
                window_ms=30 * 86_400_000,
                type=kind,
            )
            for function, expression, kind in declared
        ],
        **options,
    )
    return RingWorld(view, STREAM, [("ann",)], [])


def payments(newest_s: int) -> list[Logged]:
    """Return ann's nine payments of this morning, and one that is dated `newest_s` after noon."""
    times = [NOON - (9 - number) * 600 * SECOND for number in range(9)] + [NOON + newest_s * SECOND]
    return [Logged(0, offset, at, f"{offset}", {"who": "ann", "amount": 1.0}) for offset, at in enumerate(times)]


def read(lived: RingWorld, log: list[Logged], as_of_us: int) -> tuple[list[Answer], bool]:
    """Return what is said of ann, and whether the last bucket was left out; the offline twin says the same."""
    live, offline = lived.read_view(lived.live(log), as_of_us), lived.offline_view(log, as_of_us, [len(log), 0])
    found = answers(live.features)[0], bool(live.head_excluded[0])
    assert found == (answers(offline.features)[0], bool(offline.head_excluded[0]))
    return found


@pytest.mark.parametrize(
    ("newest_s", "count", "idle_s", "excluded"),
    [
        (0, 10, 0.0, False),
        (40, 10, 0.0, False),
        (AHEAD_S, 10, 0.0, False),
        # No producer may date an event so far ahead: this is a read of the past.
        (AHEAD_S + 1, None, None, True),
        # What lies in another bucket takes nothing away from this one.
        (86_400, 9, 600.0, False),
    ],
)
def test_an_event_from_a_clock_that_goes_ahead_counts_as_one_of_now(
    newest_s: int, count: int | None, idle_s: float | None, excluded: bool
) -> None:
    found, left_out = read(world(definition.ACCURACY_HOP), payments(newest_s), NOON)
    assert left_out == excluded
    assert [answer.value for answer in found] == [count or 0, idle_s]


@pytest.mark.parametrize(("newest_s", "count"), [(40, 9), (AHEAD_S + 1, 9)])
def test_an_exact_window_ends_at_its_instant_whatever_clocks_say(newest_s: int, count: int) -> None:
    found, left_out = read(world(definition.ACCURACY_EXACT), payments(newest_s), NOON)
    assert (found[0].value, found[0].coarse, left_out) == (count, False, False)


@pytest.mark.parametrize(("newest_s", "count", "excluded"), [(40, 10, False), (AHEAD_S + 1, 0, True)])
def test_an_exact_window_that_cannot_be_cut_counts_what_a_clock_has_put_ahead(
    newest_s: int, count: int, excluded: bool
) -> None:
    found, left_out = read(world(definition.ACCURACY_EXACT, edge_events=2), payments(newest_s), NOON)
    assert (found[0].value, found[0].coarse, left_out) == (count, True, excluded)
