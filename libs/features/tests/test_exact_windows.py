"""Exact windows by example: what lies at their edges, what their memory is, and what happens where there is no room."""

from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features import offline_edges
from tidemill_features.columns import column_of
from tidemill_features.finalise import HEAD_EXCLUDED_BIT, HOP_ACCURACY_BIT, PRESENT, STATUS_BITS
from tidemill_features.inputs import Values
from tidemill_features.layout import LayoutError, empty_shard, to_words
from tidemill_features.offline import Rows, features_at
from tidemill_features.partials import Dtype, RawPlan
from tidemill_features.plan import EDGE_EVENTS, PlanError, compile_view
from tidemill_features.raw_events import appended, decode, encode, overflowed
from tidemill_features.vector import compile_vector
from tidemill_testkit.brute_force import Logged, Wanted
from tidemill_testkit.ring_world import RingWorld, answers

SECOND = 1_000_000
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="who", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="units", type=definition.FIELD_TYPE_INT64),
        definition.Field(name="note", type=definition.FIELD_TYPE_STRING, nullable=True),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="who",
    time_field="at",
    partitions=1,
    lateness_ms=600_000,
    dedup_window_ms=600_000,
)
TYPES = {
    "COUNT": definition.FIELD_TYPE_INT64,
    "SUM": definition.FIELD_TYPE_INT64,
    "LAST": definition.FIELD_TYPE_STRING,
    "FIRST": definition.FIELD_TYPE_STRING,
    "TIME_SINCE_LAST": definition.FIELD_TYPE_FLOAT64,
}


def view(*features: tuple[str, str], window_ms: int = 60_000, **options: Any) -> definition.View:
    return definition.View(
        name="payer",
        stream="paid",
        entity=["who"],
        accuracy=definition.ACCURACY_EXACT,
        features=[
            definition.Aggregation(
                name=function.lower(),
                function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
                expression=expression,
                window_ms=window_ms,
                type=TYPES[function],
            )
            for function, expression in features
        ],
        **options,
    )


def world(declared: definition.View) -> RingWorld:
    plan = compile_view(declared, STREAM)
    wanted = [
        Wanted(
            part.name,
            part.name,
            part.window_ms * 1000 or declared.max_age_ms * 1000,
            plan.rings[0].hop_us,
            plan.rings[0].slots,
            itemgetter(part.expression) if part.expression else None,
            exact_age=not part.window_ms,
            edge_events=declared.edge_events or EDGE_EVENTS,
        )
        for part in declared.features
    ]
    return RingWorld(declared, STREAM, [("ann",)], wanted)


def events(*times_us: int, note: str | None = None) -> list[Logged]:
    return [
        Logged(0, offset, at_us, f"{offset}", {"who": "ann", "units": 1 << offset, "note": note or f"n{offset}"})
        for offset, at_us in enumerate(times_us)
    ]


def read(lived: RingWorld, log: list[Logged], as_of_us: int) -> list[Any]:
    """Return the values of ann, having seen that the offline twin has the same."""
    live = answers(lived.read(lived.live(log, [2]), as_of_us))[0]
    assert answers(lived.offline(log, as_of_us, [len(log)]))[0] == live
    return [answer.value for answer in live]


@pytest.mark.parametrize(
    ("as_of_us", "units"),
    [
        # It counts at the very microsecond at which it happens, and no longer when a window has passed.
        (9_999_999, 0),
        (10_000_000, 0b001),
        (10_000_001, 0b001),
        # Two at one instant come and go together; one in the same millisecond does so by itself.
        (10_000_399, 0b001),
        (10_000_400, 0b111),
        (69_999_999, 0b111),
        (70_000_000, 0b110),
        (70_000_399, 0b110),
        (70_000_400, 0),
    ],
)
def test_an_event_counts_from_its_instant_until_a_window_later(as_of_us: int, units: int) -> None:
    log = events(10_000_000, 10_000_400, 10_000_400)
    assert read(world(view(("COUNT", ""), ("SUM", "units"))), log, as_of_us) == [units.bit_count(), units or None]


def test_a_read_of_the_past_leaves_out_nothing_but_what_came_after() -> None:
    lived, times = world(view(("SUM", "units"))), (10_000_000, 11_000_000, 12_000_000)
    # What comes after is so near that no bucket of the window has given way.
    assert read(lived, events(*times, 19_000_000), 11_000_000) == [0b0011]
    assert read(lived, events(*times, 74_000_000), 70_500_000) == [0b0110]


