"""Batches that touch many slots, some of them often, give what one event at a time gives, live and offline."""

import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.fold import ViewShards
from tidemill_features.moments import Moments, merged, skew, variance, with_value
from tidemill_features.newest import Newest
from tidemill_features.sequential import Step, states
from tidemill_testkit.brute_force import Logged
from tidemill_testkit.ring_world import RingWorld, answers

SECOND = 1_000_000
TYPES = {
    "who": definition.FIELD_TYPE_STRING,
    "at": definition.FIELD_TYPE_TIMESTAMP,
    "amount": definition.FIELD_TYPE_FLOAT64,
    "label": definition.FIELD_TYPE_STRING,
}
STREAM = definition.Stream(
    name="paid",
    fields=[definition.Field(name=n, type=t, nullable=n in ("amount", "label")) for n, t in TYPES.items()],
    key_field="who",
    time_field="at",
    partitions=2,
    lateness_ms=600_000,
    late_policy=definition.LATE_POLICY_DROP,
)
DECLARED: list[tuple[str, str, dict[str, Any]]] = [
    ("SUM", "amount", {}),
    ("FIRST", "label", {}),
    ("LAST", "amount", {}),
    ("LAST_K", "amount", {"k": 4}),
    ("LAST_K", "label", {"k": 2}),
    ("STD", "amount", {}),
    ("SKEW", "amount", {"where": "amount > 0"}),
    ("EWMA", "amount", {"half_life_ms": 9_000}),
    ("APPROX_DISTINCT", "amount", {}),
    ("QUANTILE", "amount", {"quantile": 0.75}),
    ("TOP_K", "label", {"k": 1}),
]
VIEW = definition.View(
    name="v",
    stream="paid",
    entity=["who"],
    accuracy=definition.ACCURACY_HOP,
    budget_bytes=1_000_000,
    features=[
        definition.Aggregation(
            name=f"f{number}",
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
            expression=expression,
            window_ms=60_000,
            type=TYPES[expression] if function != "APPROX_DISTINCT" else definition.FIELD_TYPE_INT64,
            **options,
        )
        for number, (function, expression, options) in enumerate(DECLARED)
    ],
)
KEYS = [(f"user-{number}",) for number in range(40)]
WORLD = RingWorld(VIEW, STREAM, KEYS, [], capacity=200)


def log(seed: int, records: int = 3_000) -> list[Logged]:
    """Return records of many entities, of which the first has a third; labels are many more than counters."""
    chance = random.Random(seed)
    found = []
    for number in range(records):
        who = KEYS[0] if chance.random() < 0.3 else chance.choice(KEYS)
        fields = {
            "who": who[0],
            "amount": None if chance.random() < 0.1 else chance.choice([chance.gauss(0, 1e3), 0.1, 1e9]),
            "label": None if chance.random() < 0.1 else f"shop-{int(chance.expovariate(0.02))}",
        }
        event_us = number * SECOND // 40 - int(chance.expovariate(0.5) * SECOND)
        found.append(Logged(chance.randrange(2), number, event_us, f"{number}", fields))
    return found


def bits(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


@pytest.mark.parametrize("seed", [1, 2])
def test_one_large_batch_small_batches_and_the_offline_twin_agree_bit_for_bit(seed: int) -> None:
    records = log(seed)
    stores = [WORLD.live(records, sizes) for sizes in ([3_000], [700, 31, 400], [97])]
    for as_of_us in (66 * SECOND, 71 * SECOND + 7, 80 * SECOND):
        cut = (3_000, 3_000)
        wanted = [[bits(a.value) for a in row] for row in answers(WORLD.offline(records, as_of_us, cut))]
        assert any(value is not None for row in wanted for value in row)
        for store in stores:
            assert [[bits(a.value) for a in row] for row in answers(WORLD.read(store, as_of_us))] == wanted


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=40), seed=st.integers(0, 99), kind=st.integers(0, 2))
def test_rounds_over_many_slots_are_one_event_at_a_time(lengths: list[int], seed: int, kind: int) -> None:
    chance = np.random.default_rng(seed)
    end = np.cumsum(np.array(lengths, np.int64))
    start, slots, events = end - np.array(lengths, np.int64), len(lengths), int(end[-1])
    if kind == 2:
        step: Step = Newest(3)
        initial: list[Any] = [np.sort(chance.integers(-9, 9, (slots, 3)))[:, ::-1], np.full((slots, 3), -1)]
        values: list[Any] = [chance.integers(-9, 9, events), np.arange(events)]
    else:
        step = Moments()
        initial = [np.full(slots, 4.0), *(chance.normal(0, 1e5, slots) for _ in range(2 + kind))]
        values = [chance.normal(0, 1e5, events)]
    found = states(start, end, initial, values, step)
    for number, (first, last) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
        one = step.run([part[number] for part in initial], [part[first:last] for part in values])
        for whole, alone in zip(found, one, strict=True):
            assert whole[first:last].tobytes() == np.ascontiguousarray(alone).tobytes()


