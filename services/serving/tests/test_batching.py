import asyncio
from collections.abc import Sequence

import pytest
from tidemill_runtime.errors import Overloaded
from tidemill_serving.batching import MicroBatcher


class Gate:
    """Holds every batch until it is opened, and remembers what was in each."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.batches: list[list[int]] = []

    async def run(self, jobs: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(jobs))
        await self.open.wait()
        return [ValueError("odd") if job % 2 else job * 10 for job in jobs]


async def test_what_waits_while_a_batch_runs_becomes_the_next_batch() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_rows=8, max_waiting_rows=100)
    first = asyncio.create_task(batcher.submit(0, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    rest = [asyncio.create_task(batcher.submit(number, 1)) for number in (2, 4, 6)]
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(first, *rest) == [0, 20, 40, 60]
    assert gate.batches == [[0], [2, 4, 6]]


async def test_each_caller_gets_its_own_result_or_error() -> None:
    gate = Gate()
    gate.open.set()
    batcher = MicroBatcher(gate.run, max_rows=8, max_waiting_rows=100)
    results = await asyncio.gather(*(batcher.submit(number, 1) for number in range(4)), return_exceptions=True)
    assert results[0::2] == [0, 20]
    assert all(isinstance(result, ValueError) for result in results[1::2])


async def test_a_batch_and_the_queue_are_bounded() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_rows=4, max_waiting_rows=6)
    tasks = [asyncio.create_task(batcher.submit(number, 2)) for number in (0, 2, 4)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(batcher.submit(number, 2)) for number in (6, 8)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await batcher.submit(10, 2)
    gate.open.set()
    await asyncio.gather(*tasks)
    assert gate.batches[0] == [0, 2]
    assert all(len(batch) <= 2 for batch in gate.batches)


async def test_a_job_larger_than_the_queue_runs_alone_where_nothing_waits() -> None:
    gate = Gate()
    gate.open.set()
    batcher = MicroBatcher(gate.run, max_rows=4, max_waiting_rows=6)
    assert await batcher.submit(2, 7) == 20


async def test_a_failing_batch_fails_its_callers_and_the_next_one_works() -> None:
    calls = 0

    async def run(jobs: Sequence[int]) -> Sequence[int | Exception]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("gone")
        return list(jobs)

    batcher = MicroBatcher(run, max_rows=4, max_waiting_rows=6)
    with pytest.raises(ConnectionError):
        await batcher.submit(1, 1)
    assert await batcher.submit(2, 1) == 2


async def test_a_caller_that_gave_up_before_its_batch_began_costs_nothing() -> None:
    gate = Gate()
    batcher = MicroBatcher(gate.run, max_rows=8, max_waiting_rows=100)
    first = asyncio.create_task(batcher.submit(0, 1))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.create_task(batcher.submit(2, 1))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await first
    await batcher.drained()
    assert gate.batches == [[0]]


async def test_a_crowd_that_asks_again_shares_a_batch_though_its_callers_come_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Longer than any machine takes between two callers; nobody waits for its end, since the crowd is complete.
    monkeypatch.setattr("tidemill_serving.batching.LEAST_PATIENCE_S", 60.0)
    monkeypatch.setattr("tidemill_serving.batching.MOST_PATIENCE_S", 60.0)
    gate = Gate()
    gate.open.set()
    batcher = MicroBatcher(gate.run, max_rows=8, max_waiting_rows=100)
    await asyncio.gather(*(batcher.submit(number, 1) for number in (0, 2, 4, 6)))
    gate.batches.clear()
    callers = []
    for number in (0, 2, 4, 6):
        callers.append(asyncio.create_task(batcher.submit(number, 1)))
        # Several turns of the loop, as a call takes from its socket.
        for _ in range(5):
            await asyncio.sleep(0)
    assert await asyncio.gather(*callers) == [0, 20, 40, 60]
    assert gate.batches == [[0, 2, 4, 6]]


async def test_who_is_left_of_a_crowd_is_answered() -> None:
    gate = Gate()
    gate.open.set()
    batcher = MicroBatcher(gate.run, max_rows=8, max_waiting_rows=100)
    await asyncio.gather(*(batcher.submit(number, 1) for number in (0, 2, 4, 6)))
    assert await asyncio.wait_for(batcher.submit(8, 1), 60) == 80
