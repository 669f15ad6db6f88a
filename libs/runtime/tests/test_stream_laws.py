"""Laws of the stream runner, on the real Kafka."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from random import Random
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from tidemill_contracts import dead_letters as dlq
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import stream_topics
from tidemill_runtime.batches import Assignment, Batch, Fetch, Pipeline, Record, Refused, Restored, Step, StreamOptions
from tidemill_runtime.consumer import GroupListener
from tidemill_runtime.dead_letters import DeadLetterLimit, DeadLetters
from tidemill_runtime.errors import Fatal, Poison, Retryable, Stalled, StateLost
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Partition
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_runtime.stream import StreamRunner
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.topic_deletion import delete_topics

pytestmark = pytest.mark.servers

MakeTopic = Callable[..., Awaitable[None]]
ReadTopic = Callable[[str], Awaitable[list[Any]]]
Committed = Callable[..., Awaitable[int]]
Place = tuple[str, int, int]

OPTIONS = StreamOptions("laws", commit_every_ms=20)


def decode(record: Record) -> bytes:
    if record.value == b"bad":
        raise Poison(Reason.UNDECODABLE, "this one is bad", field="value")
    return record.value or b""


class Collecting(Pipeline[int, list[bytes]]):
    """Keeps what it applied; fails as told."""

    def __init__(self, failures: list[Exception] | None = None, restoring: Exception | None = None) -> None:
        self.applied: list[bytes] = []
        self.assignments: list[Assignment] = []
        self.flushes = 0
        self.failures = failures or []
        self.restoring = restoring
        self.start: dict[Partition, int] = {}

    async def restore(self, assignment: Assignment) -> Restored[int]:
        self.assignments.append(assignment)
        if self.restoring is not None:
            raise self.restoring
        return Restored(0, self.start)

    def step(self, state: int, batch: Batch, now_us: int) -> Step[int, list[bytes]]:
        decoded, refused = batch.decode(decode)
        values = [value for found in decoded.values() for value in found]
        return Step(state + len(values), values, refused)

    async def apply(self, effects: list[bytes]) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.applied += effects

    async def flush(self) -> None:
        self.flushes += 1


async def fill(producer: Producer, topic: str, values: list[bytes]) -> None:
    await producer.send_all([Outgoing(topic, value, key=b"k") for value in values])


async def test_every_record_is_applied_once_and_committed_on_stop(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed
) -> None:
    await make_topic("t")
    first, second = Collecting(), Collecting()
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"%d" % n for n in range(100)])
        async with running(StreamRunner(first, kafka, OPTIONS, topics=["t"])) as runner:
            await runner.reached(producer.written)
        assert await committed("t") == 100
        await fill(producer, "t", [b"last"])
        async with running(StreamRunner(second, kafka, OPTIONS, topics=["t"])) as runner:
            await runner.reached(producer.written)
    assert first.applied == [b"%d" % n for n in range(100)]
    assert second.applied == [b"last"]


async def test_poison_goes_to_the_dead_letters_with_its_bytes_untouched_before_the_commit(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic, committed: Committed
) -> None:
    await make_topic("events.s")
    await make_topic("events.s.dlq")
    pipeline = Collecting()
    headers = [("h", b"\xff\x00"), ("h", b"twice")]
    async with Producer(kafka) as producer:
        await fill(producer, "events.s", [b"good"])
        await producer.send(Outgoing("events.s", b"bad", key=b"\xfe", headers=headers))
        letters = DeadLetters(producer, kafka, "laws")
        runner = StreamRunner(pipeline, kafka, OPTIONS, topics=["events.s"], dead_letters=letters)
        async with running(runner):
            await runner.reached({Partition("events.s", 0): 2})
    assert pipeline.applied == [b"good"]
    (letter,) = await read_topic("events.s.dlq")
    assert (letter.key, letter.value) == (b"\xfe", b"bad")
    assert list(letter.headers[:2]) == headers
    ours = dict(letter.headers[2:])
    assert ours[dlq.REASON] == b"undecodable"
    assert ours[dlq.TOPIC] == b"events.s"
    assert ours[dlq.OFFSET] == b"1"
    assert ours[dlq.GROUP] == b"laws"
    assert ours[dlq.ATTEMPT] == b"1"
    assert await committed("events.s") == 2


MEBIBYTE = 1024 * 1024


class Refusing(Collecting):
    """Refuses everything but what is good."""

    def step(self, state: int, batch: Batch, now_us: int) -> Step[int, list[bytes]]:
        refused = [Refused(one, Poison(Reason.OVERSIZED, "y" * 5_000)) for one in batch if one.value != b"good"]
        return Step(state, [b"good"] * (batch.count - len(refused)), refused)


@pytest.fixture
async def large_topics(make_topic: MakeTopic) -> None:
    """A topic that takes what its producer likes, and its dead letters as the catalogue has them."""
    (dead,) = (topic for topic in stream_topics([("s", 1)]) if topic.name.endswith(".dlq"))
    assert dead.config()["max.message.bytes"] == str(dlq.MAX_LETTER_BYTES)
    await make_topic("events.s", **{"max.message.bytes": str(20 * MEBIBYTE)})
    await make_topic(dead.name, **dead.config())


async def put(kafka: KafkaSettings, record: Outgoing, *, compressed: bool = False) -> None:
    """Write a record as producers of others may: without key and value too, and compressed."""
    size = {"max_request_size": 20 * MEBIBYTE, "max_batch_size": 20 * MEBIBYTE}
    async with AIOKafkaProducer(
        **kafka.client_kwargs(), **size, compression_type="gzip" if compressed else None
    ) as client:
        batch = client.create_batch()
        batch.append(key=record.key, value=record.value, timestamp=None, headers=list(record.headers))
        await (await client.send_batch(batch, kafka.physical(record.topic), partition=0))


RECORDS = {
    "as large as a topic takes by default": (Outgoing("events.s", b"x" * (MEBIBYTE - 100)), False),
    "large only once it is unpacked": (Outgoing("events.s", b"x" * 3 * MEBIBYTE, b"k", [("h", b"1")]), True),
    "large headers that are small when packed": (Outgoing("events.s", b"x", b"k", [("h", b"1" * 3 * MEBIBYTE)]), True),
    "without key and value": (Outgoing("events.s", None), False),
    "with headers that are null": (
        Outgoing("events.s", b"x", b"k", [(name, None) for name in sorted(dlq.OURS - {dlq.REDRIVEN_FOR})]),  # type: ignore[misc]
        False,
    ),
}


@pytest.mark.usefixtures("large_topics")
@pytest.mark.parametrize("kind", RECORDS)
async def test_every_record_that_a_topic_takes_fits_its_dead_letters_and_holds_up_no_other(
    kafka: KafkaSettings, read_topic: ReadTopic, kind: str
) -> None:
    record, compressed = RECORDS[kind]
    await put(kafka, record, compressed=compressed)
    letter = await dead_letter(kafka, read_topic)
    assert (letter.key, letter.value) == (record.key, record.value)
    assert list(letter.headers[: len(record.headers)]) == list(record.headers)
    assert dlq.left_out(letter.headers) is None


@pytest.mark.usefixtures("large_topics")
@pytest.mark.parametrize("size", [3 * MEBIBYTE, 6 * MEBIBYTE])
async def test_a_record_that_fits_no_dead_letter_leaves_its_place_its_reason_and_what_tells_its_bytes(
    kafka: KafkaSettings, read_topic: ReadTopic, size: int
) -> None:
    value = Random(size).randbytes(size)
    await put(kafka, Outgoing("events.s", value, b"k", [("h", b"1")]))
    before = cut_letters()
    letter = await dead_letter(kafka, read_topic)
    assert cut_letters() == before + 1
    assert (letter.key, letter.value, letter.headers[0]) == (b"k", None, ("h", b"1"))
    assert dlq.left_out(letter.headers) == sha256(value).hexdigest().encode()
    said = dict(letter.headers)
    assert (said[dlq.VALUE_BYTES], said[dlq.REASON]) == (str(size).encode(), b"oversized")
    assert (said[dlq.TOPIC], said[dlq.PARTITION], said[dlq.OFFSET]) == (b"events.s", b"0", b"0")


def cut_letters() -> float:
    labels = {"group": "laws", "topic": "events.s.dlq"}
    return REGISTRY.get_sample_value("tidemill_dead_letters_cut_total", labels) or 0


async def dead_letter(kafka: KafkaSettings, read_topic: ReadTopic) -> Any:
    """Refuse the record that lies in the topic, and apply a good one behind it; return the letter."""
    pipeline = Refusing()
    async with asyncio.timeout(60), Producer(kafka) as producer:
        await producer.send(Outgoing("events.s", b"good"))
        letters = DeadLetters(producer, kafka, "laws")
        async with running(StreamRunner(pipeline, kafka, OPTIONS, topics=["events.s"], dead_letters=letters)) as runner:
            await runner.reached({Partition("events.s", 0): 2})
    assert pipeline.applied == [b"good"]
    (letter,) = await read_topic("events.s.dlq")
    return letter


async def test_a_topic_full_of_poison_stops_the_service_and_is_not_drained(
    kafka: KafkaSettings, make_topic: MakeTopic, read_topic: ReadTopic, committed: Committed
) -> None:
    await make_topic("events.s")
    await make_topic("events.s.dlq")
    async with Producer(kafka) as producer:
        await fill(producer, "events.s", [b"bad"] * 30)
        letters = DeadLetters(producer, kafka, "laws", limit=DeadLetterLimit(run=20))
        runner = StreamRunner(Collecting(), kafka, OPTIONS, topics=["events.s"], dead_letters=letters)
        with pytest.raises(Fatal, match="undecodable"):
            async with running(runner):
                await asyncio.Event().wait()
    assert await read_topic("events.s.dlq") == []
    assert await committed("events.s") == -1


@pytest.mark.parametrize("size", [5_000, 500])
async def test_a_stream_of_which_a_fifth_is_bad_goes_on(kafka: KafkaSettings, make_topic: MakeTopic, size: int) -> None:
    await make_topic("events.s")
    await make_topic("events.s.dlq")
    pipeline, options = Collecting(), StreamOptions("laws", max_records=size)
    async with asyncio.timeout(60), Producer(kafka) as producer:
        await fill(producer, "events.s", [b"bad" if n % 5 == 0 else b"good" for n in range(10_000)])
        letters = DeadLetters(producer, kafka, "laws")
        runner = StreamRunner(pipeline, kafka, options, topics=["events.s"], dead_letters=letters)
        async with running(runner):
            await runner.reached({Partition("events.s", 0): 10_000})
    assert pipeline.applied == [b"good"] * 8_000


async def test_retryable_repeats_the_same_effects_and_loses_nothing(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t")
    pipeline = Collecting([Retryable("not yet"), Retryable("not yet"), Retryable("not yet")])
    with capture_logs() as logged:
        await _retries(kafka, pipeline)
    assert pipeline.applied == [b"a", b"b", b"c"]
    assert [one["fault"] for one in logged if one["event"] == "consumer_waits"] == ["retrying: not yet"]


async def _retries(kafka: KafkaSettings, pipeline: Collecting) -> None:
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"a", b"b"])
        async with running(StreamRunner(pipeline, kafka, OPTIONS, topics=["t"])) as runner:
            await runner.reached(producer.written)
            assert runner.fault() is None
            await fill(producer, "t", [b"c"])
            await runner.reached(producer.written)


async def test_retries_that_are_exhausted_end_the_service_without_a_commit(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed
) -> None:
    await make_topic("t")
    pipeline = Collecting([Retryable("never") for _ in range(100)])
    options = StreamOptions("laws", retry_limit_s=0.3)
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"a"])
        with pytest.raises(Fatal, match="gave up after"):
            async with running(StreamRunner(pipeline, kafka, options, topics=["t"])):
                await asyncio.Event().wait()
    assert pipeline.applied == []
    assert await committed("t") == -1


@pytest.mark.parametrize("place", ["apply", "restore"])
async def test_a_library_error_that_nobody_translated_ends_the_service_and_skips_nothing(
    kafka: KafkaSettings, make_topic: MakeTopic, place: str
) -> None:
    await make_topic("t")
    refused = ConnectionRefusedError("PostgreSQL")
    first, second = Collecting([refused], restoring=refused if place == "restore" else None), Collecting()
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"a"])
        with pytest.raises(Fatal, match="let a library's error through"):
            async with asyncio.timeout(30), running(StreamRunner(first, kafka, OPTIONS, topics=["t"])):
                await asyncio.Event().wait()
        async with running(StreamRunner(second, kafka, OPTIONS, topics=["t"])) as runner:
            await runner.reached(producer.written)
    assert second.applied == [b"a"]


async def test_a_stop_during_retries_ends_at_once_and_leaves_the_record_for_the_next(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t")
    first, second = Collecting([Retryable("never") for _ in range(10_000)]), Collecting()
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"a"])
        async with running(StreamRunner(first, kafka, OPTIONS, topics=["t"])) as runner:
            await aeventually(lambda: "retrying" in (runner.fault() or ""))
        async with running(StreamRunner(second, kafka, OPTIONS, topics=["t"])) as runner:
            await runner.reached(producer.written)
    assert (first.applied, second.applied) == ([], [b"a"])


async def test_lost_state_is_restored_and_read_again_from_where_restore_says(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t")
    pipeline = Collecting()
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"a", b"b", b"c"])
        async with running(StreamRunner(pipeline, kafka, OPTIONS, topics=["t"])) as runner:
            await runner.reached(producer.written)
            pipeline.start = {Partition("t", 0): 1}
            pipeline.failures = [StateLost("the store was replaced")]
            await fill(producer, "t", [b"d"])
            await runner.reached(producer.written)
    assert pipeline.applied == [b"a", b"b", b"c", b"b", b"c", b"d"]


async def test_what_is_durable_is_not_applied_again_after_lost_state_though_its_commit_was_not_due(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t")
    pipeline = Collecting()
    options = StreamOptions("laws", commit_every_ms=600_000)
    async with Producer(kafka) as producer, running(StreamRunner(pipeline, kafka, options, topics=["t"])) as runner:
        for value in (b"a", b"b"):
            await fill(producer, "t", [value])
            await runner.reached(producer.written)
        pipeline.failures = [StateLost("it is to be judged anew")]
        await fill(producer, "t", [b"c"])
        await runner.reached(producer.written)
    assert pipeline.applied == [b"a", b"b", b"c"]


class Noting(Collecting):
    """Notes how much was applied whenever it is to flush."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed_at: list[int] = []

    async def flush(self) -> None:
        self.flushed_at.append(len(self.applied))


