"""WaitProgress stage "join": joined, evaluated, decided and written."""

import asyncio
from collections.abc import Collection, Sequence

import structlog
from aiokafka.errors import KafkaError
from tidemill_runtime.faust_app import FaustApp
from tidemill_runtime.positions import Offsets, Partition
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import Reached
from tidemill_runtime.stream import StreamRunner

from tidemill_monitoring.adapters.following import Following
from tidemill_monitoring.adapters.journal import Journal
from tidemill_monitoring.adapters.policy import Policy
from tidemill_monitoring.clock import EventTimes
from tidemill_monitoring.stepping import Effects

log = structlog.get_logger()
# How long a caller who names no time waits for what the streams held when it asked.
_CATCH_UP_S = 10.0


class JoinStage:
    """Knows every part that a barrier has to wait for; Faust is only waited for where it was given something."""

    def __init__(
        self,
        following: Following,
        runner: StreamRunner[EventTimes, Effects],
        journal: Journal,
        faust: FaustApp,
        policy: Policy,
        producers: Sequence[Producer],
    ) -> None:
        self._following = following
        self._runner = runner
        self._journal = journal
        self._faust = faust
        self._policy = policy
        self._producers = producers

    async def reached(self, offsets: Offsets, event_time_us: int) -> Reached:
        """Return once everything before `offsets` and up to the event time, and what it led to, is in Kafka."""
        await self._following.reached(offsets)
        await self._runner.reached(offsets)
        await self._journal.published()
        clock_us = await self._journal.reached_time(event_time_us)
        await self._faust.reached(self._journal.trigger_end)
        await self._policy.settled()
        written: dict[Partition, int] = {}
        for producer in self._producers:
            for partition, end in producer.written.items():
                written[partition] = max(end, written.get(partition, 0))
        return Reached(written, clock_us)

    async def caught_up(self, partitions: Collection[Partition]) -> None:
        """Return once the clock counts everything that these partitions hold now, or after ten seconds."""
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                await self._runner.caught_up(partitions)
        except (TimeoutError, KafkaError) as error:
            log.warning("not_caught_up", error=repr(error))
