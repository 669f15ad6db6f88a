"""Which numbers of a serving process count as lost, and which are only late, old or repeated."""

import random

import pytest
from tidemill_monitoring.gaps import Logged, Lost, Sequences
from tidemill_runtime.positions import Partition

P0, P1 = Partition("serving.predictions.v1", 0), Partition("serving.predictions.v1", 1)
SECOND = 1_000_000
GRACE_US = 60 * SECOND


def record(number: int, partition: Partition = P0, *, written_us: int = 0, process: str = "a") -> Logged:
    return Logged(partition, 100 + number, written_us, process, number)


@pytest.fixture
def begun() -> Sequences:
    """A process that has been heard of for a while; its number 10 was the newest then."""
    sequences = Sequences({P0: 50, P1: 50}, GRACE_US)
    sequences.note([record(10)], 0)
    sequences.note([record(11)], GRACE_US)
    return sequences


def test_a_number_that_never_comes_is_lost_after_a_while_and_told_once(begun: Sequences) -> None:
    begun.note([record(15)], GRACE_US + SECOND)
    assert begun.lost(2 * GRACE_US) == []
    assert begun.lost(2 * GRACE_US + SECOND) == [Lost("a", 3)]
    assert begun.lost(9 * GRACE_US) == []


def test_what_another_partition_brings_later_or_twice_is_not_lost(begun: Sequences) -> None:
    begun.note([record(15)], GRACE_US)
    begun.note([record(number, P1) for number in (13, 12, 12, 15)], GRACE_US + SECOND)
    assert begun.lost(3 * GRACE_US) == [Lost("a", 1)], "only 14 is missing"


def test_a_gap_stays_open_while_a_partition_is_read_that_lies_before_it(begun: Sequences) -> None:
    begun.note([record(15, written_us=500)], GRACE_US)
    begun.note([record(9, P1, written_us=400)], 2 * GRACE_US)
    assert begun.lost(2 * GRACE_US + SECOND) == [], "the other partition is behind: what is missing may lie there"
    begun.note([record(number, P1, written_us=600) for number in (12, 13, 14)], 2 * GRACE_US + SECOND)
    assert begun.lost(9 * GRACE_US) == []


def test_what_was_in_the_log_before_and_a_processs_first_while_are_not_judged() -> None:
    sequences = Sequences({P0: 1_000}, GRACE_US)
    sequences.note([record(1), record(500)], 0)
    sequences.note([Logged(P0, 1_000, 0, "a", 700), Logged(P0, 1_001, 0, "a", 900)], 0)
    assert sequences.lost(9 * GRACE_US) == []


def test_processes_are_told_apart_and_only_so_often(begun: Sequences) -> None:
    begun.note([record(1, process="b")], GRACE_US)
    begun.note([record(13), record(3, process="b")], 2 * GRACE_US)
    begun.note([record(15)], 2 * GRACE_US + SECOND)
    assert sorted(begun.lost(3 * GRACE_US)) == [Lost("a", 1), Lost("b", 1)]
    assert begun.lost(3 * GRACE_US + SECOND) == [], "told a moment ago"
    assert begun.lost(4 * GRACE_US) == [Lost("a", 1)]


@pytest.mark.parametrize("seed", range(20))
def test_exactly_what_was_dropped_is_lost_whatever_partitions_and_batches(seed: int) -> None:
    chance = random.Random(seed)
    numbers = range(12, 300)
    dropped = {number for number in numbers[:-1] if chance.random() < 0.1}
    lanes: dict[Partition, list[Logged]] = {P0: [], P1: []}
    for number in numbers:
        if number not in dropped:
            partition = chance.choice([P0, P1])
            lanes[partition].append(record(number, partition, written_us=number))
    sequences, now_us, told = Sequences({P0: 50, P1: 50}, GRACE_US), 2 * GRACE_US, 0
    sequences.note([record(10, written_us=10)], 0)
    sequences.note([record(11, written_us=11), record(11, P1, written_us=11)], GRACE_US)
    while any(lanes.values()):
        lane = lanes[chance.choice([partition for partition, left in lanes.items() if left])]
        count = chance.randint(1, 20)
        sequences.note(lane[:count], now_us)
        del lane[:count]
        now_us += SECOND
        told += sum(one.records for one in sequences.lost(now_us))
    told += sum(one.records for one in sequences.lost(now_us + 2 * GRACE_US))
    assert told == len(dropped)


@pytest.mark.parametrize("dropped_of_ten", [0, 1, 5])
def test_more_gaps_than_are_held_are_counted_all_the_same(begun: Sequences, dropped_of_ten: int) -> None:
    chance = random.Random(dropped_of_ten)
    numbers = range(12, 20_012)
    dropped = {number for number in numbers[:-1] if chance.random() < dropped_of_ten / 10}
    now_us = GRACE_US
    for first in range(12, 20_012, 4_000):
        now_us += SECOND
        batch = [record(number, (P0, P1)[number % 2]) for number in numbers[first - 12 : first + 3_988]]
        came = [one for one in batch if one.sequence not in dropped]
        # As they are read: one partition after the other.
        begun.note([one for partition in (P0, P1) for one in came if one.partition == partition], now_us)
    assert len(begun._processes["a"].gaps) <= 1_000
    told = begun.lost(now_us + GRACE_US)
    assert sum(one.records for one in told) == len(dropped)


def test_gaps_that_became_one_are_told_while_more_come(begun: Sequences) -> None:
    told, number = 0, 11
    for second in range(1, 181):
        number += 100
        begun.note([record(one) for one in range(number - 98, number + 1, 2)], GRACE_US + second * SECOND)
        told += sum(one.records for one in begun.lost(GRACE_US + second * SECOND))
    assert told == 61 * 50, "50 a second for three minutes, told once a minute"


def test_gaps_that_became_one_wait_for_the_last_of_them(begun: Sequences) -> None:
    for moment in range(1_001):
        begun.note([record(13 + 2 * moment, written_us=moment)], GRACE_US + moment)
    assert begun.lost(2 * GRACE_US + 500) == [], "the last was noticed a moment later"
    begun.note([record(9, P1, written_us=500)], 2 * GRACE_US + SECOND)
    assert begun.lost(2 * GRACE_US + SECOND) == [], "what is missing may lie in the other partition"
    assert begun.lost(9 * GRACE_US) == [Lost("a", 1_001)]


def test_a_number_of_gaps_that_became_one_may_still_come(begun: Sequences) -> None:
    begun.note([record(number) for number in (13, 15)], GRACE_US)
    begun.note([record(number) for number in range(17, 2_017, 2)], GRACE_US + SECOND)
    begun.note([record(12, P1)], GRACE_US + SECOND)
    assert begun.lost(9 * GRACE_US) == [Lost("a", 1_001)]


def test_what_comes_first_behind_the_end_of_the_log_is_not_missed() -> None:
    sequences = Sequences({P0: 111, P1: 50}, GRACE_US)
    sequences.note([record(10, P1)], 0)
    sequences.note([record(11, P0), record(12, P1)], GRACE_US)
    assert sequences.lost(9 * GRACE_US) == []


@pytest.mark.parametrize("heard_again", [True, False])
def test_of_too_many_processes_those_heard_of_longest_ago_are_forgotten(begun: Sequences, heard_again: bool) -> None:
    begun.note([record(15)], GRACE_US)
    begun.note([record(1, process=f"b{number}") for number in range(999)], GRACE_US)
    if heard_again:
        begun.note([record(15)], GRACE_US)
    begun.note([record(1, process="c")], GRACE_US)
    assert begun.lost(9 * GRACE_US) == ([Lost("a", 3)] if heard_again else [])
