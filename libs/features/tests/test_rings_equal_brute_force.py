"""Live rings, the offline twin and brute force agree, for any log, any batches, any crash and any moment."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.cuts import cuts_by_time
from tidemill_features.plan import compile_view
from tidemill_features.reader import Lookup, Place, Reader
from tidemill_testkit.brute_force import Answer, Logged
from tidemill_testkit.effort import examples
from tidemill_testkit.ring_agreement import Lived, assert_all_agree, wanted_of
from tidemill_testkit.ring_world import RingWorld, answers

SECOND = 1_000_000
PARTITIONS = 2
FIELDS = {
    "who": definition.FIELD_TYPE_STRING,
    "zone": definition.FIELD_TYPE_INT64,
    "at": definition.FIELD_TYPE_TIMESTAMP,
    "amount": definition.FIELD_TYPE_FLOAT64,
    "units": definition.FIELD_TYPE_INT64,
    "label": definition.FIELD_TYPE_STRING,
}
FLOATING = {"MEAN", "VARIANCE", "STD", "SKEW", "TIME_SINCE_LAST", "RATE", "DECAYED_SUM", "EWMA", "QUANTILE"}
INTEGERS = {"COUNT", "HISTOGRAM", "APPROX_DISTINCT"}


def stream(policy: Any = definition.LATE_POLICY_DROP, dedup_s: int = 30, lateness_s: int = 20) -> definition.Stream:
    return definition.Stream(
        name="paid",
        fields=[definition.Field(name=n, type=t, nullable=n not in ("at",)) for n, t in FIELDS.items()],
        key_field="who",
        time_field="at",
        partitions=PARTITIONS,
        lateness_ms=lateness_s * 1000,
        late_policy=policy,
        dedup_window_ms=dedup_s * 1000,
        max_future_ms=2_500,
    )


def aggregation(name: str, window_s: int, function: str, expression: str = "", **options: Any) -> Any:
    kind = FIELDS.get(expression, definition.FIELD_TYPE_INT64)
    if function in FLOATING:
        kind = definition.FIELD_TYPE_FLOAT64
    return definition.Aggregation(
        name=name,
        function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
        window_ms=window_s * 1000,
        expression=expression,
        type=definition.FIELD_TYPE_INT64 if function in INTEGERS else kind,
        **options,
    )


def view(name: str, *features: Any) -> definition.View:
    return definition.View(
        name=name,
        stream="paid",
        entity=["who", "zone"],
        max_age_ms=40_000,
        accuracy=definition.ACCURACY_HOP,
        budget_bytes=1_000_000,
        features=features,
    )


BIG = "amount > 1"
VIEWS = {
    "words": view(
        "payer",
        aggregation("n_12", 12, "COUNT"),
        aggregation("n_60_big", 60, "COUNT", where=BIG),
        aggregation("sum_12", 12, "SUM", "amount"),
        aggregation("units_20", 20, "SUM", "units"),
        aggregation("mean_60", 60, "MEAN", "amount"),
        aggregation("min_20", 20, "MIN", "amount"),
        aggregation("max_60", 60, "MAX", "units"),
        aggregation("last_60", 60, "LAST", "amount"),
        aggregation("last_label", 0, "LAST", "label"),
        aggregation("first_12", 12, "FIRST", "amount"),
        aggregation("first_label", 60, "FIRST", "label"),
        aggregation("rate_20", 20, "RATE", where=BIG),
        aggregation("since_60", 60, "TIME_SINCE_LAST"),
        aggregation("since_big", 60, "TIME_SINCE_LAST", where=BIG),
        aggregation("bins", 20, "HISTOGRAM", "amount", edges=[-1.0, 0.15, 2.0]),
        aggregation("unit_bins", 60, "HISTOGRAM", "units", edges=[0.0], where=BIG),
    ),
    "states": view(
        "spread",
        aggregation("var_12", 12, "VARIANCE", "amount"),
        aggregation("std_60", 60, "STD", "units"),
        aggregation("std_big", 60, "STD", "amount", where=BIG),
        aggregation("skew_60", 60, "SKEW", "units"),
        aggregation("skew_20", 20, "SKEW", "amount"),
        aggregation("decayed_60", 60, "DECAYED_SUM", "amount", half_life_ms=10_000),
        aggregation("ewma_60", 60, "EWMA", "units", half_life_ms=7_300),
        aggregation("ewma_20", 20, "EWMA", "amount", half_life_ms=500),
        aggregation("newest", 20, "LAST_K", "amount", k=3),
        aggregation("newest_60", 60, "LAST_K", "units", k=1),
        aggregation("labels", 60, "LAST_K", "label", k=2),
    ),
    "sketches": view(
        "sketched",
        aggregation("labels", 60, "APPROX_DISTINCT", "label"),
        aggregation("amounts", 20, "APPROX_DISTINCT", "amount"),
        aggregation("big_units", 60, "APPROX_DISTINCT", "units", where=BIG),
        aggregation("median", 60, "QUANTILE", "amount", quantile=0.5),
        aggregation("most", 60, "QUANTILE", "amount", quantile=0.9),
        aggregation("least", 12, "QUANTILE", "units", quantile=0.0),
        aggregation("top", 60, "TOP_K", "label", k=2),
        aggregation("top_units", 20, "TOP_K", "units", k=2),
    ),
}


def exactly(declared: definition.View, edge_events: int = 0) -> definition.View:
    """Return a view with exact windows."""
    exact = definition.View()
    exact.CopyFrom(declared)
    exact.accuracy, exact.edge_events = definition.ACCURACY_EXACT, edge_events
    return exact


def of_numbers(declared: definition.View) -> definition.View:
    """Return a view without its features of strings: what it keeps of events then depends on their number alone."""
    kept = definition.View()
    kept.CopyFrom(declared)
    del kept.features[:]
    kept.features.extend(one for one in declared.features if one.expression != "label")
    return kept


VIEWS |= {f"exact {name}": exactly(one) for name, one in VIEWS.items()} | {
    f"overflowing {name}": exactly(of_numbers(one), edge_events=1) for name, one in VIEWS.items()
}


# What the predicate above says of an event.
MEANINGS = {BIG: lambda f: f["amount"] is not None and f["amount"] > 1}


KEYS = [("ann", 1), ("ann", 2), ("bob", 1), ("nobody", 7), (None, 1)]
WORLDS = {name: RingWorld(one, stream(), KEYS, wanted_of(one, stream(), MEANINGS)) for name, one in VIEWS.items()}
# Cubes of magnitudes below 1e-100 lose digits, and a skew with them.
NEAR = st.floats(-9, 9).filter(lambda amount: amount == 0 or abs(amount) > 1e-90)
AMOUNTS = st.one_of(st.none(), st.sampled_from([0.1, 0.2, 0.3, -0.0, 0.0, 1e16, -1e16, 1.5]), NEAR)
# Few moments, so that events share slots and times, and some lie on the edges of buckets.
TIMES = st.one_of(
    st.integers(0, 9).map(lambda s: s * SECOND // 2),
    st.integers(-70, 70).map(lambda s: s * SECOND),
    st.integers(0, 40).map(lambda s: s * SECOND - 1),
)


@st.composite
def logs(draw: Any) -> list[Logged]:
    records = []
    drift = draw(st.integers(0, 2))
    for partition in range(PARTITIONS):
        offset = 0
        for index in range(draw(st.integers(0, 14))):
            offset += draw(st.sampled_from([1, 1, 1, 3]))
            fields = {
                "who": draw(st.sampled_from(["ann", "bob", "ann", None])),
                "zone": draw(st.sampled_from([1, 2, 1])),
                "amount": draw(AMOUNTS),
                "units": draw(st.one_of(st.none(), st.integers(-5, 5))),
                "label": draw(st.sampled_from([None, "", "a", "bé", "long text", "\ud800"])),
            }
            identity = draw(st.sampled_from([f"{partition}-{offset}", "same", "twin"]))
            event_us = draw(TIMES) + index * drift * 4 * SECOND
            records.append(Logged(partition, offset, event_us, identity, fields))
    return records


CRASHES = st.lists(st.sampled_from(["", "before", "between"]), max_size=8)
POLICIES = st.sampled_from([definition.LATE_POLICY_DROP, definition.LATE_POLICY_CORRECT])
MOMENTS = st.lists(TIMES, min_size=1, max_size=3)
SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=4)
Cut = tuple[int, int]
CUTS = st.tuples(st.integers(0, 40), st.integers(0, 40))


@pytest.mark.parametrize("kind", ["words", "states", "sketches"])
@settings(max_examples=examples(70), deadline=None)
@given(log=logs(), policy=POLICIES, sizes=SIZES, crashes=CRASHES, moments=MOMENTS, cut=CUTS)
def test_live_equals_offline_bit_for_bit_and_both_equal_brute_force(
    kind: str, log: list[Logged], policy: Any, sizes: list[int], crashes: list[str], moments: list[int], cut: Cut
) -> None:
    world = replace(WORLDS[kind], stream=stream(policy))
    assert_all_agree(world, log, Lived(sizes, crashes, cut), moments)


@pytest.mark.parametrize("kind", [kind for kind in VIEWS if " " in kind])
@settings(max_examples=examples(25), deadline=None)
@given(seed=st.integers(0, 2**32))
# A worker that died while it remembered identities forgot those that it had not come to.
@example(seed=376)
def test_exact_windows_are_cut_at_the_microsecond_live_and_offline(kind: str, seed: int) -> None:
    # Drawn from a seed, since an edge is met by dense logs only, and few of those that hypothesis draws are dense.
    dice = random.Random(seed)
    log = dense_log(dice)
    policy = dice.choice([definition.LATE_POLICY_DROP, definition.LATE_POLICY_CORRECT])
    crashes = dice.choices(["", "", "before", "between"], k=8)
    lived = Lived(dice.choices(range(1, 7), k=4), crashes, (dice.randrange(8, 40), dice.randrange(8, 40)))
    # Moments at which an event just comes into a window, or just falls out of it.
    shifts_us = [0, 0, 1, -1, SECOND // 2, -3 * SECOND]
    windows_s = [0, 12, 20, 60]
    moments = [dice.choice(log).event_us + dice.choice(windows_s) * SECOND + dice.choice(shifts_us) for _ in range(5)]
    assert_all_agree(replace(WORLDS[kind], stream=stream(policy)), log, lived, moments)


def dense_log(dice: random.Random) -> list[Logged]:
    """Return a log with many events of few entities in few buckets, some late, some twice, some at one instant."""
    drift_us = dice.choice([0, SECOND // 2, 4 * SECOND])
    span = dice.choice([8, 40, 140])
    log = []
    for partition in range(PARTITIONS):
        for offset in range(dice.randrange(5, 25)):
            fields = {
                "who": dice.choice(["ann", "ann", "ann", "bob", None]),
                "zone": dice.choice([1, 1, 1, 2]),
                "amount": dice.choice([None, 0.1, 0.2, 0.3, -0.0, 1e16, -1e16, 1.5, dice.uniform(-9, 9)]),
                "units": dice.choice([None, *range(-5, 6)]),
                "label": dice.choice([None, "", "a", "bé", "long text", "\ud800"]),
            }
            identity = "same" if dice.random() < 0.05 else f"{partition}-{offset}"
            event_us = dice.randrange(span) * SECOND // 2 - dice.choice([0, 0, 1]) + offset * drift_us
            log.append(Logged(partition, offset, event_us, identity, fields))
    return log


@pytest.mark.parametrize("exact", [False, True])
@settings(max_examples=examples(40), deadline=None)
@given(seed=st.integers(0, 2**32))
@example(seed=2)
def test_a_float_sum_beyond_the_range_of_floats_and_its_mean_are_null_live_and_offline(exact: bool, seed: int) -> None:
    declared = view(
        "large",
        aggregation("sum_12", 12, "SUM", "amount"),
        aggregation("sum_60", 60, "SUM", "amount"),
        aggregation("mean_60", 60, "MEAN", "amount"),
        aggregation("max_60", 60, "MAX", "amount"),
        aggregation("units_60", 60, "SUM", "units"),
    )
    declared = exactly(declared) if exact else declared
    world = RingWorld(declared, stream(), KEYS, wanted_of(declared, stream(), MEANINGS))
    dice = random.Random(seed)
    largest = dice.choice([0.0, 1.7e308, 1.7e308])
    log = [
        replace(one, fields={**one.fields, "amount": dice.choice([None, largest, -largest, 1.5, -0.25])})
        for one in dense_log(dice)
    ]
    lived = Lived(dice.choices(range(1, 7), k=4), [], (dice.randrange(8, 40), dice.randrange(8, 40)))
    moments = [dice.choice(log).event_us + dice.choice([0, 12, 60]) * SECOND for _ in range(4)]
    with np.errstate(over="ignore", invalid="ignore"):
        assert_all_agree(world, log, lived, moments)


@pytest.mark.parametrize("exact", [False, True])
@settings(max_examples=examples(40), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_sum_of_integers_beyond_int64_and_its_mean_are_null_live_and_offline(exact: bool, seed: int) -> None:
    declared = view(
        "large",
        aggregation("sum_12", 12, "SUM", "units"),
        aggregation("sum_60", 60, "SUM", "units"),
        aggregation("mean_60", 60, "MEAN", "units"),
        aggregation("min_60", 60, "MIN", "units"),
        aggregation("decayed_60", 60, "DECAYED_SUM", "units", half_life_ms=30_000),
    )
    declared = exactly(declared) if exact else declared
    world = RingWorld(declared, stream(), KEYS, wanted_of(declared, stream(), MEANINGS))
    dice = random.Random(seed)
    largest = dice.choice([2**63 - 1, 2**62, 2**60])
    log = [
        replace(one, fields={**one.fields, "units": dice.choice([None, largest, -largest, 1, -(2**63)])})
        for one in dense_log(dice)
    ]
    lived = Lived(dice.choices(range(1, 7), k=4), [], (dice.randrange(8, 40), dice.randrange(8, 40)))
    assert_all_agree(
        world, log, lived, [dice.choice(log).event_us + dice.choice([0, 12, 60]) * SECOND for _ in range(4)]
    )


@pytest.mark.parametrize("amounts", [(5.0,), (5.0, 7.0, 7.0), (-0.1, 1e-6, 3.0)])
def test_decayed_values_of_the_oldest_events_that_a_window_may_cover_keep_their_digits(
    amounts: tuple[float, ...],
) -> None:
    declared = view(
        "old",
        aggregation("ewma", 940, "EWMA", "amount", half_life_ms=1_000),
        aggregation("decayed", 940, "DECAYED_SUM", "amount", half_life_ms=1_000),
    )
    declared.max_age_ms = 0
    world = RingWorld(declared, stream(), KEYS[:1], wanted_of(declared, stream(), MEANINGS))
    fields = {"who": "ann", "zone": 1, "units": None, "label": None}
    log = [Logged(0, at, at, str(at), {**fields, "amount": amount}) for at, amount in enumerate(amounts)]
    # The window begins in the last second of its oldest bucket; the events lie in the first.
    assert_all_agree(world, log, Lived([2], [], (9, 9)), [940 * SECOND + 59 * SECOND])


@pytest.mark.parametrize("kind", ["words", "states", "exact words", "overflowing words"])
@settings(max_examples=examples(40), deadline=None)
@given(log=logs(), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), crashes=CRASHES)
def test_stored_bytes_do_not_depend_on_batches_or_crashes(
    kind: str, log: list[Logged], sizes: list[int], crashes: list[str]
) -> None:
    def shards(store: dict[bytes, bytes]) -> dict[bytes, bytes]:
        # The offset that a shard includes is the batch's; everything else is the events'.
        return {k: v[:32] + v[40:] for k, v in store.items() if b":checkpoint:" not in k}

    world = WORLDS[kind]
    assert shards(world.live(log, sizes, crashes)) == shards(world.live(log))


@settings(max_examples=examples(50), deadline=None)
@given(log=logs(), moments=MOMENTS)
def test_a_row_without_a_prediction_sees_the_rings_as_they_were_when_its_moment_came(
    log: list[Logged], moments: list[int]
) -> None:
    world = WORLDS["words"]
    for as_of_us in moments:
        ordered = sorted(log, key=lambda r: (r.partition, r.offset))
        place = [np.array([getattr(r, n) for r in ordered], np.int64) for n in ("partition", "offset", "event_us")]
        cuts = cuts_by_time(place[0], place[1], place[2], np.array([as_of_us]), PARTITIONS)[0]
        seen = [r for r in log if r.offset < cuts[r.partition]]
        assert all(r.event_us <= as_of_us for r in seen)
        live = answers(world.read(world.live(seen, [5]), as_of_us))
        for row, want in zip(live, world.expected(seen, as_of_us), strict=True):
            assert _plain(row) == _plain(want)


def _plain(row: Sequence[Answer]) -> list[tuple[str, Any]]:
    return [(answer.status, answer.value) for answer in row]


def test_a_null_key_or_an_unknown_entity_is_not_found() -> None:
    world = WORLDS["words"]
    reader = Reader([compile_view(world.view, world.stream)])
    for keys in ([(None, 1)], [("nobody", 1)], []):
        request = reader.request([Lookup("payer", keys)])
        result = reader.values(request, [None] * len(request.keys), 0)
        assert [f.status.tolist() for f in result.views[0].features] == [[3] * len(keys)] * len(world.wanted)
        assert result.positions == {Place("events.paid", 0): 0, Place("events.paid", 1): 0}
