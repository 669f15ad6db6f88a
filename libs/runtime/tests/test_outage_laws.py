"""Kafka and PostgreSQL go away and come back, on servers of this module's own; everything recovers without a human."""

import asyncio
from typing import Any

import asyncpg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from tidemill_runtime.batches import Assignment, Batch, Pipeline, Record, Restored, Step, StreamOptions
from tidemill_runtime.errors import Retryable
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.lifecycle import running
from tidemill_runtime.outbox import OutboxRelay, OutboxTable
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers


class Counting(Pipeline[None, list[bytes]]):
    """Keeps what it applied."""

    def __init__(self) -> None:
        self.applied: list[bytes] = []

    async def restore(self, assignment: Assignment) -> Restored[None]:
        return Restored(None)

    def step(self, state: None, batch: Batch, now_us: int) -> Step[None, list[bytes]]:
        return Step(None, [record.value or b"" for record in batch])

    async def apply(self, effects: list[bytes]) -> None:
        self.applied += effects


async def sent(producer: Producer, value: bytes) -> None:
    """Send until acknowledged, as a caller of ingestion does."""
    while True:
        try:
            await producer.send(Outgoing("t", value))
        except Retryable:
            continue
        return


async def test_streams_followers_and_producers_outlive_a_kafka_outage(own_stack: Any) -> None:
    kafka = KafkaSettings(bootstrap=own_stack.endpoints.kafka, topic_prefix="outage.")
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    await admin.create_topics([NewTopic("outage.t", 1, 1)])
    await admin.close()
    pipeline, followed = Counting(), list[bytes]()

    def fold(record: Record) -> None:
        followed.append(record.value or b"")

    options = StreamOptions("outage", stall_s=10.0)
    async with (
        Producer(kafka, ack_timeout_s=5) as producer,
        running(StreamRunner(pipeline, kafka, options, topics=["t"])) as runner,
        running(TopicFollower(kafka, "t", fold)) as follower,
    ):
        await sent(producer, b"before")
        await runner.reached(producer.written)
        await asyncio.to_thread(own_stack.stop_process, "kafka")
        during = asyncio.create_task(sent(producer, b"during"))
        # Longer than the stall limit: an outage is not a stall.
        await asyncio.wait({during}, timeout=12)
        assert not during.done()
        await asyncio.to_thread(own_stack.start_process, "kafka")
        async with asyncio.timeout(120):
            await during
            await sent(producer, b"after")
            await runner.reached(producer.written)
            await follower.reached(producer.written)
    assert pipeline.applied[0] == b"before"
    assert set(pipeline.applied) == {b"before", b"during", b"after"}
    assert followed == pipeline.applied


async def test_the_outbox_outlives_an_outage_of_postgresql(own_stack: Any) -> None:
    kafka = KafkaSettings(bootstrap=own_stack.endpoints.kafka, topic_prefix="outage-pg.")
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    await admin.create_topics([NewTopic("outage-pg.t", 1, 1)])
    await admin.close()
    table = OutboxTable("things")
    async with asyncpg.create_pool(own_stack.endpoints.postgres_dsn, min_size=1, max_size=4) as pool:
        await pool.execute("CREATE SCHEMA IF NOT EXISTS things")
        await pool.execute(table.ddl())
        async with Producer(kafka) as producer, running(OutboxRelay(pool, producer, table)) as relay:
            await enqueue(pool, table, b"before")
            await relay.drained()
            await asyncio.to_thread(own_stack.stop_process, "postgres")
            with pytest.raises(Retryable):
                await relay.drained()
            await asyncio.to_thread(own_stack.start_process, "postgres")

            async def enqueued() -> bool:
                await enqueue(pool, table, b"after")
                return True

            away = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
            await aeventually(enqueued, claim="a change can be written again", tolerate=away)
            async with asyncio.timeout(60):
                await relay.drained()
            assert sum(producer.written.values()) == 2


async def enqueue(pool: Any, table: OutboxTable, value: bytes) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await table.enqueue(connection, [Outgoing("t", value)])