async def test_a_flush_is_put_off_while_there_is_more_to_read_and_no_longer(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed
) -> None:
    await make_topic("t")
    pipeline = Noting()
    options = StreamOptions("laws", max_records=10, behind_flush_ms=60_000, commit_every_ms=10)
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"%d" % n for n in range(100)])
        async with running(StreamRunner(pipeline, kafka, options, topics=["t"])) as runner:
            await runner.reached(producer.written)
            # It may also have been called before there was anything.
            assert set(pipeline.flushed_at) - {0} == {100}
    assert await committed("t") == 100


class Greedy(Collecting):
    """Fetches all there is at once, and notes how much it is given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def fetch_from(self, consumer: Any) -> Fetch:
        return lambda timeout_ms, max_records: consumer.getmany(timeout_ms=timeout_ms)

    def step(self, state: int, batch: Batch, now_us: int) -> Step[int, list[bytes]]:
        self.given.append(batch.count)
        return super().step(state, batch, now_us)


async def test_what_is_fetched_at_once_is_given_in_batches_and_read_again_where_one_fails(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed
) -> None:
    await make_topic("t", partitions=2)
    pipeline = Greedy()
    options = StreamOptions("laws", max_records=30, commit_every_ms=10)
    values = [b"%d" % n for n in range(200)]
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", value, partition=n % 2) for n, value in enumerate(values)])
        pipeline.failures = [Retryable("once"), StateLost("then all is read again")]
        async with running(StreamRunner(pipeline, kafka, options, topics=["t"])) as runner:
            await runner.reached(producer.written)
    assert max(pipeline.given) == 30
    assert sorted(pipeline.applied) == sorted(values)
    assert await committed("t") == 100


async def test_an_interval_flushes_on_request_and_commits_only_what_was_flushed(
    kafka: KafkaSettings, make_topic: MakeTopic, committed: Committed
) -> None:
    await make_topic("t")
    pipeline = Collecting()
    options = StreamOptions("laws", flush_every_ms=60_000, commit_every_ms=10)
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"a", b"b"])
        async with running(StreamRunner(pipeline, kafka, options, topics=["t"])) as runner:
            await aeventually(lambda: pipeline.applied == [b"a", b"b"])
            assert (pipeline.flushes, await committed("t")) == (0, -1)
            await runner.reached(producer.written)
            assert pipeline.flushes == 1

            async def two_are_committed() -> bool:
                return await committed("t") == 2

            await aeventually(two_are_committed)
            await fill(producer, "t", [b"c"])
            await aeventually(lambda: len(pipeline.applied) == 3)
        assert await committed("t") == 3


async def test_a_second_worker_takes_over_half_and_nothing_is_lost_or_committed_too_early(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t", partitions=4)
    one, two = Collecting(), Collecting()
    values = [b"%d" % n for n in range(2_000)]
    async with Producer(kafka) as producer, running(StreamRunner(one, kafka, OPTIONS, topics=["t"])) as first:
        sending = asyncio.create_task(_spread(producer, values))
        await aeventually(lambda: one.applied)
        async with running(StreamRunner(two, kafka, OPTIONS, topics=["t"])) as second:
            await aeventually(lambda: len(second.positions.next) == 2 and len(first.positions.next) == 2)
            await sending
            await aeventually(lambda: set(one.applied) | set(two.applied) == set(values))
        await aeventually(lambda: len(first.positions.next) == 4)
        await first.reached(producer.written)
    # Each handed-over partition was committed first, so nothing came twice either.
    assert sorted(one.applied + two.applied) == sorted(values)


async def _spread(producer: Producer, values: list[bytes]) -> None:
    for n, value in enumerate(values):
        await producer.send(Outgoing("t", value, partition=n % 4))


class Reluctant(Collecting):
    """Is told later to apply anything."""

    ready, attempts = False, 0

    async def apply(self, effects: list[bytes]) -> None:
        self.attempts += 1
        if not self.ready:
            raise Retryable("not yet")
        await super().apply(effects)


async def test_what_is_repeated_goes_on_amid_a_rebalance_that_waits_for_it(
    kafka: KafkaSettings, make_topic: MakeTopic, caplog: pytest.LogCaptureFixture
) -> None:
    await make_topic("t", partitions=2)
    pipeline, heir = Reluctant(), Collecting()
    async with Producer(kafka) as producer, running(StreamRunner(pipeline, kafka, OPTIONS, topics=["t"])) as first:
        await fill(producer, "t", [b"a"])
        await aeventually(lambda: pipeline.attempts)
        async with running(StreamRunner(heir, kafka, OPTIONS, topics=["t"])) as second:
            await aeventually(lambda: "because it is rebalancing" in caplog.text, claim="the first worker knows of it")
            before = pipeline.attempts
            await aeventually(lambda: pipeline.attempts > before, OPTIONS.session_ms / 2000, claim="tried again")
            pipeline.ready = True
            await aeventually(lambda: first.positions.next and second.positions.next)
    assert (pipeline.applied, heir.applied) == ([b"a"], []), "what was handed over was finished first"


async def test_the_heartbeat_of_a_join_begins_before_the_next_one_ends_it() -> None:
    order: list[str] = []

    async def revoked() -> None:
        order.append("revoked")

    asyncio.get_running_loop().call_soon(order.append, "the heartbeat begins")
    await GroupListener(revoked, lambda: None).on_partitions_revoked(set())
    assert order == ["the heartbeat begins", "revoked"]


async def test_topics_may_come_later_and_change(kafka: KafkaSettings, make_topic: MakeTopic) -> None:
    await make_topic("a")
    await make_topic("b")
    pipeline = Collecting()
    async with Producer(kafka) as producer:
        await fill(producer, "a", [b"a"])
        await fill(producer, "b", [b"b"])
        async with running(StreamRunner(pipeline, kafka, OPTIONS)) as runner:
            await aeventually(lambda: runner.fault() is None, claim="no topics is ready")
            runner.subscribe(["a"])
            await runner.reached({Partition("a", 0): 1})
            runner.subscribe(["a", "b"])
            await runner.reached({Partition("b", 0): 1})
            runner.subscribe([])
            await aeventually(lambda: not runner.positions.next)
            runner.subscribe(["b"])
            await fill(producer, "b", [b"b2"])
            await runner.reached(producer.written)
    assert pipeline.applied == [b"a", b"b", b"b2"]


async def test_a_start_asks_nothing_behind_a_fetch_that_waits_for_records(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t", partitions=2)
    runner = StreamRunner(Collecting(), kafka, StreamOptions("idle", fetch_wait_ms=60_000), topics=["t"])
    async with asyncio.timeout(30), running(runner):
        await runner.positions.reached({Partition("t", number): 0 for number in range(2)})


@pytest.mark.parametrize("flush_every_ms", [0, 60_000])
async def test_what_a_topic_held_before_it_was_made_anew_is_waited_for_no_longer(
    kafka: KafkaSettings, make_topic: MakeTopic, flush_every_ms: int
) -> None:
    await make_topic("t", 2)
    pipeline = Collecting()
    options = replace(OPTIONS, flush_every_ms=flush_every_ms)
    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", b"old", partition=number) for number in (0, 0, 1)])
        before = producer.written
        async with running(StreamRunner(pipeline, kafka, options, topics=["t"])) as runner:
            await runner.reached(before)
            await delete_topics(kafka.client_kwargs(), [kafka.physical("t")])
            await make_topic("t")
            await producer.send(Outgoing("t", b"new", partition=0))
            async with asyncio.timeout(60):
                # Of the one partition the former end, and one that there is no more.
                await runner.reached(before)
            assert pipeline.applied[3:] == [b"new"]


async def test_a_consumer_without_topics_stops(kafka: KafkaSettings) -> None:
    async with asyncio.timeout(60):
        async with running(StreamRunner(Collecting(), kafka, OPTIONS)) as runner:
            await aeventually(lambda: runner.fault() is None, claim="no topics is ready")


async def test_an_offset_beyond_the_log_is_fatal_and_not_skipped(kafka: KafkaSettings, make_topic: MakeTopic) -> None:
    await make_topic("t")
    pipeline = Collecting()
    pipeline.start = {Partition("t", 0): 7}
    with pytest.raises(Fatal, match="re-created or truncated"):
        async with running(StreamRunner(pipeline, kafka, OPTIONS, topics=["t"])):
            await asyncio.Event().wait()


class Hanging(Collecting):
    """Never comes back from its first effect."""

    async def apply(self, effects: list[bytes]) -> None:
        await asyncio.Event().wait()


async def test_a_consumer_with_lag_that_does_not_advance_is_not_live_and_ends_the_service(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t")
    health = Health()
    options = StreamOptions("laws", stall_s=1.0)
    async with Producer(kafka) as producer:
        await fill(producer, "t", [b"a"])
        with pytest.raises(Stalled, match="1 records behind"):
            async with running(StreamRunner(Hanging(), kafka, options, topics=["t"], health=health)):
                await asyncio.Event().wait()
    assert "no progress" in health.live()["stream:laws"]


async def test_the_lag_of_a_topic_is_that_of_all_partitions_held_and_of_no_others(
    kafka: KafkaSettings, make_topic: MakeTopic
) -> None:
    await make_topic("t", partitions=3)
    options = StreamOptions("lagging", stall_s=0.5)
    stuck = Collecting([Retryable("not yet") for _ in range(1_000)])

    def lag() -> float | None:
        return REGISTRY.get_sample_value("tidemill_stream_lag_records", {"group": "lagging", "topic": "t"})

    async with Producer(kafka) as producer:
        await producer.send_all([Outgoing("t", b"v", partition=number) for number in (0, 0, 0, 1)])
        async with running(StreamRunner(stuck, kafka, options, topics=["t"])) as runner:
            await aeventually(lambda: lag() == 4)
            runner.subscribe([])
            await aeventually(lambda: lag() == 0)


async def test_an_idle_or_busy_consumer_is_live(kafka: KafkaSettings, make_topic: MakeTopic) -> None:
    await make_topic("t")
    health = Health()
    options = StreamOptions("laws", stall_s=2.0)
    async with (
        Producer(kafka) as producer,
        running(StreamRunner(Collecting(), kafka, options, topics=["t"], health=health)) as runner,
    ):
        ends = time.monotonic() + 3.0
        while time.monotonic() < ends:
            await fill(producer, "t", [b"a"])
            await runner.reached(producer.written)
        assert health.live() == {}


async def test_a_client_that_has_given_up_its_part_in_the_group_is_replaced(
    kafka: KafkaSettings, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_topic("t")
    lookup, failures = AIOKafkaClient.coordinator_lookup, [AssertionError("Did we not perform bootstrap?")]

    async def looked_up(client: Any, *asked: Any) -> Any:
        # As where a Kafka that has just begun names no broker yet.
        if failures:
            raise failures.pop()
        return await lookup(client, *asked)

    monkeypatch.setattr(AIOKafkaClient, "coordinator_lookup", looked_up)
    pipeline = Collecting()
    async with Producer(kafka) as producer, asyncio.timeout(60):
        await fill(producer, "t", [b"a"])
        async with running(StreamRunner(pipeline, kafka, OPTIONS, topics=["t"])) as runner:
            await runner.reached(producer.written)
    assert (failures, pipeline.applied) == ([], [b"a"])
