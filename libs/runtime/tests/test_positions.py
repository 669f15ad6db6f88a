import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_runtime.errors import Fatal
from tidemill_runtime.positions import Partition, Positions, start_offset

A0, A1, B0 = Partition("a", 0), Partition("a", 1), Partition("b", 0)


async def test_reached_returns_when_the_last_wanted_offset_is_applied() -> None:
    positions = Positions(["a"])
    waiting = asyncio.ensure_future(positions.reached({A0: 5, A1: 2}))
    positions.advance({A0: 5})
    await asyncio.sleep(0)
    assert not waiting.done()
    positions.advance({A1: 3})
    async with asyncio.timeout(60):
        await waiting


async def test_topics_that_are_not_read_do_not_count() -> None:
    await Positions(["a"]).reached({B0: 100})


async def test_an_assignment_that_begins_far_enough_wakes_the_waiting() -> None:
    positions = Positions(["a"])
    waiting = asyncio.ensure_future(positions.reached({A0: 5}))
    await asyncio.sleep(0)
    positions.reset({A0: 5})
    async with asyncio.timeout(60):
        await waiting


async def test_a_topic_that_counts_no_more_holds_up_nobody() -> None:
    positions = Positions(["a", "b"])
    waiting = asyncio.ensure_future(positions.reached({B0: 5}))
    await asyncio.sleep(0)
    positions.follow(["a"])
    async with asyncio.timeout(60):
        await waiting


@pytest.mark.parametrize(("wanted", "found"), [(None, (5, 0)), (3, (5, 2)), (5, (5, 0)), (7, (7, 0)), (9, (9, 0))])
def test_reading_begins_within_the_log_and_what_is_gone_is_counted(wanted: int | None, found: tuple[int, int]) -> None:
    assert start_offset(A0, wanted, 5, 9) == found
    with pytest.raises(Fatal, match=r"a\[0\] ends at 9, before the offset 10"):
        start_offset(A0, 10, 5, 9)


async def test_a_wait_that_is_given_up_leaves_nothing_behind() -> None:
    positions = Positions(["a"])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await positions.reached({A0: 1})
    positions.advance({A0: 1})
    assert positions._waiters == []


@given(
    wanted=st.dictionaries(st.sampled_from([A0, A1, B0]), st.integers(0, 5)),
    steps=st.lists(st.tuples(st.sampled_from([A0, A1, B0]), st.integers(0, 6)), max_size=30),
)
def test_reached_is_exactly_all_wanted_applied_at_some_moment(
    wanted: dict[Partition, int], steps: list[tuple[Partition, int]]
) -> None:
    async def replay() -> bool:
        positions = Positions(["a", "b"])
        waiting = asyncio.ensure_future(positions.reached(wanted))
        await asyncio.sleep(0)
        for partition, offset in steps:
            positions.advance({partition: offset})
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done = waiting.done()
        waiting.cancel()
        return done

    held: dict[Partition, int] = {}
    expected = not wanted
    for partition, offset in steps:
        held[partition] = offset
        expected = expected or all(held.get(p, -1) >= o for p, o in wanted.items())
    assert asyncio.run(replay()) == expected
