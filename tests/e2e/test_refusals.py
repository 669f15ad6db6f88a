"""Every bad event has one named reason: the same in gRPC, HTTP, dead letters, metrics and docs/reasons.md."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from time import time_ns
from typing import Any

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from tidemill.clients.topics import KafkaTarget, read_topic
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_contracts.reasons import Reason

pytestmark = [pytest.mark.e2e, pytest.mark.servers, pytest.mark.timeout(600)]

JSON_BODY = {"content-type": "application/json"}
NOW = datetime.now(UTC).replace(microsecond=0)


def at(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def body(good: Mapping[str, Any], **changes: Any) -> bytes:
    """Return an event as JSON with some fields changed; `...` leaves one out."""
    return json.dumps({name: value for name, value in {**good, **changes}.items() if value is not ...}).encode()


def probe(**changes: Any) -> bytes:
    good = {"probe_id": "p-1", "tries": 1, "level": 0.5, "sound": True, "note": None, "seen_at": at(NOW)}
    return body(good, **changes)


def landed(**changes: Any) -> bytes:
    place = {"flight_id": "f-1", "origin": "JFK", "dest": "LAX", "carrier": "UA", "tailnum": None}
    return body({**place, "arr_delay_minutes": 3.0, "landed_at": at(NOW)}, **changes)


def deep(event: bytes) -> bytes:
    """Return the event with an undeclared field of more nested lists than any decoder follows."""
    return event[:-1] + b', "more": ' + b"[" * 15_000 + b"]" * 15_000 + b"}"


PROBES = [
    (b"", Reason.EMPTY),
    (probe(note="x").replace(b'"x"', b'"\xff"'), Reason.BAD_UTF8),
    (probe().decode().encode("utf-16"), Reason.BAD_UTF8),
    (probe(note="\ud800"), Reason.BAD_UTF8),
    (probe()[:-6], Reason.UNDECODABLE),
    (b"[1, 2]", Reason.UNDECODABLE),
    (b"\x00\x00\x00\x00\x07avro", Reason.UNDECODABLE),
    (probe(probe_id=...), Reason.MISSING_FIELD),
    (probe(tries=...), Reason.MISSING_FIELD),
    (probe(tries=None), Reason.MISSING_FIELD),
    (probe(probe_id=None), Reason.NULL_KEY),
    (probe(probe_id=""), Reason.NULL_KEY),
    (probe(tries="three"), Reason.WRONG_TYPE),
    (probe(tries=1.5), Reason.WRONG_TYPE),
    (probe(sound=1), Reason.WRONG_TYPE),
    (probe(seen_at="yesterday"), Reason.WRONG_TYPE),
    (probe(seen_at=1370340000), Reason.WRONG_TYPE),
    (probe(seen_at=...), Reason.MISSING_FIELD),
    (probe(level=math.nan), Reason.NON_FINITE),
    (probe(level=123.5).replace(b"123.5", b"1e999"), Reason.NON_FINITE),
    (probe(tries=2**63), Reason.OUT_OF_RANGE),
    (probe(tries=-(2**70)), Reason.OUT_OF_RANGE),
    (probe(seen_at="1492-10-12T00:00:00Z"), Reason.OUT_OF_RANGE),
    (probe(seen_at=NOW.replace(tzinfo=None).isoformat()), Reason.NAIVE_TIMESTAMP),
    (probe(seen_at=at(NOW + timedelta(days=1))), Reason.TOO_FAR_IN_FUTURE),
    (probe(note="x" * 2048), Reason.OVERSIZED),
]
# What the join of labels reads too, so that two groups refuse it.
LANDINGS = [
    (landed(flight_id=None), Reason.NULL_KEY),
    (landed(flight_id=...), Reason.MISSING_FIELD),
    (landed(flight_id=7), Reason.WRONG_TYPE),
    (landed(arr_delay_minutes="late"), Reason.WRONG_TYPE),
    (landed(arr_delay_minutes=math.inf), Reason.NON_FINITE),
    (landed(landed_at=at(NOW)[:-1]), Reason.NAIVE_TIMESTAMP),
    (landed(landed_at=at(NOW + timedelta(days=1))), Reason.TOO_FAR_IN_FUTURE),
    (landed()[:-4], Reason.UNDECODABLE),
    (deep(landed()), Reason.UNDECODABLE),
    (landed().decode().encode("utf-16"), Reason.BAD_UTF8),
]
BAD = [("probe", *case) for case in PROBES] + [("flight-arrived", *case) for case in LANDINGS]
DOOR_ONLY = [
    ("probe", probe(extra=1), Reason.UNKNOWN_FIELD),
    ("no-such-stream", probe(), Reason.UNKNOWN_STREAM),
    ("", probe(), Reason.UNKNOWN_STREAM),
]


def test_ingestion_gives_a_bad_event_its_one_reason_over_grpc_http_and_in_its_metric(shared: Any) -> None:
    stub = IngestionServiceStub(shared.channels["ingestion"])
    before = shared.counts("ingestion", "ingestion_events", "stream", "outcome", "reason")
    expected: Counter[tuple[str, ...]] = Counter()
    for stream, data, reason in BAD + DOOR_ONLY:
        event = ingestion.Event(data=data)
        single = stub.Publish(ingestion.PublishRequest(stream=stream, event=event), timeout=60).verdict
        batch = ingestion.StreamEvents(stream=stream, events=[event])
        batched = stub.PublishBatch(ingestion.PublishBatchRequest(batches=[batch]), timeout=60).verdicts[0]
        seen = [single.reason, batched.reason]
        if stream:
            url = f"{shared.http('ingestion')}/v1/streams/{stream}/events"
            seen.append(shared.problem(httpx.post(url, content=data, headers=JSON_BODY, timeout=60)))
        assert seen == [reason] * len(seen), (stream, data[:80])
        assert single.outcome == ingestion.OUTCOME_REFUSED
        assert single.message
        # A name that nobody registered is its caller's, and has no label of its own.
        label = "other" if reason is Reason.UNKNOWN_STREAM else stream
        expected[label, "refused", reason.value] += len(seen)
    assert shared.counts("ingestion", "ingestion_events", "stream", "outcome", "reason") - before == expected


def test_what_is_no_cloud_event_is_named_and_counted_too(shared: Any) -> None:
    url = f"{shared.http('ingestion')}/v1/streams/probe/events"
    envelope = {"specversion": "1.0", "id": "e", "source": "s", "type": "t", "data": json.loads(probe())}
    before = shared.counts("ingestion", "http_refused", "reason")
    cases = (
        ("cloudevents+json", b'{"specversion": "1.0', Reason.UNDECODABLE),
        ("cloudevents+json", b'{"specversion": "\xff"}', Reason.BAD_UTF8),
        ("cloudevents+json", json.dumps({**envelope, "specversion": "0.3"}).encode(), Reason.UNSUPPORTED),
        ("cloudevents+json", json.dumps({**envelope, "id": 7}).encode(), Reason.WRONG_TYPE),
        ("cloudevents+json", json.dumps({**envelope, "id": "x" * 600}).encode(), Reason.OVERSIZED),
        ("cloudevents-batch+json", b"{}", Reason.UNDECODABLE),
        ("xml", b"<probe/>", Reason.UNSUPPORTED),
    )
    for kind, content, reason in cases:
        answer = httpx.post(url, content=content, headers={"content-type": f"application/{kind}"}, timeout=60)
        assert shared.problem(answer) == reason, content
    counted = shared.counts("ingestion", "http_refused", "reason") - before
    assert counted == Counter((reason.value,) for _, _, reason in cases)


def test_a_duplicate_is_told_by_ingestion_and_counted_once_by_the_features(shared: Any) -> None:
    unique = f"twice-{time_ns()}"
    stub = IngestionServiceStub(shared.channels["ingestion"])
    event = ingestion.Event(id=unique, source="test", data=probe(probe_id=unique))
    request = ingestion.PublishRequest(stream="probe", event=event)
    first, second = (stub.Publish(request, timeout=60).verdict for _ in range(2))
    assert first.outcome == ingestion.OUTCOME_ACCEPTED
    assert (second.outcome, second.reason) == (ingestion.OUTCOME_DUPLICATE, shared.documented(Reason.DUPLICATE))
    headers = {**JSON_BODY, "ce-specversion": "1.0", "ce-id": unique, "ce-source": "test", "ce-type": "t"}
    url = f"{shared.http('ingestion')}/v1/streams/probe/events"
    over_http = httpx.post(url, content=event.data, headers=headers, timeout=60).json()
    assert (over_http["outcome"], over_http["reason"]) == ("duplicate", "duplicate")
    assert shared.counts("ingestion", "ingestion_events", "outcome", "reason")["duplicate", "duplicate"] >= 2
    # A producer that retries straight into Kafka gets a second record, which readers recognise.
    ce = [("ce_id", unique.encode()), ("ce_source", b"test")]
    settled(shared, asyncio.run(write(shared, [("probe", event.data, ce)])))
    key = feature.EntityKey(values=[feature.Scalar(string_value=unique)])
    asked = feature.GetFeaturesRequest(views=[feature.ViewKeys(view="probes", keys=[key])])
    answer = FeatureServiceStub(shared.channels["feature"]).GetFeatures(asked, timeout=60)
    assert answer.views[0].rows[0].values[0].value.int64_value == 1


async def write(shared: Any, records: Iterable[tuple[str, bytes, list[tuple[str, bytes]]]]) -> list[Any]:
    """Write records straight into streams, as a producer of one's own does; return where they lie."""
    async with AIOKafkaProducer(bootstrap_servers=shared.endpoints.kafka) as producer:
        return [
            await producer.send_and_wait(shared.physical(f"events.{stream}"), value, key=b"k", headers=headers)
            for stream, value, headers in records
        ]


