"""Micro-batching: what waits while one batch is under way becomes the next batch."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from tidemill_runtime.errors import Overloaded

# A batch waits for the next caller of a crowd twice as long as the last batch took, within these bounds: a call takes a
# third of a millisecond from its socket to here, and much longer on a machine that is busy.
LEAST_PATIENCE_S, MOST_PATIENCE_S = 0.002, 0.010

J = TypeVar("J")
R = TypeVar("R")
Run = Callable[[Sequence[J]], Awaitable[Sequence[R | Exception]]]


@dataclass(eq=False, slots=True)
class _Waiting(Generic[J, R]):
    job: J
    rows: int
    answer: asyncio.Future[R]


class MicroBatcher(Generic[J, R]):
    """Runs jobs of concurrent callers together.

    `run` takes jobs and returns, for each in order, its result or the exception to raise to its caller. `max_rows`
    bounds one batch (a single larger job runs alone), `max_waiting_rows` what may queue.
    """

    def __init__(self, run: "Run[J, R]", *, max_rows: int, max_waiting_rows: int) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_waiting_rows = max_waiting_rows
        self._waiting: deque[_Waiting[J, R]] = deque()
        self._waiting_rows = 0
        # How many ask again and again, as far as is known.
        self._crowd = 1
        self._patience_s = LEAST_PATIENCE_S
        # Set once a crowd is complete, while a batch waits for it.
        self._complete: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None

    async def submit(self, job: J, rows: int) -> R:
        """Return the job's result. Raises `Overloaded` where the queue is full, or what `run` says of this job."""
        if self._waiting_rows + rows > self._max_waiting_rows and self._waiting:
            raise Overloaded(f"{self._waiting_rows} rows wait to be scored", retry_after_s=0.1)
        waiting: _Waiting[J, R] = _Waiting(job, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_rows += rows
        if self._complete is not None and self._is_complete() and not self._complete.done():
            self._complete.set_result(None)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work(), name="micro-batcher")
        return await waiting.answer

    async def drained(self) -> None:
        """Return once nothing waits and nothing runs."""
        while self._worker is not None:
            await asyncio.wait({self._worker})

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                if batch := self._take():
                    began = perf_counter()
                    await self._answer(batch)
                    self._patience_s = min(max(2 * (perf_counter() - began), LEAST_PATIENCE_S), MOST_PATIENCE_S)
                    # Those who came while it ran, too. A crowd shrinks slowly: one that is late has not gone.
                    self._crowd = max(len(batch) + len(self._waiting), self._crowd * 3 // 4)
        finally:
            # In the same step as the last look at the queue: nobody may queue behind a worker that is leaving.
            self._worker = None

    async def _gather(self) -> None:
        """Let callers that are on their way join: until all of the crowd are here, or nobody came for a moment.

        A batch costs as much as ten rows, so that of many who ask again and again it should take all. A caller that
        comes alone after one that came alone does not wait.
        """
        seen = 0
        self._complete = asyncio.get_running_loop().create_future()
        while not self._is_complete() and len(self._waiting) > seen:
            seen = len(self._waiting)
            await asyncio.wait((self._complete,), timeout=self._patience_s)

    def _is_complete(self) -> bool:
        return len(self._waiting) >= self._crowd or self._waiting_rows >= self._max_rows

    async def _answer(self, batch: Sequence[_Waiting[J, R]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._run([waiting.job for waiting in batch])
        except Exception as error:
            results = [error] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():  # its caller gave up
                continue
            if isinstance(result, Exception):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(result)

    def _take(self) -> list[_Waiting[J, R]]:
        batch: list[_Waiting[J, R]] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].rows <= self._max_rows):
            waiting = self._waiting.popleft()
            self._waiting_rows -= waiting.rows
            if not waiting.answer.done():
                batch.append(waiting)
                rows += waiting.rows
        return batch
