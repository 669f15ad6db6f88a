"""The batch stream runner: a thin loop on aiokafka that commits only what is applied and durable.

    getmany → step (pure) → dead letters → apply → flush → positions advance → commit (in the background)

After an assignment the pipeline restores and says where to read from; on a revocation the batch in work is finished,
flushed and committed. `_epoch` numbers assignments: what was begun under an older one is dropped and read again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from time import perf_counter, time_ns
from typing import Any, Generic, TypeVar

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from tidemill_runtime import metrics
from tidemill_runtime.batches import (
    Assignment,
    Batch,
    Fetch,
    Pipeline,
    Record,
    Refused,
    Restored,
    StreamOptions,
    portions,
)
from tidemill_runtime.claims import Claim
from tidemill_runtime.consumer import Committer, GroupListener, close, connect, sleep_unless, unless
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.errors import Fatal, Retryable, StateLost
from tidemill_runtime.flushing import Flushing
from tidemill_runtime.health import Health
from tidemill_runtime.held_logs import HeldLogs
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.patience import Abandoned, Patience
from tidemill_runtime.positions import Offsets, Partition, Positions
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.sieve import Sieve
from tidemill_runtime.standing import Standing
from tidemill_runtime.watchdog import Sighting, watch

S = TypeVar("S")
E = TypeVar("E")
R = TypeVar("R")

_JOIN_MS = 20

log = structlog.get_logger(__name__)


@contextmanager
def _translated() -> Iterator[None]:
    """Name a pipeline's fault: taken for an outage of Kafka, its error would pass over a batch or be waited on."""
    try:
        yield
    except (KafkaError, OSError) as error:
        raise Fatal(f"the pipeline let a library's error through: {error!r}") from error


class _ConsumerLost(Exception):  # noqa: N818 -- control flow: another consumer goes on
    """The task by which the client takes part in its group has ended; it does not begin another."""


