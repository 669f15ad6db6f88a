"""The pipeline clock and its ticks."""

from hypothesis import given
from hypothesis import strategies as st
from tidemill_monitoring.clock import HOUR_US, EventTimes, spoken, tick_after
from tidemill_runtime.positions import Partition

A, B, OTHER = Partition("events.a", 0), Partition("events.b", 0), Partition("events.other", 0)


def test_the_clock_is_the_least_of_its_partitions_and_stands_still_until_all_have_spoken() -> None:
    times = EventTimes()
    times.observe(A, 100)
    assert times.clock([A, B], 0) is None
    times.observe(B, 40)
    times.observe(OTHER, 5)
    assert times.clock([A, B], 0) == 40


def test_the_clock_waits_for_those_that_have_not_spoken_then_for_those_that_lie_furthest_behind() -> None:
    times = EventTimes(idle_us=50)
    assert times.holding([A, B], 0) == [A, B]
    times.observe(A, 100)
    times.hear(A, 10)
    assert times.holding([A, B], 20) == [B]
    times.observe(B, 40)
    times.hear(B, 20)
    assert times.holding([A, B], 20) == [B]
    times.observe(B, 100)
    assert times.holding([A, B], 20) == [A, B]
    # A silent one is not waited for.
    times.observe(A, 200)
    times.hear(A, 100)
    assert times.holding([A, B], 100) == [A]
    assert times.holding([], 0) == []


def test_a_partition_that_was_added_holds_the_clock_from_its_first_word_on() -> None:
    added = Partition("events.a", 1)
    times = EventTimes()
    times.observe(A, 100)
    # One of a new stream is waited for.
    assert (times.clock([A, added], 0), times.silent([A, added])) == (None, [added])
    assert times.clock([A], 0) == 100
    assert (times.clock([A, added], 0), times.silent([A, added])) == (100, [])
    times.observe(A, 200)
    assert times.clock([A, added], 0) == 200
    times.observe(added, 150)
    assert times.clock([A, added], 0) == 150
    # It is one of those that there were, now.
    later = Partition("events.a", 2)
    times.observe(A, 300)
    assert times.clock([A, added, later], 0) == 150


def test_after_a_start_added_partitions_are_told_from_those_that_were_there() -> None:
    added = Partition("events.a", 1)
    before = {A: 100, B: 90}
    assert EventTimes(before).clock([A, B, added], 0) is None
    times = EventTimes(before, whole=spoken(before, ["events.a", "events.b", "events.new"]))
    assert times.clock([A, B, added], 0) == 90
    assert times.clock([A, B, Partition("events.new", 0)], 0) is None
    # What lies unread in it was sent before the clock went on without it.
    times.hold({added: 4})
    assert times.clock([A, B, added], 0) is None
    times.observe(added, 50)
    times.read(added, 4)
    assert times.clock([A, B, added], 0) == 50


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 10**12))))
def test_the_clock_never_goes_back(records: list[tuple[Partition, int]]) -> None:
    times, last = EventTimes(), -1
    for partition, at in records:
        times.observe(partition, at)
        clock = times.clock([A, B], 0)
        if clock is not None:
            assert clock >= last
            last = clock


def test_a_silent_partition_lets_go_of_the_clock_only_where_a_timeout_is_set() -> None:
    for idle_us, expected in ((0, 10), (1_000, 500)):
        times = EventTimes({A: 10, B: 10}, idle_us=idle_us, now_us=0)
        times.observe(A, 500)
        times.hear(A, 5_000)
        assert times.clock([A, B], 5_000) == expected


def test_after_a_start_silence_counts_from_the_start() -> None:
    times = EventTimes({A: 10, B: 10}, idle_us=1_000, now_us=5_000)
    times.observe(A, 500)
    times.hear(A, 5_900)
    assert [times.clock([A, B], now_us) for now_us in (5_900, 6_100)] == [10, 500]


def test_with_every_partition_silent_the_clock_stands() -> None:
    times = EventTimes({A: 10}, idle_us=1_000, now_us=0)
    assert times.clock([A], 10_000) is None


@given(st.integers(0, 10**16))
def test_a_tick_lies_strictly_after_what_belongs_to_it(at: int) -> None:
    assert 0 < tick_after(at) - at <= HOUR_US
    assert tick_after(at) % HOUR_US == 0


def test_after_a_start_the_clock_waits_for_predictions_logged_before_it() -> None:
    logged, events = Partition("serving.predictions.v1", 0), EventTimes()
    events.hold({logged: 3})
    events.observe(A, 500)
    assert events.clock([A], 0) is None
    events.observe(logged, 200)
    events.read(logged, 2)
    assert events.clock([A], 0) == 200
    events.observe(logged, 300)
    events.read(logged, 3)
    assert events.clock([A], 0) == 500
