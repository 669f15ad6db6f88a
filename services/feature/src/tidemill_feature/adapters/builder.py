"""Builds views beside those that are folded: from the offline log where Kafka has dropped it, then from Kafka.

One task per assignment, on the worker's own loop, a small piece at a time: live events and pieces take turns. It has
checkpoints of its own (those of the group `<group>.build`), which fence it as the worker is fenced, from before its
first ring on, and from which it goes on after a crash. When its partitions have almost caught up it says so and ends:
the worker restores and folds old and new views together from there.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.fold import ViewShards
from tidemill_features.layout import EMPTY, Checkpoint
from tidemill_runtime.batches import Batch
from tidemill_runtime.consumer import close
from tidemill_runtime.errors import Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.retries import delays
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.sieve import Sieve

from tidemill_feature import metrics
from tidemill_feature.adapters.building_site import Job, Lot, Site
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.building import resumable
from tidemill_feature.decode import StreamDecoder
from tidemill_feature.progress import Progress
from tidemill_feature.replaying import Chunk, Replay
from tidemill_feature.sizes import Sizes

_READ_MS = 200
# Records of Kafka are decoded too before live events have their turn.
_READ_RECORDS = 500
_LOOP_TURNS = 10
_REPORT_S = 0.5

log = structlog.get_logger(__name__)


Make = Callable[[], Mapping[bytes, ViewShards]]


class History(Protocol):
    """What of a stream was archived."""

    def chunks(
        self, stream: definition.Stream, names: Sequence[str], partition: int, span: tuple[int, int], *, topic_id: bytes
    ) -> AsyncIterator[Chunk]:
        """Yield what the offline log holds of a span of offsets, in their order, with the named fields.

        `topic_id`: of the topic whose offsets these are; what was archived of a former one is nothing of it.

        Raises `Retryable`.
        """
        ...


@dataclass(slots=True)
class LaterHistory:
    """Opens the offline log when something of it is asked for."""

    open: Callable[[], History]

    async def chunks(
        self, stream: definition.Stream, names: Sequence[str], partition: int, span: tuple[int, int], *, topic_id: bytes
    ) -> AsyncIterator[Chunk]:
        # Loading pyiceberg takes a second, in which live events go on.
        history = await asyncio.to_thread(self.open)
        async for chunk in history.chunks(stream, names, partition, span, topic_id=topic_id):
            yield chunk


class NoHistory:
    """For where nothing is archived."""

    async def chunks(
        self, stream: definition.Stream, names: Sequence[str], partition: int, span: tuple[int, int], *, topic_id: bytes
    ) -> AsyncIterator[Chunk]:
        nothing: tuple[Chunk, ...] = ()
        for chunk in nothing:
            yield chunk


@dataclass(slots=True)
class Builder:
    """Builds what a worker is told to; `done` says that the worker may take it over."""

    store: RedisStore
    book: ViewBook
    kafka: KafkaSettings
    sizes: Sizes
    history: History
    # Held while live events are folded, and while a piece of what is built is.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    done: bool = False
    _task: asyncio.Task[None] | None = None
    _reported_s: float = field(default=0.0)

    def start(self, jobs: Sequence[Job], make: Make) -> None:
        """Build from now on, and nothing else; `make` returns shards, none of them in memory yet, by build."""
        self.stop()
        if jobs:
            self._task = asyncio.create_task(self._run(jobs, make), name="builder")

    def stop(self) -> None:
        """Build no more; what is written stays."""
        task, self._task, self.done = self._task, None, False
        if task is not None:
            task.cancel()

    def check(self) -> None:
        """Raise what ended the building, if anything did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _run(self, jobs: Sequence[Job], make: Make) -> None:
        for delay_s in delays():
            try:
                await self._build(jobs, make())
            except Retryable as error:
                log.warning("building_waits", error=str(error))
                await asyncio.sleep(max(delay_s, error.retry_after_s or 0))
            else:
                self.done = True
                return

    async def _build(self, jobs: Sequence[Job], shards: Mapping[bytes, ViewShards]) -> None:
        """Build until every partition is near enough; begins where the checkpoints are."""
        held = await self.store.watch([job.partition for job in jobs])
        lots = {job.partition: self._lot(job, held[job.partition], shards) for job in jobs}
        site = await Site.claimed(self.store, lots, self.turn)
        log.info("building", views=sorted({view.plan.name for view in shards.values()}), partitions=len(site.lots))
        for lot in site.lots.values():
            await self._from_history(site, lot)
        ends = {partition: max(lot.job.found.end, lot.job.live()) for partition, lot in site.lots.items()}
        sieve = Sieve(self.kafka, self.sizes.group)
        await sieve.recall({partition: lot.replay.read for partition, lot in site.lots.items()}, ends)
        async with _consumer(self.kafka) as consumer:
            await self._from_log(consumer, sieve, site)
        await self._report(site, force=True)

    def _lot(self, job: Job, held: Checkpoint | None, shards: Mapping[bytes, ViewShards]) -> Lot:
        found = job.found
        point = resumable(replace(found, built=held), job.missing)
        if point is None:
            # Whatever lies in between is looked for in the archive.
            point = Checkpoint(found.topic_id, 0, 0, EMPTY, job.missing, found.partitions)
        views = [shards[build] for build in sorted(job.missing)]
        replay = Replay(job.partition, StreamDecoder(job.stream), views, point, job.missing)
        return Lot(job, replay, held, point.next_offset)

    async def _from_history(self, site: Site, lot: Lot) -> None:
        """Take what Kafka has dropped from the offline log."""
        found, replay, partition = lot.job.found, lot.replay, lot.job.partition
        if replay.read >= found.begin:
            return
        log_of = (lot.job.stream, replay.columns, partition.number, (replay.read, found.begin))
        async for chunk in self.history.chunks(*log_of, topic_id=found.topic_id):
            for piece in chunk.pieces(lot.piece_events):
                await site.fold([(lot, piece)])
                await self._report(site)
                await _live_first()
        if replay.next_offset < found.begin:
            missing = found.begin - replay.next_offset
            log.error("records_in_neither_log", topic=partition.topic, partition=partition.number, records=missing)
        replay.skip_to(found.begin)
        await site.flush()

    async def _from_log(self, consumer: Any, sieve: Sieve, site: Site) -> None:
        consumer.assign([self._physical(partition) for partition in site.lots])
        for partition, lot in site.lots.items():
            consumer.seek(self._physical(partition), max(lot.replay.read, lot.job.found.begin))
        while any(lot.behind > self.sizes.near_records for lot in site.lots.values()):
            try:
                fetched = await consumer.getmany(timeout_ms=_READ_MS, max_records=_READ_RECORDS)
            except KafkaError as error:
                raise Retryable(f"Kafka: {error!r}") from error
            read = {}
            for place, records in fetched.items():
                partition = Partition(self.kafka.logical(place.topic), place.partition)
                # Never ahead of the live ones, whose checkpoint is to be the later one when both are read together.
                limit = site.lots[partition].job.live()
                if known := [record for record in records if record.offset < limit]:
                    read[partition] = known
                if len(known) < len(records):
                    consumer.seek(place, records[len(known)].offset)
            await site.fold(_decoded(site, sieve, Batch(read)))
            await self._report(site)
            await (_live_first() if read else asyncio.sleep(_READ_MS / 1000))
        await site.flush()

    async def _report(self, site: Site, *, force: bool = False) -> None:
        """Say how far it is, for whoever asks any instance."""
        if not force and monotonic() - self._reported_s < _REPORT_S:
            return
        self._reported_s = monotonic()
        for partition, lot in site.lots.items():
            now = Progress(lot.first, lot.replay.next_offset, max(lot.job.found.end, lot.job.live()))
            metrics.build_remaining.labels(lot.job.stream.name, partition.number).set(now.remaining)
            await self.book.report(partition, now)

    def _physical(self, partition: Partition) -> TopicPartition:
        return TopicPartition(self.kafka.physical(partition.topic), partition.number)


async def _live_first() -> None:
    """Let live events get from the socket to where they take their turn, and their answers out."""
    for _ in range(_LOOP_TURNS):
        await asyncio.sleep(0)


def _decoded(site: Site, sieve: Sieve, batch: Batch) -> list[tuple[Lot, Chunk]]:
    """Return what is to be folded of each partition."""
    sifted = sieve.sift(batch)
    return [
        (site.lots[partition], site.lots[partition].replay.decode(sifted.partitions.get(partition, ()), end))
        for partition, end in batch.next_offsets.items()
    ]


@asynccontextmanager
async def _consumer(kafka: KafkaSettings) -> AsyncIterator[Any]:
    """Open a consumer without a group."""
    consumer: Any = AIOKafkaConsumer(**kafka.client_kwargs(), enable_auto_commit=False, auto_offset_reset="earliest")
    try:
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            raise Retryable(f"Kafka: {error!r}") from error
        yield consumer
    finally:
        await close(consumer)
