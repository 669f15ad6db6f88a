"""The service's two roles, each with a consumer group of its own, and the stage that a barrier waits on."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from math import inf
from typing import Any

from tidemill_features.archive import PREDICTIONS_TOPIC
from tidemill_features.upkeep import Upkeep
from tidemill_runtime.batches import Record, StreamOptions
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import Reached
from tidemill_runtime.redis_client import Client, redis_client
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner
from tidemill_runtime.topic_ids import TopicLook

from tidemill_feature.adapters.builder import Builder, History, LaterHistory
from tidemill_feature.adapters.cluster_store import ring_store
from tidemill_feature.adapters.definition_feed import DefinitionFeed
from tidemill_feature.adapters.keeper import Keeper
from tidemill_feature.adapters.online_role import OnlineRole
from tidemill_feature.adapters.online_stream import OnlinePipeline, Stores
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.registered import Definitions
from tidemill_feature.schemas import Schemas
from tidemill_feature.settings import Settings
from tidemill_feature.sizes import Sizes
from tidemill_feature.uses import TOPIC as MODELS_TOPIC
from tidemill_feature.uses import Uses

# Of what is read from a backlog an entity's shards are written once rather than with every batch.
BEHIND_FLUSH_MS = 5_000
# Whoever waits for the archive waits for a commit; a training run loads its libraries meanwhile.
_OFFLINE_FETCH_BYTES = 1024 * 1024
_OFFLINE_WAIT_MS = 500

Stage = Callable[[Offsets, int], Awaitable[Reached]]


@dataclass(frozen=True, slots=True)
class Role:
    """One consumer group; `topics` says what it reads now."""

    name: str
    runner: StreamRunner[Any, Any]
    topics: Callable[[], Iterable[str]]
    producer: Producer | None = None

    def subscribe(self) -> None:
        """Read what is registered now."""
        self.runner.subscribe(self.topics())

    def stage(self, feed: DefinitionFeed) -> Stage:
        """Return what `WaitProgress` calls for this role."""

        async def reached(offsets: Offsets, event_time_us: int) -> Reached:
            await feed.knows(offsets)
            await self.runner.reached(offsets)
            return Reached(self.producer.written if self.producer else {})

        return reached


@dataclass(frozen=True, slots=True)
class Online:
    """The online role, and what reads need of it."""

    role: Role
    store: RedisStore
    pipeline: OnlinePipeline
    book: ViewBook


@asynccontextmanager
async def open_online(settings: Settings, health: Health, definitions: Definitions) -> AsyncIterator[Online]:
    """Open Redis and the online consumer; the caller runs it where the role is on."""
    async with redis_client(settings.redis) as redis, Producer(settings.kafka) as producer:
        pipeline, stores = online_pipeline(
            definitions, redis, settings.kafka, settings.online_sizes, _history(settings)
        )
        runner = StreamRunner(
            pipeline,
            settings.kafka,
            StreamOptions(
                settings.group,
                max_records=settings.batch_records,
                fetch_wait_ms=settings.fetch_wait_ms,
                behind_flush_ms=BEHIND_FLUSH_MS,
                session_ms=settings.session_ms,
                stall_s=settings.stall_s,
                hop_delay_ms=settings.test_hop_delay_ms,
                seed=settings.test_seed,
            ),
            dead_letters=DeadLetters(producer, settings.kafka, settings.group),
            health=health if "online" in settings.roles else None,
        )
        try:
            async with _kept(settings, definitions, stores):
                yield Online(Role("online", runner, definitions.topics, producer), stores.rings, pipeline, stores.book)
        finally:
            await pipeline.close()


def online_pipeline(
    definitions: Definitions, redis: Client, kafka: KafkaSettings, sizes: Sizes, history: History
) -> tuple[OnlinePipeline, Stores]:
    """Return the online role's pipeline, with a builder beside it, and its stores."""
    rings = ring_store(redis, sizes.project, sizes.group)
    builds = ring_store(redis, sizes.project, f"{sizes.group}.build")
    stores = Stores(rings, builds, ViewBook(redis, sizes.project, sizes.group))
    builder = Builder(builds, stores.book, kafka, sizes, history)
    return OnlinePipeline(definitions, stores, builder, kafka, sizes), stores


