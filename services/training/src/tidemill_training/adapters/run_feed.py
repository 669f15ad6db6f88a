"""Where records of runs go: the topic, and whoever watches a run in this process."""

import asyncio
from contextlib import suppress

from tidemill_contracts.canonical import to_json
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.producer import Outgoing, Producer

from tidemill_training.run_records import TOPIC


class RunFeed:
    """Publishes records, and wakes those who wait for a change."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self._change = asyncio.Event()

    async def publish(self, record: training.RunRecord) -> None:
        """Write a record to the topic. Raises `Retryable` where Kafka does not acknowledge it."""
        key = record.run_id or record.request_id
        headers = [("content-type", b"application/json")]
        await self._producer.send(Outgoing(TOPIC, to_json(record), key.encode(), headers))

    def wake(self) -> None:
        """Wake who waits: something in the ledger changed."""
        self._change.set()
        self._change = asyncio.Event()

    async def changed(self, at_most_s: float) -> None:
        """Return at the next change, or after a while, since another replica's changes are not heard here."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                await self._change.wait()