def settled(shared: Any, placed: list[Any]) -> None:
    """Wait until features and join have dealt with these records and with what they caused."""
    offsets = [
        progress.TopicPartitionOffset(
            topic=one.topic.removeprefix(shared.endpoints.topic_prefix),
            partition=one.partition,
            next_offset=one.offset + 1,
        )
        for one in placed
    ]
    for service, stage in (("feature", "online"), ("monitoring", "join")):
        request = progress.WaitProgressRequest(stage=stage, offsets=offsets)
        ProgressServiceStub(shared.channels[service]).WaitProgress(request, timeout=60)


async def letters(shared: Any, stream: str) -> list[tuple[tuple[str, int, int], str, str, bytes]]:
    """Return of each dead letter of a stream: its place of origin, reason, group and value."""
    target = KafkaTarget(shared.endpoints.kafka, shared.endpoints.topic_prefix)
    found = []
    async with aclosing(read_topic(target, f"events.{stream}.dlq", last=None, follow=False)) as records:
        async for record in records:
            said = {name: value.decode() for name, value in record.headers if name.startswith(("x-dlq", "__connect"))}
            origin = (stream, int(said["__connect.errors.partition"]), int(said["__connect.errors.offset"]))
            found.append((origin, said["x-dlq-reason"], said["x-dlq-consumer-group"], record.value or b""))
    return found