def test_an_event_that_comes_late_corrects_the_window_that_it_was_in() -> None:
    lived, log = world(view(("SUM", "units"))), events(10_000_000, 40_000_000, 10_000_001)
    assert read(lived, log[:2], 70_000_000) == [0b010]
    assert read(lived, log, 70_000_000) == [0b110]
    assert read(lived, log, 70_000_001) == [0b010]


def test_a_last_without_a_window_is_held_to_its_age_and_to_nothing_else() -> None:
    declared = view(("LAST", "note"), ("COUNT", ""), window_ms=0, max_age_ms=60_000)
    # Of the very same buckets, but with an edge.
    declared.features[1].window_ms = 60_000
    lived, log = world(declared), events(10_000_000, 11_000_000)
    assert read(lived, log, 10_000_000) == ["n0", 1]
    assert read(lived, log, 71_000_000) == ["n1", 0]
    assert read(lived, log, 71_000_001) == [None, 0]
    declared.edge_events = 1
    lived = world(declared)
    assert [one.coarse for one in answers(lived.read(lived.live(log), 70_500_000))[0]] == [False, True]
    assert read(lived, log, 70_500_000) == ["n1", 2]


def test_a_ring_that_keeps_nothing_but_times_is_cut_too() -> None:
    lived, log = world(view(("TIME_SINCE_LAST", ""))), events(10_000_000, 11_000_000)
    assert [read(lived, log, at_us) for at_us in (10_500_000, 70_500_000, 71_000_000)] == [[0.5], [59.5], [None]]


def test_strings_of_several_expressions_are_told_apart() -> None:
    lived, log = world(view(("FIRST", "note"), ("LAST", "who"))), events(10_000_000, 11_000_000, 12_000_000)
    assert read(lived, log, 70_500_000) == ["n1", "ann"]
    assert read(lived, log, 11_500_000) == ["n0", "ann"]


def test_strings_take_room_by_their_bytes() -> None:
    """Live and offline agree on what overflows, however long a string is."""
    declared = view(("LAST", "note"), ("COUNT", ""), edge_events=2)
    for note, coarse in (("x" * 32, False), ("x" * 33, True), ("é" * 16, False), ("é" * 17, True)):
        lived, log = world(declared), events(10_000_000, 11_000_000, note=note)
        live = answers(lived.read(lived.live(log), 70_500_000))[0]
        assert answers(lived.offline(log, 70_500_000, [2]))[0] == live
        assert [answer.coarse for answer in live] == [coarse, coarse]
        assert [answer.value for answer in live] == [note, 2 if coarse else 1]


def test_a_bucket_of_which_nothing_is_left_needs_no_room() -> None:
    lived = world(view(("COUNT", ""), edge_events=1))
    log = events(10_000_000, 11_000_000, 40_000_000)
    (cut,) = answers(lived.read(lived.live(log), 71_000_000))[0]
    assert (cut.value, cut.coarse) == (1, False)
    (whole,) = answers(lived.read(lived.live(log), 70_999_999))[0]
    assert (whole.value, whole.coarse) == (3, True)


def test_a_bucket_that_ends_at_the_very_instant_of_the_read_is_whole_though_it_kept_no_events() -> None:
    lived, log = world(view(("COUNT", ""), edge_events=1)), events(10_000_000, 11_000_000)
    assert read(lived, log, 11_000_000) == [2]
    # A microsecond before, the bucket cannot be cut: it is left out.
    assert read(lived, log, 10_999_999) == [0]


def test_edges_of_many_rows_are_cut_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    users = [f"user-{number}" for number in range(7)]
    lived = replace(world(view(("SUM", "units"))), keys=[(user,) for user in users])
    log = [
        Logged(0, offset, 10_000_000 + offset, f"{offset}", {"who": user, "units": offset, "note": "n"})
        for offset, user in enumerate(users * 3)
    ]
    whole = answers(lived.offline(log, 70_000_010, [len(log)]))
    monkeypatch.setattr(offline_edges, "_EVENTS", 4)
    assert (
        answers(lived.offline(log, 70_000_010, [len(log)])) == whole == answers(lived.read(lived.live(log), 70_000_010))
    )


