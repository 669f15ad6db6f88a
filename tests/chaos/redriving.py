"""Dead letters that are sent again, as `tidemill dead-letters redrive` does, judged as ingestion would."""

import asyncio
import time
from collections.abc import Callable, Sequence

from tidemill.clients.dead_letters import Deed, letter_topics, producing
from tidemill.clients.judging import Judge
from tidemill.clients.letters import Selection
from tidemill.clients.redrive import Redrive, Report
from tidemill.clients.topics import KafkaTarget, TopicError
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2
from tidemill_ingestion.checking import check_events
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually


class Redriving:
    """Redrives of everything that is open; `stream` returns what is registered now."""

    def __init__(self, kafka: KafkaSettings, stream: Callable[[str], definition.Stream]) -> None:
        self._target = KafkaTarget(kafka.bootstrap, kafka.topic_prefix)
        self._stream = stream
        self._runs = 0

    async def at_once(self, runs: int) -> list[Report]:
        """Let so many people redrive at the same time."""
        return await asyncio.gather(*(self._again() for _ in range(runs)))

    async def left(self) -> int:
        """Return how many records could be sent again now."""
        return (await self._run(dry_run=True)).accepted

    async def _again(self) -> Report:
        """Redrive; where Kafka was not to be reached, do it again, as whoever reads the message would."""

        async def report() -> Report | None:
            try:
                return await self._run(dry_run=False)
            except TopicError as error:
                if error.reached:
                    raise
                return None

        found = await aeventually(report, 60, claim="Kafka takes what is redriven")
        assert found is not None
        return found

    async def _run(self, *, dry_run: bool) -> Report:
        self._runs += 1
        judge = Judge(self._target, self._check, self._stream, max_attempts=100, allow_late=False)
        run = Redrive(self._target, judge, Deed("ada", "mended", f"run-{self._runs}"), dry_run=dry_run, limit=10_000)
        selection = Selection(tuple(await letter_topics(self._target, None)))
        if dry_run:
            return await run.run(selection, None, _unheard)
        async with producing(self._target) as producer:
            return await run.run(selection, producer, _unheard)

    def _check(self, stream: str, events: Sequence[ingestion_pb2.Event]) -> list[ingestion_pb2.Verdict]:
        return check_events(self._stream(stream), events, time.time_ns() // 1000, ignore_unknown_fields=True)


def _unheard(_done: int, _total: int) -> None:
    """Whoever redrives here watches no progress."""
