"""Micro-batching: what waits while one batch is under way becomes the next batch; nobody waits for a timer."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from tidemill_runtime.errors import Overloaded

# Turns of the event loop without a new caller after which a batch begins.
PATIENCE = 48

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
    bounds one batch (a single larger job runs alone), `max_waiting_rows` what may queue; `concurrent` batches run at
    once, so that one may wait for Redis while another computes.
    """

    def __init__(self, run: "Run[J, R]", *, max_rows: int, max_waiting_rows: int, concurrent: int = 1) -> None:
        self._run = run
        self._max_rows = max_rows
        self._max_waiting_rows = max_waiting_rows
        self._concurrent = concurrent
        self._waiting: deque[_Waiting[J, R]] = deque()
        self._waiting_rows = 0
        # Callers of the last batch.
        self._crowd = 1
        self._workers: set[asyncio.Task[None]] = set()

    async def submit(self, job: J, rows: int) -> R:
        """Return the job's result. Raises `Overloaded` where the queue is full, or what `run` says of this job."""
        if self._waiting_rows + rows > self._max_waiting_rows and self._waiting:
            raise Overloaded(f"{self._waiting_rows} rows wait to be scored", retry_after_s=0.1)
        waiting: _Waiting[J, R] = _Waiting(job, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_rows += rows
        if len(self._workers) < self._concurrent:
            worker = asyncio.create_task(self._work(), name="micro-batcher")
            self._workers.add(worker)
        return await waiting.answer

    async def drained(self) -> None:
        """Return once nothing waits and nothing runs."""
        while self._workers:
            await asyncio.wait(set(self._workers))

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                if batch := self._take():
                    self._crowd = len(batch)
                    await self._answer(batch)
        finally:
            # In the same step as the last look at the queue: nobody may queue behind a worker that is leaving.
            self._workers.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    async def _gather(self) -> None:
        """Let callers that are on their way join: until several turns of the loop brought none, or the batch is full.

        A call takes several turns from its socket to this queue, so that without this each batch would hold one or two
        of many. A caller that comes alone after one that came alone does not wait.
        """
        quiet = PATIENCE if self._crowd <= 1 and len(self._waiting) == 1 else 0
        while quiet < PATIENCE and self._waiting_rows < self._max_rows:
            before = len(self._waiting)
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) <= before else 0

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
