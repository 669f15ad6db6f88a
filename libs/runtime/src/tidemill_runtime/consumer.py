"""Opening an aiokafka consumer while Kafka may be away, committing in the background, hearing of rebalances."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from tidemill_contracts.kafka_refusals import refusal

from tidemill_runtime.retries import delays
from tidemill_runtime.settings import KafkaSettings

T = TypeVar("T")

log = structlog.get_logger(__name__)


async def sleep_unless(stopping: asyncio.Event, seconds: float) -> None:
    """Wait, but no longer than until `stopping` is set."""
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


async def unless(stopping: asyncio.Event, wait: Awaitable[T]) -> T | None:
    """Return what a wait brings; None, and the wait is given up, where `stopping` is set first."""
    waiting, stopped = asyncio.ensure_future(wait), asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()
        stopped.cancel()


async def connect(
    kafka: KafkaSettings,
    options: Mapping[str, Any],
    stopping: asyncio.Event,
    fault: Callable[[str], None],
) -> Any:
    """Return a started consumer, trying until Kafka answers; None where `stopping` was set first."""
    for delay_s in delays(0.2):
        if stopping.is_set():
            break
        consumer = AIOKafkaConsumer(**kafka.client_kwargs(), **options)
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            await close(consumer)
            why = await refusal(kafka.client_kwargs()) or f"Kafka: {error!r}"
            fault(why)
            log.warning("consumer_waits_for_kafka", error=why)
            await sleep_unless(stopping, delay_s)
        except asyncio.CancelledError:
            await close(consumer)
            raise
        else:
            return consumer
    return None


async def close(consumer: Any, timeout_s: float = 5.0) -> None:
    """Stop a consumer; with Kafka away this is given up after a while, since leaving the group is a courtesy."""
    stopping = asyncio.ensure_future(consumer.stop())
    done, _ = await asyncio.wait({stopping}, timeout=timeout_s)
    if not done:
        stopping.cancel()
        log.warning("consumer_abandoned")
    elif (error := stopping.exception()) is not None:
        log.warning("consumer_stop_failed", error=repr(error))


class Committer:
    """Commits the newest durable offsets, at most once per interval, off the path of the batches."""

    def __init__(self, consumer: Any, every_ms: int) -> None:
        self._consumer = consumer
        self._every_s = every_ms / 1000
        self._offsets: dict[TopicPartition, int] = {}
        self._wanted = asyncio.Event()
        self._one = asyncio.Lock()

    def durable(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Take note of offsets before which everything is durable."""
        self._offsets.update(offsets)
        self._wanted.set()

    def forget(self) -> None:
        """Drop what is not committed: the partitions are no longer ours."""
        self._offsets.clear()

    async def run(self) -> None:
        """Commit until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if not await self.commit():
                self._wanted.set()
            await asyncio.sleep(self._every_s)

    async def commit(self) -> bool:
        """Commit now; False where it should be tried again. What stays uncommitted is only applied once more."""
        async with self._one:
            offsets, self._offsets = self._offsets, {}
            if not offsets:
                return True
            try:
                await self._consumer.commit(offsets)
            except (CommitFailedError, IllegalStateError) as error:
                log.info("commit_of_lost_partitions", error=repr(error))
            except KafkaError as error:
                log.warning("commit_failed", error=repr(error))
                self._offsets = offsets | self._offsets
                return False
            return True


class GroupListener:
    """Passes group events on; registered with aiokafka's abstract class, which has no types to inherit."""

    def __init__(self, revoked: Callable[[], Awaitable[None]], assigned: Callable[[], None]) -> None:
        self._revoked = revoked
        self._assigned = assigned

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        # Let the client's heartbeat begin: cancelled before that, it would end the task that looks after the group.
        await asyncio.sleep(0)
        await self._revoked()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._assigned()


ConsumerRebalanceListener.register(GroupListener)