class StreamRunner(Component, Generic[S, E]):
    """Runs one `Pipeline` on the partitions that its consumer group gives it; a `Component` for `running`.

    Kafka being away is waited out, visible in readiness. `Retryable` from the pipeline is retried for `retry_limit_s`
    with the consumer paused, `StateLost` restores; any other error ends the service.
    """

    def __init__(
        self,
        pipeline: Pipeline[S, E],
        kafka: KafkaSettings,
        options: StreamOptions,
        *,
        topics: Iterable[str] = (),
        dead_letters: DeadLetters | None = None,
        health: Health | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._kafka = kafka
        self._options = options
        self._dead_letters = dead_letters
        self._sieve = Sieve(kafka, options.letters_of or options.group)
        self._topics = tuple(sorted(set(topics)))
        self._topics_changed = asyncio.Event()
        self._flushing = Flushing(self._topics, options)
        self._random = Random(options.seed)
        self._lock = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._consumer: Any = None
        self._fetch: Fetch | None = None
        # There from the first consumer on.
        self._logs: HeldLogs
        self._patience: Patience
        self._committer: Committer | None = None
        self._claim = Claim(kafka, options.group)
        self._held: Restored[S] | None = None
        self._epoch = 0
        self._standing = Standing(f"stream:{options.group}", health)

    @property
    def positions(self) -> Positions:
        """Up to where records are applied and durable; `reached` is what a barrier waits on."""
        return self._flushing.durable

    def fault(self) -> str | None:
        """Return what is wrong, for readiness."""
        return self._standing.fault

    def stop(self) -> None:
        """Take in nothing more; `run` finishes the batch in work, flushes, commits and returns."""
        self._stopping.set()
        self._topics_changed.set()

    async def run(self) -> None:
        """Consume until `stop`. Raises `Fatal`, `Stalled`, or what the pipeline raised."""
        while not self._stopping.is_set():
            try:
                await self._consume()
            except _ConsumerLost as lost:
                log.warning("consumer_lost", group=self._options.group, error=str(lost))
                self._drop_state()

    async def _consume(self) -> None:
        """Consume with one consumer until `stop`, or until it is lost."""
        options = {**self._options.consumer_kwargs(), **self._kafka.group(self._options.group)}
        self._consumer = await connect(self._kafka, options, self._stopping, self._standing.note)
        if self._consumer is None:
            return
        self._fetch = self._pipeline.fetch_from(self._consumer)
        self._logs = HeldLogs(self._consumer, self._kafka, self._options.group)
        self._patience = Patience(self._consumer, self._options, self._standing, self._stopping, self._topics_changed)
        self._committer = Committer(self._consumer, self._options.commit_every_ms)
        self._topics_changed.set()
        loop = asyncio.create_task(self._loop(), name="stream")
        stall = watch(self._sight, self._options.stall_s, self._options.group, self._standing.stands_still)
        tasks = {
            loop,
            asyncio.create_task(self._committer.run(), name="committer"),
            asyncio.create_task(stall, name="watchdog"),
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            try:
                await self._finish()
            except Retryable as error:
                log.warning("stopped_before_flushed", group=self._options.group, error=repr(error))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await close(self._consumer)

    def subscribe(self, topics: Iterable[str]) -> None:
        """Replace the logical topics to read; the group rebalances when they differ."""
        wanted = tuple(sorted(set(topics)))
        if wanted == self._topics:
            return
        self._topics = wanted
        self._flushing.follow(wanted)
        self._topics_changed.set()

    async def reached(self, offsets: Offsets) -> None:
        """Return once everything before `offsets` is applied and durable; flushes rather than wait for the interval.

        What lies behind the end of a log was of one that is gone, and is not waited for.
        """
        if self._options.flush_every_ms:
            offsets = await self._flushing.applied.reached_within(offsets, self._within)
            await self.flush()
        await self.positions.reached_within(offsets, self._within)

    async def _within(self, offsets: Offsets) -> Offsets:
        held = self.positions.next
        return await self._logs.within(offsets, held) if held else offsets

    async def caught_up(self, partitions: Collection[Partition]) -> None:
        """Return once everything that these partitions hold now is applied and durable; waits until they are held.

        A partition held by another worker is never caught up here: bound the wait. Raises `KafkaError`.
        """
        await self.positions.reached(dict.fromkeys(partitions, 0))
        await self.reached(await self._logs.ends(partitions))

    async def flush(self) -> None:
        """Make what was applied durable now, without waiting for the interval."""
        async with self._lock:
            try:
                await self._flush()
            except StateLost:
                self._drop_state()
                raise

    async def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._topics_changed.is_set():
                    await self._resubscribe()
                if self._topics:
                    await self._cycle()
            except Abandoned:
                self._drop_state()
            except StateLost as error:
                log.warning("state_lost", group=self._options.group, error=str(error))
                self._drop_state()
                await sleep_unless(self._stopping, 0.1)
            except (KafkaError, OSError) as error:
                self._standing.waits(f"Kafka: {error!r}")
                await sleep_unless(self._stopping, 0.5)
                # What the client calls unexpected, as that a Kafka which has just begun names no broker, ends its task.
                if type(error) is KafkaError:
                    raise _ConsumerLost(str(error)) from error

    async def _resubscribe(self) -> None:
        self._topics_changed.clear()
        # The client gives its partitions up at once, and with them what is not committed yet.
        await self._on_revoked()
        while not self._topics and not self._stopping.is_set():
            self._consumer.unsubscribe()
            self._standing.note(None)
            await self._topics_changed.wait()
            self._topics_changed.clear()
        if self._topics:
            names = [self._kafka.physical(topic) for topic in self._topics]
            self._consumer.subscribe(names, listener=GroupListener(self._on_revoked, self._on_assigned))

    async def _cycle(self) -> None:
        if self._held is None and self._consumer.assignment():
            await self._restore()
        epoch, limit = self._epoch, self._options.max_records
        assert self._fetch is not None
        # The client waits for records where it has just been given partitions, which are to be restored first.
        wait_ms = _JOIN_MS if self._held is None else self._options.poll_ms
        fetched = await unless(self._stopping, self._fetch(wait_ms, limit)) or {}
        more = any(self._logs.more(place, records[-1].offset) for place, records in fetched.items())
        left = sum(map(len, fetched.values()))
        for part in list(portions(fetched, limit)) or [{}]:
            left -= sum(map(len, part.values()))
            self._flushing.behind = more or left > 0
            async with self._lock:
                if epoch != self._epoch:
                    self._read_again(fetched)
                    return
                await self._work(part)
            # A full buffer is handed over without suspending once; others must get their turn between batches.
            await asyncio.sleep(0)
            if self._stopping.is_set():
                return

    async def _work(self, fetched: Mapping[TopicPartition, Sequence[Record]]) -> None:
        with _translated():
            if fetched and self._held is not None:
                await self._process(fetched, self._held.state)
            elif self._flushing.is_due():
                await self._retried(self._flush)

    async def _process(self, fetched: Mapping[TopicPartition, Sequence[Record]], state: S) -> None:
        began, epoch = perf_counter(), self._epoch
        group = self._options.group
        batch = Batch({self._logs.partition(place): records for place, records in fetched.items()})
        if self._options.hop_delay_ms:
            await asyncio.sleep(self._random.random() * self._options.hop_delay_ms / 1000)
        await self._count_gaps(batch)
        if epoch != self._epoch:
            raise Abandoned
        judged = self._sieve.sift(batch)
        step = self._pipeline.step(state, judged, time_ns() // 1000)
        if self._dead_letters is not None or step.refused:
            await self._retried(lambda: self._refuse(step.refused, judged))
        await self._retried(lambda: self._pipeline.apply(step.effects))
        self._held = Restored(step.state)
        self._flushing.applied.advance(batch.next_offsets)
        if self._flushing.is_due():
            await self._retried(self._flush)
        for partition, records in batch.partitions.items():
            metrics.stream_records.labels(group, partition.topic).inc(len(records))
        metrics.stream_batch_seconds.labels(group).observe(perf_counter() - began)

    async def _refuse(self, refused: Sequence[Refused], judged: Batch) -> None:
        if self._dead_letters is not None:
            await self._dead_letters.send(refused, judged.count, judged.partitions)
            return
        record, poison = refused[0]
        raise Fatal(
            f"{record.topic}[{record.partition}] offset {record.offset} is refused ({poison.reason}) "
            "and this consumer has no dead-letter topic"
        )

    async def _flush(self) -> None:
        if self._held is None:
            return
        await self._pipeline.flush()
        if moved := self._flushing.flushed():
            assert self._committer is not None
            self._committer.durable(self._logs.places(moved))

    async def _retried(self, attempt: Callable[[], Awaitable[R]]) -> R:
        epoch = self._epoch
        return await self._patience.outlast(attempt, lambda: epoch == self._epoch)

    async def _restore(self) -> None:
        epoch, self._standing.excused = self._epoch, True
        places, clamped = sorted(self._consumer.assignment()), self._pipeline.keeps_offsets
        assert self._committer is not None
        # Where the group begins is where the pipeline does, unless it keeps offsets of its own.
        await self._committer.commit()
        await self._claim.check(places)
        assignment = await self._logs.assignment(places, clamped=clamped, anew=self._pipeline.begins_anew)
        start = dict(assignment.start)
        if self._claim.named:
            # What nobody has committed is taken for a partition that the group overlooks.
            self._committer.durable(self._logs.places(start))
            await self._committer.commit()
        restored = await self._retried(lambda: self._restored(assignment))
        held = {partition: offset for partition, offset in restored.offsets.items() if partition in start}
        start |= self._logs.starts(held, assignment, clamped=False)
        self._standing.excused = True
        await self._retried(lambda: self._sieve.recall(start, assignment.end))
        if epoch != self._epoch:
            raise Abandoned
        try:
            for place, offset in self._logs.places(start).items():
                self._consumer.seek(place, offset)
        except IllegalStateError as error:
            raise Abandoned from error
        self._patience.resume()
        self._flushing.reset(start)
        # What a killed worker flushed is perhaps not committed, and nothing new may come.
        news = {partition: offset for partition, offset in start.items() if offset != assignment.start[partition]}
        self._committer.durable(self._logs.places(news))
        self._held = restored
        self._standing.goes_on()
        log.info("restored", group=self._options.group, partitions=len(start))

    async def _restored(self, assignment: Assignment) -> Restored[S]:
        with _translated():
            return await self._pipeline.restore(assignment)

    async def _count_gaps(self, batch: Batch) -> None:
        for partition, records in batch.partitions.items():
            expected, first = self._flushing.applied.next[partition], records[0].offset
            if first == expected:
                continue
            try:
                await self._logs.note_gap(partition, expected, first)
            except (KafkaError, OSError) as error:
                raise Abandoned from error

    def _read_again(self, fetched: Iterable[TopicPartition]) -> None:
        if self._held is None:
            # The coming restore seeks every partition.
            return
        for place in fetched:
            if (offset := self._flushing.applied.next.get(self._logs.partition(place))) is not None:
                self._consumer.seek(place, offset)

    async def _on_revoked(self) -> None:
        """Finish, flush and commit what is held; given up in time for the group not to expel the worker."""
        try:
            async with asyncio.timeout(self._options.session_ms / 1000), self._lock:
                await self._finish()
        except (TimeoutError, Retryable) as error:
            log.warning("revoked_before_flushed", group=self._options.group, error=repr(error))
        finally:
            self._drop_state()
            if self._committer is not None:
                self._committer.forget()

    def _on_assigned(self) -> None:
        self._drop_state()
        log.info("assigned", group=self._options.group, partitions=len(self._consumer.assignment()))

    def _drop_state(self) -> None:
        self._epoch += 1
        self._held = None
        # Until it is known where to read from: beside a fetch that waits for records Kafka would answer nothing else.
        self._consumer.pause(*self._consumer.assignment())
        self._pipeline.released()
        self._flushing.reset({})
        self._standing.note("restoring")

    async def _finish(self) -> None:
        if self._held is not None:
            await self._flush()
        if self._committer is not None:
            await self._committer.commit()

    async def _sight(self) -> Sighting:
        places = list(self._consumer.assignment())
        # Whoever is given nothing may be so because the topics were not there yet.
        if (self._held is not None or not places) and await self._claim.overlooked(self._consumer, self._topics):
            self._topics_changed.set()
        held = self.positions.next
        lag = await self._logs.lag({one: held.get(one, 0) for one in map(self._logs.partition, places)})
        return Sighting(bool(places), lag, sum(held.values()), excused=self._standing.excused)