@asynccontextmanager
async def _kept(settings: Settings, definitions: Definitions, stores: Stores) -> AsyncIterator[None]:
    """Keep the definitions as the book says; where the online role is on, also end what is no longer folded."""
    uses = Uses()

    def on_version(record: Record) -> None:
        uses.fold(record.key, record.value)

    models = TopicFollower(settings.kafka, MODELS_TOPIC, on_version)
    known = models.caught_up.is_set if "online" in settings.roles else _never
    grace_us = int(settings.old_view_grace_s * 1_000_000)
    keeper = Keeper(definitions, stores.book, stores.rings, uses, settings.project, grace_us, known)
    async with running(models), running(keeper):
        yield


def _never() -> bool:
    return False


def _history(settings: Settings) -> History:
    """Return what reads the offline log; pyiceberg is loaded when something is asked of it."""

    def opened() -> History:
        module = import_module("tidemill_feature.adapters.archived_history")
        found: History = module.ArchivedHistory(settings.postgres.url(), str(settings.warehouse))
        return found

    return LaterHistory(opened)


@asynccontextmanager
async def open_offline(
    settings: Settings, health: Health, definitions: Definitions, feed: DefinitionFeed
) -> AsyncIterator[Role]:
    """Open the offline consumer."""
    # pyiceberg and pyarrow cost 80 MB: they are loaded only where the role is on.
    archive = import_module("tidemill_feature.adapters.archive")
    pipeline = archive.ArchivePipeline(
        settings.postgres.url(),
        str(settings.warehouse),
        definitions.catalogue,
        archive.Limits(
            settings.archive_buffer_bytes,
            settings.upkeep_every_s,
            Upkeep(merge_bytes=settings.upkeep_merge_bytes, keep_s=settings.snapshot_keep_s),
        ),
        OnlineRole(settings.kafka, settings.group, feed.reached),
        TopicLook(settings.kafka),
    )
    runner: StreamRunner[Any, Any] = StreamRunner(
        pipeline,
        settings.kafka,
        StreamOptions(
            settings.offline_group,
            letters_of=settings.group,
            fetch_wait_ms=_OFFLINE_WAIT_MS,
            fetch_min_bytes=_OFFLINE_FETCH_BYTES,
            flush_every_ms=int(settings.archive_every_s * 1000),
            # It waits for the online role, which may be away or busy for longer than any limit that were right here.
            retry_limit_s=inf,
            stall_s=settings.stall_s,
            hop_delay_ms=settings.test_hop_delay_ms,
            seed=settings.test_seed,
        ),
        health=health,
    )
    try:
        async with _measured(settings, definitions, runner):
            yield Role("offline", runner, lambda: archive.archived_topics(definitions.catalogue))
    finally:
        await pipeline.close()


@asynccontextmanager
async def _measured(
    settings: Settings, definitions: Definitions, runner: StreamRunner[Any, Any]
) -> AsyncIterator[None]:
    """Measure skew, where it is on: in the one instance that archives the first partition of the predictions."""
    if not settings.skew_every_s:
        yield
        return
    first, schemas = Partition(PREDICTIONS_TOPIC, 0), Schemas()

    def on_version(record: Record) -> None:
        schemas.fold(record.value)

    meter = import_module("tidemill_feature.adapters.skew_meter")
    async with Producer(settings.kafka) as producer:
        where = meter.Place(settings.postgres.url(), str(settings.warehouse), definitions.catalogue, schemas)
        sampling = meter.Sampling(settings.skew_share, settings.skew_rows_max, settings.skew_events_max)
        schedule = meter.Schedule(
            int(settings.skew_every_s * 1_000_000), settings.skew_pause_s, settings.archive_every_s
        )
        skew = meter.SkewMeter(where, sampling, schedule, producer, lambda: first in runner.positions.next)
        async with running(TopicFollower(settings.kafka, MODELS_TOPIC, on_version)), running(skew):
            yield
