"""Laws of the outbox, on the real PostgreSQL and Kafka."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from tidemill_runtime.errors import Poison
from tidemill_runtime.lifecycle import running
from tidemill_runtime.outbox import MAX_RECORD_BYTES, OutboxRelay, OutboxTable
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

MakeTopic = Callable[..., Awaitable[None]]
ReadTopic = Callable[[str], Awaitable[list[Any]]]
TABLE = OutboxTable("things")


@pytest.fixture
async def pool(database: str) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(database, min_size=1, max_size=12) as pool:
        await pool.execute("CREATE SCHEMA things; CREATE TABLE things.object (name text PRIMARY KEY, revision int)")
        await pool.execute(TABLE.ddl())
        await pool.execute(TABLE.ddl())
        yield pool


async def change(pool: Any, name: str) -> None:
    """Raise an object's revision and enqueue its event, as every writer does."""
    async with pool.acquire() as connection, connection.transaction():
        revision = await connection.fetchval(
            "INSERT INTO things.object VALUES ($1, 1) ON CONFLICT (name) DO UPDATE SET revision = object.revision + 1 "
            "RETURNING revision",
            name,
        )
        await TABLE.enqueue(connection, [Outgoing("t", b"%d" % revision, key=name.encode(), headers=[("h", b"\xff")])])


async def test_concurrent_changes_reach_the_topic_in_order_per_key_and_none_is_lost(
    pool: Any, kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    names = ["a", "b", "c"]
    async with Producer(kafka) as producer, running(OutboxRelay(pool, producer, TABLE)) as relay:
        await asyncio.gather(*(change(pool, name) for name in names for _ in range(60)))
        await relay.drained()
        assert producer.written == {Partition("t", 0): 180}
    records = await read_topic("t")
    for name in names:
        assert [int(r.value) for r in records if r.key == name.encode()] == list(range(1, 61))
    assert records[0].headers == (("h", b"\xff"),)


async def test_a_row_that_commits_after_a_later_id_is_still_sent(
    pool: Any, kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    async with Producer(kafka) as producer, running(OutboxRelay(pool, producer, TABLE)) as relay:
        async with pool.acquire() as slow, slow.transaction():
            await TABLE.enqueue(slow, [Outgoing("t", b"first id")])
            await change(pool, "quick")
            await aeventually(lambda: producer.written == {Partition("t", 0): 1})
        await relay.drained()
    assert [record.value for record in await read_topic("t")] == [b"1", b"first id"]


async def test_a_rolled_back_change_sends_nothing_and_no_transaction_is_refused(
    pool: Any, kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t")
    async with Producer(kafka) as producer, running(OutboxRelay(pool, producer, TABLE)) as relay:
        connection = await pool.acquire()
        transaction = connection.transaction()
        await transaction.start()
        await TABLE.enqueue(connection, [Outgoing("t", b"never")])
        await transaction.rollback()
        with pytest.raises(RuntimeError, match="transaction"):
            await TABLE.enqueue(connection, [Outgoing("t", b"never")])
        await pool.release(connection)
        await relay.drained()
        assert producer.written == {}


async def test_of_two_relays_one_works_and_the_other_takes_over(
    pool: Any, kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    async with (
        Producer(kafka) as first,
        Producer(kafka) as second,
        running(OutboxRelay(pool, second, TABLE)) as waiting,
    ):
        async with running(OutboxRelay(pool, first, TABLE)) as also:
            await asyncio.gather(*(change(pool, "a") for _ in range(20)))
            await waiting.drained()
            await also.drained()
        await change(pool, "a")
        await waiting.drained()
    assert [int(record.value) for record in await read_topic("t")] == list(range(1, 22))


async def test_a_relay_outlives_its_connection(
    pool: Any, database: str, kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    async with Producer(kafka) as producer, running(OutboxRelay(pool, producer, TABLE)) as relay:
        await change(pool, "a")
        await relay.drained()
        other = await asyncpg.connect(database)
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        )
        await other.close()
        await change(pool, "a")
        await relay.drained()
    assert [record.value for record in await read_topic("t")] == [b"1", b"2"]


async def test_what_kafka_would_not_take_is_refused_to_its_writer_and_others_go_on(
    pool: Any, kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    async with Producer(kafka) as producer, running(OutboxRelay(pool, producer, TABLE)) as relay:

        async def write(size: int) -> None:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute("INSERT INTO things.object VALUES ($1, 1)", str(size))
                await TABLE.enqueue(connection, [Outgoing("t", b"x" * size, key=b"k")])

        with pytest.raises(Poison, match=f"1,000,001 bytes in t; at most {MAX_RECORD_BYTES:,}"):
            await write(MAX_RECORD_BYTES)
        await write(MAX_RECORD_BYTES - 1)
        assert await pool.fetchval("SELECT count(*) FROM things.object") == 1
        await relay.drained()
    assert [len(record.value) for record in await read_topic("t")] == [MAX_RECORD_BYTES - 1]


async def test_a_record_that_its_topic_refuses_is_waited_on_and_said(
    pool: Any, kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t", **{"max.message.bytes": "10000"})
    async with Producer(kafka) as producer, running(OutboxRelay(pool, producer, TABLE)) as relay:
        async with pool.acquire() as connection, connection.transaction():
            await TABLE.enqueue(connection, [Outgoing("t", b"x" * 20_000, key=b"k")])
        await aeventually(lambda: "MessageSizeTooLarge" in (relay.fault() or ""))
        await pool.execute("DELETE FROM things.outbox WHERE sent_at IS NULL")
        await change(pool, "a")
        await relay.drained()
        assert relay.fault() is None
    assert [record.value for record in await read_topic("t")] == [b"1"]
