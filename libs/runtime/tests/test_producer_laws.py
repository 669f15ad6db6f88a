"""Laws of the producer, on the real Kafka."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from tidemill_contracts.kafka_admin import add_partitions, create_topics
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import stream_topics
from tidemill_runtime.errors import Overloaded, Poison, Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Placed, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.ports import free_address

pytestmark = pytest.mark.servers

MakeTopic = Callable[..., Awaitable[None]]
ReadTopic = Callable[[str], Awaitable[list[Any]]]


async def test_records_lie_in_the_order_they_were_given_and_written_names_the_end(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    values = [b"%d" % n for n in range(500)]
    async with Producer(kafka) as producer:
        placed = await producer.send_all([Outgoing("t", value, headers=[("h", b"v")]) for value in values])
        assert producer.written == {Partition("t", 0): 500}
    assert [one.offset for one in placed] == list(range(500))
    assert [record.value for record in await read_topic("t")] == values


async def test_a_producer_whose_opening_is_given_up_leaves_nothing_behind() -> None:
    opening = asyncio.ensure_future(Producer(KafkaSettings(bootstrap=free_address())).__aenter__())
    await asyncio.sleep(0)
    assert "producer-connect" in {task.get_name() for task in asyncio.all_tasks()}
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_many_records_lie_where_single_ones_would_in_their_order_over_more_than_one_batch(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    for topic in ("one by one", "packed"):
        await make_topic(topic.replace(" ", "-"), partitions=3)
    # Three times what one batch holds.
    values = [b"%d " % n + b"x" * 4_000 for n in range(600)]
    keys = [b"key-%d" % (n % 17) for n in range(600)]
    async with Producer(kafka) as producer:
        singly = [
            await producer.send(Outgoing("one-by-one", value, key)) for value, key in zip(values, keys, strict=True)
        ]
        together = await producer.send_all(
            [Outgoing("packed", value, key, [("h", b"v")]) for value, key in zip(values, keys, strict=True)]
        )
        assert producer.written == {
            Partition(topic, number): sum(one.partition == number for one in singly)
            for topic in ("one-by-one", "packed")
            for number in range(3)
        }
    assert [(one.partition, one.offset) for one in together] == [(one.partition, one.offset) for one in singly]
    lies = {(record.partition, record.offset): record for record in await read_topic("packed")}
    assert [lies[one.partition, one.offset].value for one in together] == values
    assert {tuple(record.headers) for record in lies.values()} == {(("h", b"v"),)}


@pytest.mark.parametrize("count", [1, 50])
async def test_records_that_go_alone_lie_where_they_were_given_among_the_others(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic, count: int
) -> None:
    await make_topic("t", partitions=2)
    records = [Outgoing("t", b"%d" % n, partition=1) for n in range(count)]
    # Neither a key nor a value; and one that is larger than the topic and the producer take, but for compression.
    records += [Outgoing("t", None, partition=1, timestamp_ms=7)]
    records += [Outgoing("t", b"x" * 5_000_000, b"k", [("h", b"v")], partition=1, compress=True)]
    records += [Outgoing("t", b"last", partition=1)]
    async with Producer(kafka) as producer:
        placed = await producer.send_all(records)
        keyed = await producer.send(Outgoing("t", b"x" * 5_000_000, b"k", compress=True))
        assert (await producer.send(Outgoing("t", b"small", b"k"))).partition == keyed.partition
        lacking = await producer.send_each([Outgoing("t", None, partition=7)])
        assert isinstance(lacking[0], Retryable)
    assert [(one.partition, one.offset) for one in placed] == [(1, offset) for offset in range(count + 3)]
    found = [one for one in await read_topic("t") if one.partition == 1][: count + 3]
    assert [(one.key, one.value, list(one.headers)) for one in found] == [
        (one.key, one.value, list(one.headers)) for one in records
    ]
    assert found[count].timestamp == 7


@pytest.mark.parametrize("count", [1, 100])
async def test_a_partition_that_was_added_a_moment_ago_takes_records_and_one_that_is_not_there_none(
    kafka: KafkaSettings, count: int
) -> None:
    client, prefix = kafka.client_kwargs(), kafka.topic_prefix
    await create_topics(client, stream_topics([("t", 1)]), prefix)
    async with Producer(kafka) as producer:
        await producer.send(Outgoing("events.t", b"first"))
        assert await add_partitions(client, stream_topics([("t", 2)]), prefix) == [f"{prefix}events.t"]
        assert await add_partitions(client, stream_topics([("t", 2)]), prefix) == []
        placed = await producer.send_all([Outgoing("events.t", b"x", partition=1)] * count)
        assert [(one.partition, one.offset) for one in placed] == [(1, offset) for offset in range(count)]
        outcomes = await producer.send_each([Outgoing("events.t", b"x", partition=7)] * count)
        assert all(isinstance(one, Retryable) and "no partition 7" in str(one) for one in outcomes)


async def test_one_oversized_record_is_poison_and_its_neighbours_are_written(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    async with Producer(kafka, max_request_bytes=10_000) as producer:
        good, bad, last = await producer.send_each(
            [Outgoing("t", b"a"), Outgoing("t", b"x" * 20_000), Outgoing("t", b"b")]
        )
    assert isinstance(good, Placed)
    assert isinstance(last, Placed)
    assert isinstance(bad, Poison)
    assert bad.reason is Reason.OVERSIZED
    assert [record.value for record in await read_topic("t")] == [b"a", b"b"]


async def refused_for_its_size(producer: Producer, records: Sequence[Outgoing]) -> None:
    for outcome in await producer.send_each(records):
        assert isinstance(outcome, Poison)
        assert outcome.reason is Reason.OVERSIZED


@pytest.mark.parametrize(("limit", "size", "count"), [(300_000, 400_000, 1), (20_000, 1_000, 40)])
async def test_records_after_a_batch_that_the_topic_refuses_for_its_size_are_written(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic, limit: int, size: int, count: int
) -> None:
    await make_topic("t", **{"max.message.bytes": str(limit)})
    refused = [Outgoing("t", b"x" * size)] * count
    async with Producer(kafka) as producer:
        await refused_for_its_size(producer, refused)
        await producer.send_all([Outgoing("t", b"a")] * 3)
        await refused_for_its_size(producer, refused)
        await refused_for_its_size(producer, refused)
        await producer.send_all([Outgoing("t", b"b")] * 40)
        await producer.send(Outgoing("t", b"c"))
    assert [record.value for record in await read_topic("t")] == [b"a"] * 3 + [b"b"] * 40 + [b"c"]


async def test_records_that_wait_behind_one_that_the_topic_refuses_for_its_size_are_written(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t", partitions=2, **{"max.message.bytes": "300000"})
    async with Producer(kafka) as producer:
        for _ in range(10):
            await asyncio.gather(
                *(producer.send(Outgoing("t", b"a", partition=number % 2)) for number in range(20)),
                refused_for_its_size(producer, [Outgoing("t", b"x" * 400_000, partition=1)]),
                *(producer.send(Outgoing("t", b"b", partition=number % 2)) for number in range(20)),
            )
    found = [(record.partition, record.value) for record in await read_topic("t")]
    assert Counter(found) == {(number, value): 100 for number in (0, 1) for value in (b"a", b"b")}


async def test_past_the_bound_nothing_is_taken_in(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic
) -> None:
    await make_topic("t")
    async with Producer(kafka, max_in_flight=10) as producer:
        first = asyncio.create_task(producer.send_all([Outgoing("t", b"1")] * 10))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await producer.send_all([Outgoing("t", b"2")])
        await first
        await producer.send_all([Outgoing("t", b"3")])
    assert [record.value for record in await read_topic("t")] == [b"1"] * 10 + [b"3"]


async def test_an_unknown_topic_is_retryable_within_the_limit(kafka: KafkaSettings) -> None:
    async with Producer(kafka, ack_timeout_s=1.0) as producer:
        with pytest.raises(Retryable):
            await producer.send(Outgoing("nowhere", b"x"))


@pytest.mark.timeout(60)
async def test_a_service_opens_and_closes_while_kafka_is_away() -> None:
    kafka = KafkaSettings(bootstrap=free_address())
    async with Producer(kafka, ack_timeout_s=0.5) as producer:
        assert "Kafka" in (producer.fault() or "")
        with pytest.raises(Retryable):
            await producer.send(Outgoing("t", b"x"))
