"""Follows the registry's definitions and keeps the consumers subscribed to what is registered."""

import asyncio
from collections.abc import Callable, Iterable

import structlog
from tidemill_runtime.batches import Record
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import Component, running
from tidemill_runtime.positions import Offsets
from tidemill_runtime.settings import KafkaSettings

from tidemill_feature.registered import Definitions

TOPIC = "registry.pipelines.v1"

log = structlog.get_logger(__name__)


class DefinitionFeed(Component):
    """Folds definitions; `on_change` is called after the topic was read to its end, and after every change."""

    def __init__(
        self, definitions: Definitions, kafka: KafkaSettings, on_change: Callable[[], None], health: Health
    ) -> None:
        self._definitions = definitions
        self._on_change = on_change
        self._follower = TopicFollower(kafka, TOPIC, self._fold, health=health)
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._known: set[str] = set()
        self._news = asyncio.Condition()

    def stop(self) -> None:
        """Follow no further."""
        self._stopping.set()
        self._changed.set()

    async def run(self) -> None:
        """Follow until `stop`."""
        async with running(self._follower):
            await _either(self._follower.caught_up, self._stopping)
            self._definitions.complete = self._follower.caught_up.is_set()
            while not self._stopping.is_set():
                self._changed.clear()
                self._on_change()
                async with self._news:
                    self._known = set(self._definitions.topics())
                    self._news.notify_all()
                await self._changed.wait()

    async def knows(self, offsets: Offsets) -> None:
        """Return once every stream among these topics is registered here: they may have been written a moment ago."""
        wanted = {partition.topic for partition in offsets if is_stream(partition.topic)}
        async with self._news:
            await self._news.wait_for(lambda: wanted <= self._known)

    async def reached(self, offsets: Offsets) -> None:
        """Return once the definitions before these offsets of their topic are folded."""
        await self._follower.reached(offsets)

    def _fold(self, record: Record) -> None:
        if not self._definitions.fold(record.value):
            return
        for view, fault in self._definitions.faults.items():
            log.error("view_cannot_be_computed", view=view, fault=fault)
        self._changed.set()


def is_stream(topic: str) -> bool:
    """Say whether a topic carries a user's stream."""
    return topic.startswith("events.") and not topic.endswith(".dlq")


async def _either(*events: asyncio.Event) -> None:
    waits: Iterable[asyncio.Task[bool]] = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