def test_a_bad_record_in_kafka_becomes_a_dead_letter_with_the_reason_that_ingestion_would_give(shared: Any) -> None:
    placed = asyncio.run(write(shared, [(stream, data, []) for stream, data, _ in BAD]))
    settled(shared, placed)
    by_place = {
        (stream, one.partition, one.offset): (data, reason)
        for (stream, data, reason), one in zip(BAD, placed, strict=True)
    }
    groups: dict[Any, set[str]] = {place: set() for place in by_place}
    labels = ("group", "topic", "reason")
    counted = {
        **shared.counts("feature", "dead_letters", *labels),
        **shared.counts("monitoring", "dead_letters", *labels),
    }
    for stream in ("probe", "flight-arrived"):
        for place, reason, group, value in asyncio.run(letters(shared, stream)):
            if place not in by_place:
                continue
            assert (value, reason) == by_place[place], f"{group}: {value[:80]!r}"
            groups[place].add(group)
            assert counted[group, f"events.{stream}.dlq", shared.documented(reason)] >= 1
    for (stream, _, _), found in groups.items():
        assert found >= ({"feature-online", "monitoring"} if stream == "flight-arrived" else {"feature-online"})


def test_a_key_that_no_table_takes_is_a_dead_letter_of_the_join_alone(shared: Any) -> None:
    # Long ago, so that the stream's clock stays where it is.
    old = "2013-01-01T00:00:00Z"
    cases = {
        landed(flight_id="a\0b", landed_at=old): Reason.BAD_UTF8,
        landed(flight_id="f" * 600, landed_at=old): Reason.OVERSIZED,
    }
    placed = asyncio.run(write(shared, [("flight-arrived", data, []) for data in cases]))
    settled(shared, placed)
    places = [("flight-arrived", one.partition, one.offset) for one in placed]
    found = [letter for letter in asyncio.run(letters(shared, "flight-arrived")) if letter[0] in places]
    assert {value: reason for _, reason, _, value in found} == cases
    assert {group for _, _, group, _ in found} == {"monitoring"}


def test_a_late_event_is_a_dead_letter_where_its_stream_says_so(shared: Any) -> None:
    times = (datetime.now(UTC), datetime.now(UTC) - timedelta(hours=2))
    records: list[Any] = [("probe", probe(probe_id="late", seen_at=at(time)), []) for time in times]
    placed = asyncio.run(write(shared, records))
    settled(shared, placed)
    place = ("probe", placed[1].partition, placed[1].offset)
    found = {origin: reason for origin, reason, _, _ in asyncio.run(letters(shared, "probe"))}
    assert found[place] == shared.documented(Reason.TOO_LATE)
    assert ("probe", placed[0].partition, placed[0].offset) not in found
