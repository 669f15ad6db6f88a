"""Looks whether the streams' topics are still those that events were written to."""

import asyncio

import structlog
from tidemill_runtime.consumer import sleep_unless
from tidemill_runtime.errors import Retryable
from tidemill_runtime.lifecycle import Component
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.topic_ids import TopicLook

from tidemill_ingestion.gates import Gates

# How long a topic that was made anew may stay unnoticed.
_LOOK_S = 1.0

log = structlog.get_logger(__name__)


class TopicWatch(Component):
    """Lets gates forget what went to a topic that is gone; a `Component` for `running`."""

    def __init__(self, gates: Gates, kafka: KafkaSettings) -> None:
        self._gates = gates
        self._look = TopicLook(kafka)
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Look no further."""
        self._stopping.set()

    async def run(self) -> None:
        """Look until `stop`."""
        try:
            while not self._stopping.is_set():
                await self._once()
                await sleep_unless(self._stopping, _LOOK_S)
        finally:
            await self._look.close()

    async def _once(self) -> None:
        try:
            found = await self._look.known([gate.topic for gate in self._gates])
        except Retryable as error:
            # The producer meets the same, and says so.
            log.info("topics_not_looked_at", error=str(error))
            return
        for stream in self._gates.follow({name: topic.id for name, topic in found.items()}):
            log.error("the_log_is_another_one", stream=stream, then="what it accepted before is no repeat any more")
