"""Laws of the follower, on the real Kafka."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Record
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.eventually import aeventually

pytestmark = pytest.mark.servers

MakeTopic = Callable[..., Awaitable[None]]


async def test_a_follower_folds_what_was_there_is_caught_up_and_goes_on(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("state", **{"cleanup.policy": "compact"})
    folded: dict[bytes | None, bytes | None] = {}

    def fold(record: Record) -> None:
        folded[record.key] = record.value

    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("state", b"%d" % n, key=b"%d" % (n % 3)) for n in range(30)])
        async with running(TopicFollower(kafka, "state", fold)) as follower:
            await follower.caught_up.wait()
            assert folded == {b"0": b"27", b"1": b"28", b"2": b"29"}
            await producer.send(Outgoing("state", None, key=b"1"))
            await follower.reached(producer.written)
            assert folded[b"1"] is None


async def test_an_empty_topic_is_caught_up_at_once(kafka: KafkaSettings, make_topic: MakeTopic) -> None:
    await make_topic("state")
    follower = TopicFollower(kafka, "state", lambda record: None, fetch_wait_ms=60_000)
    async with asyncio.timeout(30), running(follower):
        await follower.caught_up.wait()
        assert follower.fault() is None


async def test_a_topic_that_comes_later_is_waited_for(kafka: KafkaSettings, make_topic: MakeTopic) -> None:
    async with running(TopicFollower(kafka, "state", lambda record: None)) as follower:
        await aeventually(lambda: "does not exist yet" in (follower.fault() or ""))
        assert not follower.caught_up.is_set()
        await make_topic("state")
        await aeventually(follower.caught_up.is_set)


async def test_a_record_that_takes_time_counts_only_when_it_has_taken_effect(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("state")
    attempts: list[int] = []
    effects: list[int] = []

    async def fold(record: Record) -> None:
        attempts.append(record.offset)
        if record.offset == 0:
            raise Poison(Reason.UNDECODABLE, "not ours")
        if len(attempts) < 4:
            raise Retryable("not yet")
        effects.append(record.offset)

    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("state", b"a"), Outgoing("state", b"b")])
        async with running(TopicFollower(kafka, "state", fold)) as follower:
            await follower.reached({Partition("state", 0): 2})
            assert (attempts, effects) == ([0, 1, 1, 1], [1])