def left_out(*batches: list[int]) -> tuple[int, int]:
    """Fold events of these seconds, batch by batch, and return how many were too late, and how many overtaken."""
    shards = ViewShards(WORLD.plan, "p", 10)
    (ring,) = WORLD.plan.rings
    assert (ring.hop_us, ring.slots) == (5 * SECOND, 14)
    offset = 0
    for seconds in batches:
        fields = {"who": "user-0", "amount": 1.0, "label": None}
        records = [Logged(0, offset + n, at * SECOND, f"{offset + n}", fields) for n, at in enumerate(seconds)]
        offset += len(records)
        events = WORLD.events(records)
        found = shards.find(events)
        shards.fold(events, shards.load(found, [None] * len(found.keys), lambda _: bytes(16)))
    return shards.counts.too_late, shards.counts.overtaken


@pytest.mark.parametrize(
    ("batches", "too_late", "overtaken"),
    [
        # A bucket and the one that takes its slot, fourteen hops later.
        ([[0], [70]], 0, 0),
        ([[0, 70]], 0, 1),
        ([[0], [1, 70]], 0, 1),
        ([[70], [0]], 1, 0),
        ([[70], [0, 140]], 1, 0),
        ([[70], [75, 140, 0]], 1, 0),
    ],
)
def test_what_gave_way_within_its_batch_is_not_called_late(
    batches: list[list[int]], too_late: int, overtaken: int
) -> None:
    assert left_out(*batches) == (too_late, overtaken)


@pytest.mark.parametrize("seed", range(5))
def test_of_events_at_one_instant_the_later_is_the_newer_in_both_forms(seed: int) -> None:
    chance = random.Random(seed)
    events = [(chance.randrange(4), number) for number in range(12)]
    step = Newest(3)
    least = np.iinfo(np.int64).min
    blank = [np.full((1, 3), least), np.zeros((1, 3), np.int64)]
    one_by_one = blank
    for key, payload in events:
        one_by_one = list(step.many(one_by_one, [np.array([key]), np.array([payload])]))
    keys, payloads = (np.array(column) for column in zip(*events, strict=True))
    at_once = step.run([part[0] for part in blank], [keys, payloads])
    newest = sorted(events, reverse=True)[:3]
    assert list(zip(*(part[0].tolist() for part in one_by_one), strict=True)) == newest
    assert list(zip(*(part[-1].tolist() for part in at_once), strict=True)) == newest


def test_moments_without_values_change_nothing_however_large_the_others_are() -> None:
    large = (np.array([2.0]), np.array([1e200]), np.array([1e10]), np.array([-1e3]))
    nothing = tuple(np.zeros(1) for _ in large)
    for one, other in ((large, nothing), (nothing, large)):
        assert [part.tolist() for part in merged(one, other)] == [part.tolist() for part in large]


def test_one_value_has_no_variance_and_equal_ones_no_skew() -> None:
    blank: tuple[Any, ...] = (0.0, 0.0, 0.0, 0.0)
    one = equal = with_value(blank, 3.0)
    for _ in range(3):
        equal = with_value(equal, 3.0)
    assert np.isnan(variance(one))
    assert variance(equal) == 0.0
    assert np.isnan(skew(one))
    assert np.isnan(skew(equal))
