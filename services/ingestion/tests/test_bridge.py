"""The bridge role on the real Kafka: every record of a producer's own topic ends in its stream, or as a dead letter."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from hashlib import sha256
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from prometheus_client import REGISTRY
from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import from_headers, identity
from tidemill_contracts.dead_letters import left_out, redriven_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_ingestion.settings import Settings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import free_address

pytestmark = pytest.mark.servers

PARTITIONS = 2
Record = tuple[bytes | None, list[tuple[str, bytes]]]


class Raw:
    """A producer's own topic, named without any prefix of Tidemill's."""

    def __init__(self, producer: AIOKafkaProducer, name: str, bootstrap: str) -> None:
        self._producer = producer
        self._bootstrap = bootstrap
        self.name = name
        self.ends = dict.fromkeys(range(PARTITIONS), 0)

    async def write(self, *records: Record, partition: int = 0) -> None:
        for value, headers in records:
            placed = await self._producer.send_and_wait(
                self.name, value, key=b"\xfekey", headers=headers, partition=partition
            )
            self.ends[partition] = placed.offset + 1

    async def write_as_it_is(self, value: bytes | None, headers: list[tuple[str, bytes | None]]) -> None:
        """Write one record without a key, compressed, as its producer may."""
        size = {"max_request_size": 16 * 1024 * 1024, "max_batch_size": 16 * 1024 * 1024}
        async with AIOKafkaProducer(bootstrap_servers=self._bootstrap, **size, compression_type="gzip") as producer:
            batch = producer.create_batch()
            batch.append(key=None, value=value, timestamp=None, headers=headers)
            placed = await (await producer.send_batch(batch, self.name, partition=0))
        self.ends[0] = placed.offset + 1

    async def fill(self, values: Sequence[bytes]) -> None:
        """Write many plain records, over all partitions."""
        sent = [await self._producer.send(self.name, value, partition=n % PARTITIONS) for n, value in enumerate(values)]
        for placed in await asyncio.gather(*sent):
            self.ends[placed.partition] = max(self.ends[placed.partition], placed.offset + 1)

    def offsets(self) -> list[progress_pb2.TopicPartitionOffset]:
        return [
            progress_pb2.TopicPartitionOffset(topic=self.name, partition=number, next_offset=end)
            for number, end in self.ends.items()
        ]


@pytest_asyncio.fixture
async def raw(kafka: Any) -> AsyncIterator[Raw]:
    """A topic that a producer writes by itself."""
    name = f"legacy-{uuid4().hex[:8]}"
    admin = AIOKafkaAdminClient(**kafka.client_kwargs())
    await admin.start()
    await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
    async with AIOKafkaProducer(**kafka.client_kwargs()) as producer:
        yield Raw(producer, name, kafka.bootstrap)
    await admin.delete_topics([name])
    await admin.close()


def plain(*values: bytes) -> list[Record]:
    return [(value, []) for value in values]


async def bridged(door: Any, raw: Raw) -> None:
    """Return once the bridge has dealt with everything written so far."""
    request = progress_pb2.WaitProgressRequest(stage="bridge", offsets=raw.offsets())
    await door.progress.WaitProgress(request, timeout=60)


@pytest.fixture
def options(raw: Raw) -> dict[str, Any]:
    """A replica that is door and bridge."""
    return {"roles": ("door", "bridge"), "bridges": {raw.name: "rides"}}


async def test_every_record_ends_in_the_stream_or_as_a_dead_letter(
    kafka: Any, open_door: Any, raw: Raw, options: dict[str, Any]
) -> None:
    async with open_door(kafka, **options) as door:
        envelope = {"specversion": "1.0", "id": "s", "source": "app", "type": "t", "data": json.loads(door.ride(2))}
        odd = [("h", b"\xff\x00"), ("h", b"twice")]
        await raw.write(
            *plain(door.ride(1)),
            (json.dumps(envelope).encode(), [("content-type", b"application/cloudevents+json")]),
            (door.ride(3), [("ce_id", b"b"), ("ce_source", b"meter"), ("ce_type", b"ride.ended")]),
            *plain(b'{"ride_id": "r"}'),
            (None, []),
        )
        await raw.write((b"\xff{", []), (b"{", odd), partition=1)
        await bridged(door, raw)
        log = {record.key: record for record in await door.log()}
        letters = await door.log("events.rides.dlq")
        metrics = (await door.http.get("/metrics")).text
        assert f"bridge:{raw.name}" not in (await door.http.get("/ready")).json()["faults"]
    assert set(log) == {b"r-1", b"r-2", b"r-3"}
    found = {key: from_headers(record.headers) for key, record in log.items()}
    assert (found[b"r-1"].source, found[b"r-2"].source, found[b"r-3"].source) == (f"kafka/{raw.name}", "app", "meter")
    assert found[b"r-1"].id.startswith(f"{raw.name}/0/0/")
    assert (found[b"r-2"].id, found[b"r-3"].id, found[b"r-3"].type) == ("s", "b", "ride.ended")
    said = [dict(letter.headers) for letter in letters]
    reasons = {(one["x-dlq-reason"], one["x-dlq-field"]) for one in said}
    assert reasons == {(b"missing_field", b"fare"), (b"empty", b""), (b"bad_utf8", b""), (b"undecodable", b"")}
    assert {one["__connect.errors.topic"].decode() for one in said} == {raw.name}
    assert {one["x-dlq-consumer-group"].decode() for one in said} == {f"ingestion-bridge.{raw.name}"}
    # Untouched, null and headers that are no text included.
    assert {letter.key for letter in letters} == {b"\xfekey"}
    assert {letter.value for letter in letters} == {b'{"ride_id": "r"}', None, b"\xff{", b"{"}
    assert [list(letter.headers[:2]) for letter in letters if letter.value == b"{"] == [odd]
    assert 'tidemill_ingestion_bridged_records_total{outcome="accepted",stream="rides"}' in metrics


async def test_a_bad_record_has_the_reason_that_the_doors_would_give(
    kafka: Any, open_door: Any, raw: Raw, options: dict[str, Any], bad_input: list[Any]
) -> None:
    async with open_door(kafka, **options) as door:
        await raw.write(*plain(*(data for _, data, _ in bad_input)))
        await bridged(door, raw)
        letters = await door.log("events.rides.dlq")
        assert await door.log() == []
    found = {letter.value: dict(letter.headers)["x-dlq-reason"].decode() for letter in letters}
    assert found == {data: reason for reason, data, _ in bad_input}


async def test_records_read_again_are_the_same_events(
    kafka: Any, open_door: Any, raw: Raw, options: dict[str, Any]
) -> None:
    """A crash between the write and the commit: the group has committed nothing of what was copied."""
    async with open_door(kafka, **options) as door:
        await raw.write(*plain(*(door.ride(number) for number in range(20))))
        await raw.write(*plain(*(door.ride(number) for number in range(20, 30))), partition=1)
        await bridged(door, raw)
    group = kafka.physical(f"ingestion-bridge.{raw.name}")
    async with AIOKafkaConsumer(**kafka.client_kwargs(), group_id=group, enable_auto_commit=False) as consumer:
        places = [TopicPartition(raw.name, number) for number in range(PARTITIONS)]
        consumer.assign(places)
        await consumer.commit(dict.fromkeys(places, 0))
    async with open_door(kafka, **options) as door:
        await bridged(door, raw)
        log = await door.log()
    assert len(log) == 60
    events = {identity(from_headers(record.headers), record.topic, record.partition, record.offset) for record in log}
    assert len(events) == 30


async def test_a_bridge_killed_at_any_moment_copies_every_record_as_one_event(
    kafka: Any, open_door: Any, raw: Raw, a_ride: Callable[[int], bytes]
) -> None:
    count = 1_200
    await raw.fill([a_ride(number) for number in range(count)])
    names = {"ROLES": "bridge", "BRIDGES": f"{raw.name}=rides", "BRIDGE_BATCH_RECORDS": "20"}
    names |= {"TEST_HOP_DELAY_MS": "20", "LOG_LEVEL": "error", "KAFKA__BOOTSTRAP": kafka.bootstrap}
    names |= {"KAFKA__TOPIC_PREFIX": kafka.topic_prefix, "KAFKA__INSTANCE": "one", "GRPC__LISTEN": free_address()}
    environment = os.environ | {f"TIDEMILL_INGESTION_{name}": value for name, value in names.items()}
    async with open_door(kafka) as door:
        for enough in (200, 700):
            command = (sys.executable, "-m", "tidemill_ingestion")
            process = await asyncio.create_subprocess_exec(*dying_with_us(command), env=environment)
            try:

                async def copied(wanted: int = enough) -> bool:
                    end: int = await door.end("events.rides")
                    return end >= wanted

                await aeventually(copied, claim=f"{enough} records are copied")
            finally:
                process.kill()
                await process.wait()
    async with open_door(kafka, roles=("bridge",), bridges={raw.name: "rides"}) as bridge:
        await bridged(bridge, raw)
        log = await bridge.log()
    events = {identity(from_headers(record.headers), record.topic, record.partition, record.offset) for record in log}
    assert {record.key for record in log} == {f"r-{number}".encode() for number in range(count)}
    assert len(events) == count
    assert len(log) >= count


async def test_a_dead_letter_sent_again_after_a_fix_arrives_once(
    kafka: Any, open_door: Any, raw: Raw, options: dict[str, Any], rides_of: Callable[..., Sequence[int]]
) -> None:
    async with open_door(kafka, **options) as door:
        await raw.write(*plain(b"{"))
        await bridged(door, raw)
        (letter,) = await door.log("events.rides.dlq")
        said: dict[str, Any] = {"place": (raw.name, 0, 0), "letter": "events.rides.dlq/0/0", "attempt": 1}
        group = dict(letter.headers)["x-dlq-consumer-group"].decode()
        mended = (door.ride(5), redriven_headers(letter.headers, groups=[group], **said))
        # Twice, as two people may; and once for a group that is not the bridge.
        await raw.write(mended, mended, (door.ride(6), redriven_headers(letter.headers, groups=["other"], **said)))
        await bridged(door, raw)
        assert rides_of(await door.log()) == [5]


async def test_what_was_copied_and_committed_is_not_read_again(
    kafka: Any, open_door: Any, raw: Raw, options: dict[str, Any]
) -> None:
    for first in (0, 10):
        async with open_door(kafka, **options) as door:
            await raw.write(*plain(*(door.ride(number) for number in range(first, first + 10))))
            await bridged(door, raw)
            log = await door.log()
    assert sorted(int(record.key[2:]) for record in log) == list(range(20))


async def test_a_bridge_waits_for_its_stream_and_its_topic(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, roles=("bridge",), bridges={"no-such-topic": "walks"}) as door:
        fault = (await door.http.get("/ready")).json()["faults"]["bridge:no-such-topic"]
        assert fault == "stream 'walks' is not registered yet"
        # A replica that is a bridge alone has no doors.
        assert (await door.http.post("/v1/streams/rides/events", content=b"{}")).status_code == 404


async def test_doors_are_ready_while_a_bridge_beside_them_waits_for_its_stream(kafka: Any, open_door: Any) -> None:
    async with open_door(kafka, roles=("door", "bridge"), bridges={"no-such-topic": "walks"}) as door:
        # The process that a lifecycle runs has no fault then.
        assert (await door.http.get("/ready")).json()["faults"].keys() == {"lifecycle"}


@pytest.mark.parametrize("kind", ["large once unpacked", "larger than its letter", "null", "null header"])
async def test_no_record_that_a_topic_holds_stops_its_bridge(
    kafka: Any, open_door: Any, raw: Raw, options: dict[str, Any], rides_of: Callable[..., Sequence[int]], kind: str
) -> None:
    large = b'{"ride_id": "' + b"x" * (3 if kind == "large once unpacked" else 8) * 1024 * 1024
    value = {"null": None, "null header": b"{"}.get(kind, large)
    await raw.write_as_it_is(value, [("x-dlq-attempt", None)] if kind == "null header" else [])
    async with open_door(kafka, **options) as door:
        await raw.write(*plain(door.ride(1)))
        await bridged(door, raw)
        (letter,) = await door.log("events.rides.dlq")
        assert rides_of(await door.log()) == [1]
        assert "producer" not in (await door.http.get("/ready")).json()["faults"]
    said = dict(letter.headers)
    assert (said["__connect.errors.topic"].decode(), said["__connect.errors.offset"]) == (raw.name, b"0")
    if kind == "larger than its letter":
        assert (letter.value, said["x-dlq-value-bytes"]) == (None, str(len(large)).encode())
        assert left_out(letter.headers) == sha256(large).hexdigest().encode()
    else:
        assert letter.value == value


async def test_a_bridge_waits_while_its_stream_is_retired_and_goes_on_where_it_was(
    kafka: Any,
    open_door: Any,
    raw: Raw,
    options: dict[str, Any],
    rides_of: Callable[..., Sequence[int]],
    announce_stream: Any,
) -> None:
    group = kafka.physical(f"ingestion-bridge.{raw.name}")
    retired = definition.DefinitionRecord(kind="stream", name="rides", retired=True)
    async with open_door(kafka, **options) as door:

        async def fault() -> str:
            found: str = (await door.http.get("/ready")).json()["faults"].get(f"bridge:{raw.name}", "")
            return found

        async def says(sentence: str) -> None:
            async def said() -> bool:
                return await fault() == sentence

            await aeventually(said, claim=f"the bridge says {sentence!r}")

        await raw.write(*plain(door.ride(1)))
        await bridged(door, raw)
        async with AIOKafkaProducer(**kafka.client_kwargs()) as producer:
            topic = kafka.physical("registry.pipelines.v1")
            await producer.send_and_wait(topic, to_json(retired), key=b"stream/rides")
        await says("stream 'rides' is not registered any more")
        # One is good and one is bad, by the definition that comes.
        await raw.write(*plain(door.ride(2), b"{"))
        waiting = asyncio.ensure_future(bridged(door, raw))
        await aeventually(lambda: retries(group) >= 3, claim="the bridge holds what it read")
        assert (waiting.done(), await door.log("events.rides.dlq")) == (False, [])
        await announce_stream(kafka)
        await waiting
        await says("")
        assert rides_of(await door.log()) == [1, 2]
        assert len(await door.log("events.rides.dlq")) == 1


def retries(group: str) -> float:
    """Return how often a bridge has tried what it could not do yet."""
    labels = {"group": group}
    return REGISTRY.get_sample_value("tidemill_stream_retries_total", labels) or 0


async def test_a_bridge_pauses_before_a_broken_topic_is_drained_into_the_dead_letters(
    kafka: Any, open_door: Any, raw: Raw, options: dict[str, Any], rides_of: Callable[..., Sequence[int]]
) -> None:
    limits = {"bad_min_events": 20, "bad_share": 0.5, "pause_s": 600.0, "bridge_batch_records": 10}
    async with open_door(kafka, **options, **limits) as door:
        await raw.write(*plain(*([b"{"] * 80), door.ride(1)))

        async def paused() -> bool:
            found: bool = (await door.http.get("/v1/streams/rides")).json().get("paused", False)
            return found

        await aeventually(paused, claim="the stream pauses")
        letters = len(await door.log("events.rides.dlq"))
        assert 20 <= letters <= 30
        assert "bridge:" + raw.name not in (await door.http.get("/ready")).json()["faults"]
        # The producer is mended: the operator lets the rest through, as often as it pauses again.

        async def through() -> bool:
            await door.http.post("/v1/streams/rides/resume", headers={"x-tidemill-actor": "anna"})
            return rides_of(await door.log()) == [1]

        await aeventually(through, claim="the good record behind them arrives")
        assert len(await door.log("events.rides.dlq")) == 80


def test_the_role_needs_to_know_what_to_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_INGESTION_ROLES", "door, bridge")
    with pytest.raises(ValueError, match="which topic feeds which stream"):
        Settings()
    monkeypatch.setenv("TIDEMILL_INGESTION_BRIDGES", "raw.rides=rides, raw.walks = walks")
    monkeypatch.setenv("TIDEMILL_INGESTION_BAD_SHARES", "rides=0.05")
    settings = Settings()
    assert settings.roles == ("door", "bridge")
    assert settings.bridges == {"raw.rides": "rides", "raw.walks": "walks"}
    assert (settings.limit_of("rides").share, settings.limit_of("walks").share) == (0.05, 0.5)
    monkeypatch.setenv("TIDEMILL_INGESTION_BRIDGES", "raw.rides")
    with pytest.raises(ValueError, match="name=value"):
        Settings()