def test_the_memory_of_raw_events_is_part_of_what_is_computed_and_refused() -> None:
    exact = compile_view(view(("SUM", "units")), STREAM)
    hop = view(("SUM", "units"))
    hop.accuracy = definition.ACCURACY_HOP
    slots = exact.rings[0].slots
    # A word that points, and of each event its time, offset, bits and units.
    assert exact.bytes_per_key == compile_view(hop, STREAM).bytes_per_key + slots * 8
    assert exact.max_bytes_per_key == exact.bytes_per_key + slots * (8 + EDGE_EVENTS * 4 * 8)
    compile_view(view(("SUM", "units"), budget_bytes=exact.max_bytes_per_key), STREAM)
    with pytest.raises(PlanError, match=f"needs up to {exact.max_bytes_per_key:,} bytes .* fewer raw events"):
        compile_view(view(("SUM", "units"), budget_bytes=exact.max_bytes_per_key - 1), STREAM)
    for wrong in (-1, 10_001):
        with pytest.raises(PlanError, match="edge_events is 1 to 10,000"):
            compile_view(view(("SUM", "units"), edge_events=wrong), STREAM)


def test_shards_of_other_accuracy_are_refused_and_never_misread() -> None:
    hop = view(("SUM", "units"))
    hop.accuracy = definition.ACCURACY_HOP
    one, other = (compile_view(declared, STREAM).rings[0] for declared in (hop, view(("SUM", "units"))))
    for ring, stored in ((one, other), (other, one)):
        with pytest.raises(LayoutError):
            to_words([empty_shard(stored, bytes(16), 0).tobytes()], ring, empty_shard(ring, bytes(16), 0).tobytes())


RAW = RawPlan(word=0, inputs=(1, 3), column_of=(0, 1), columns=((1, Dtype.FLOAT), (3, Dtype.STRING)), room_bytes=140)
# Three events: a count and their size; time, offset, bits, amount and length of each; the strings.
STORED = bytes.fromhex(
    """
    0300000000000000
    0a0000000000000007000000000000000300000000000000 000000000000f83f0200000000000000
    0b0000000000000008000000000000000100000000000000000000000000d0bf0000000000000000
    0b000000000000000900000000000000020000000000000000000000000000000300000000000000
    c3a9 61620a
    """
)


def test_raw_events_are_stored_as_described_and_taken_up_again() -> None:
    """A golden: another byte here is another format."""
    none = Values(None, None)
    amounts = Values(np.array([1.5, -0.25, 0.0]), np.array([True, True, False]))
    evaluated = [none, amounts, none, Values(np.array(["é", "", "ab\n"], object), np.array([True, False, True]))]
    encoded = encode(RAW, np.array([10, 11, 11]), np.array([7, 8, 9]), evaluated)
    assert encoded.texts is not None
    kept = None
    for row, text in zip(encoded.rows, encoded.texts, strict=True):
        kept = appended(RAW, kept, row[None], text)
    assert kept == STORED == appended(RAW, None, encoded.rows, b"".join(encoded.texts))
    found = decode(RAW, [(STORED, np.array([True, False, True])), (STORED, np.array([False, True, False]))])
    assert (found.slot.tolist(), found.event_us.tolist(), found.offsets.tolist()) == (
        [0, 0, 1],
        [10, 11, 11],
        [7, 9, 8],
    )
    assert found.inputs[1].values.tolist() == [1.5, 0.0, -0.25]
    assert found.inputs[3].values.tolist() == ["é", "ab\n", ""]
    assert [part.present.tolist() for part in (found.inputs[1], found.inputs[3]) if part.present is not None] == [
        [True, False, True],
        [True, True, False],
    ]
    full = appended(RAW, kept, encoded.rows[:1], b"")
    assert overflowed(full)
    assert overflowed(appended(RAW, full, encoded.rows[:1], b""))


def test_a_row_of_a_training_set_says_what_a_prediction_says() -> None:
    declared = view(("COUNT", ""), edge_events=1)
    request = definition.Stream(name="asked", fields=[definition.Field(name="who", type=definition.FIELD_TYPE_STRING)])
    source = definition.FeatureSource(name="payer", view=definition.ViewLookup(view="payer", on=["who"]))
    vector = compile_vector(
        definition.Pipeline(name="p", request="asked", features=[source]),
        {"payer": declared},
        {"paid": STREAM, "asked": request},
    )
    lived, log = world(declared), events(10_000_000, 11_000_000, 19_000_000)
    for as_of_us, flags in (
        (10_500_000, HEAD_EXCLUDED_BIT | HOP_ACCURACY_BIT),
        (70_500_000, HOP_ACCURACY_BIT),
        (79_000_000, 0),
    ):
        rows = Rows([column_of(["ann"], TYPES["LAST"])], np.array([as_of_us]), np.array([[len(log)]]))
        status = int(vector.rows([features_at(lived.plan, lived.events(log), rows)], {}, 1).status[0, 0])
        assert (status & STATUS_BITS, status & ~STATUS_BITS) == (PRESENT, flags)
