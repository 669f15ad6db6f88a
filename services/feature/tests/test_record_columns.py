"""Columns of fetched records say what aiokafka's own records say."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers, watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.topics import events_topic, stream_topics
from tidemill_feature.adapters.column_fetch import FEW, _Fetched, _Sequences, column_fetch
from tidemill_feature.decode import HEADERS, StreamDecoder
from tidemill_feature.record_columns import CorruptRecordsError, RecordColumns, Region, columns_of
from tidemill_runtime.settings import KafkaSettings

FIRST = 1_000
# Bytes of a batch with one record that holds nothing.
LEAST_BATCH = 68
PLACE = TopicPartition("t", 0)
OPTIONS = (None, None, True, READ_UNCOMMITTED)
GZIP, SNAPPY, LZ4, ZSTD = 1, 2, 3, 4

texts = st.none() | st.binary(max_size=200)
names = st.sampled_from([*HEADERS, "ce_i", "ce_ids", "täg"])
records = st.tuples(
    st.integers(-(2**40), 2**40),
    texts,
    texts,
    st.lists(st.tuples(names, st.none() | st.binary(max_size=9)), max_size=5),
)
# Each at its own distance behind the last, as where compaction has passed.
gaps = st.integers(1, 300)
logs = st.lists(
    st.tuples(
        st.sampled_from([0, GZIP, SNAPPY, LZ4, ZSTD]), st.lists(st.tuples(gaps, records), min_size=1, max_size=9)
    ),
    min_size=1,
    max_size=4,
)


def batch(first: int, codec: int, found: Sequence[tuple[int, Any]]) -> bytes:
    """Return a batch as the log has it; `found` are distances from `first` and records."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 2**24)
    for distance, (at_ms, key, value, headers) in found:
        assert builder.append(distance, at_ms, key, value, headers) is not None
    raw = bytearray(builder.build())
    raw[:8] = first.to_bytes(8, "big")
    return bytes(raw)


def log_of(parts: Sequence[tuple[int, Sequence[tuple[int, Any]]]]) -> bytes:
    """Return batches one behind the other, and enough records behind them for columns."""
    raw, offset = b"", FIRST
    for codec, found in parts:
        placed, distance = [], -1
        for gap, record in found:
            distance += gap
            placed.append((distance, record))
        raw += batch(offset, codec, placed)
        offset += distance + 1
    return raw + batch(offset, 0, [(n, (n, b"k%d" % n, b"v", [])) for n in range(FEW)])


def plain(data: bytes, offset: int) -> tuple[list[Any], int]:
    found = PartitionRecords(PLACE, MemoryRecords(data), [], offset, *OPTIONS)
    return [parts(record) for record in found], found.next_fetch_offset


def columns(data: bytes, offset: int) -> tuple[RecordColumns, int]:
    found = _Sequences(PLACE, _Fetched(data), [], offset, *OPTIONS)
    (sequence,) = found
    assert isinstance(sequence, RecordColumns)
    return sequence, found.next_fetch_offset


def parts(record: Any) -> tuple[Any, ...]:
    return (
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        list(record.headers),
    )


@settings(max_examples=150, deadline=None)
@given(logs, st.integers(0, 2_700), st.integers(0, LEAST_BATCH - 1))
def test_columns_are_the_records_of_the_same_bytes(log: Any, behind: int, cut: int) -> None:
    whole = log_of(log)
    # A broker's answer begins with the batch in which the offset lies.
    offset = FIRST + min(behind, sum(gap for gap, _ in log[0][1]) - 1)
    # A fetch may break off within a batch.
    data = whole + whole[:cut]
    expected, expected_next = plain(data, offset)
    found, found_next = columns(data, offset)
    assert [parts(record) for record in found] == expected
    assert found_next == expected_next
    assert found.values() == [value or b"" for *_, value, _ in expected]
    for name in HEADERS:
        texts = [dict(headers).get(name) for *_, headers in expected]
        assert found.header(name) == [text or b"" for text in texts]
        assert found.has(name) == any(text is not None for text in texts)
    half = len(found) // 2
    assert [parts(one) for one in [*found[:half], *found[half:]]] == expected
    assert parts(found[-1]) == expected[-1]


def test_a_batch_with_the_brokers_time_and_one_that_is_a_marker_are_read_as_such() -> None:
    many: list[Any] = [(n, (n, b"k", b"v", [])) for n in range(FEW)]
    data = with_attributes(batch(0, 0, many), 0x08) + with_attributes(
        batch(FEW, 0, [(0, (1, b"\0\0\0\0", b"", []))]), 0x20
    )
    found, found_next = columns(data, 0)
    assert [parts(record) for record in found] == plain(data, 0)[0]
    assert set(found.timestamp.tolist()) == {FEW - 1}
    assert (len(found), found_next) == (FEW, FEW + 1)


def with_attributes(raw: bytes, attributes: int) -> bytes:
    """Return a batch with other attributes, its checksum made anew."""
    changed = bytearray(raw)
    changed[21:23] = attributes.to_bytes(2, "big")
    changed[17:21] = calc_crc32c(bytes(changed[21:])).to_bytes(4, "big")
    return bytes(changed)


def test_few_records_stay_objects() -> None:
    data = batch(5, 0, [(n, (n, b"k", b"v", [("ce_id", b"1")])) for n in range(FEW - 1)])
    found = _Sequences(PLACE, _Fetched(data), [], 7, *OPTIONS)
    (sequence,) = found
    assert ([parts(one) for one in sequence], found.next_fetch_offset) == plain(data, 7)


def test_a_flipped_bit_is_corrupt() -> None:
    data = bytearray(log_of([]))
    data[len(data) // 2] ^= 1
    with pytest.raises(CorruptRecordException):
        next(_Sequences(PLACE, _Fetched(bytes(data)), [], 0, *OPTIONS))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_bytes_that_are_no_records_are_corrupt_or_read_within_their_bounds(data: Any) -> None:
    raw = bytearray(batch(0, 0, [(n, (n, b"key", b"value", [("ce_id", b"%d" % n)])) for n in range(5)])[61:])
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = columns_of(("t", 0), bytes(raw), [Region(0, len(raw), 5, 0, 0, None)], 0, HEADERS)
    except (CorruptRecordsError, IndexError):
        return
    for span in (found.key, found.value, *found.named.values()):
        held = span.size >= 0
        assert (span.start[held] >= 0).all()
        assert (span.start[held] + span.size[held] <= len(raw)).all()


STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="id",
    time_field="at",
    max_future_ms=60_000,
)
AT_US = parse_us("2013-06-04T10:00:00Z")
GOOD = b'{"id": "%d", "at": "2013-06-04T10:00:00Z"}'
events = st.sampled_from(
    [
        to_headers(Attributes("1", "here", EVENT_TYPE, AT_US)),
        to_headers(Attributes("2", "there", EVENT_TYPE, AT_US, traceparent="00-1-2-01")),
        to_headers(Attributes("", "here", EVENT_TYPE, AT_US)),
        watermark("paid", AT_US),
        [],
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(events, st.sampled_from([GOOD % 1, GOOD % 2, b"{", None]), st.integers(0, 1)), max_size=20))
def test_events_are_decoded_alike_from_columns_and_from_records(found: Any) -> None:
    given_ms = AT_US // 1000
    placed = [(n, (given_ms - late * 90_000, b"k", value, headers)) for n, (headers, value, late) in enumerate(found)]
    data = batch(0, 0, [*placed, *((len(placed) + n, (given_ms, b"k", GOOD % n, [])) for n in range(FEW))])
    one = StreamDecoder(STREAM).decode(columns(data, 0)[0])
    other = StreamDecoder(STREAM).decode(list(PartitionRecords(PLACE, MemoryRecords(data), [], 0, *OPTIONS)))
    assert np.array_equal(one.offset, other.offset)
    assert np.array_equal(one.event_us, other.event_us)
    assert (one.identities, [(v.f0, v.f1) for v in one.values]) == (
        other.identities,
        [(v.f0, v.f1) for v in other.values],
    )
    assert [(parts(bad.record), bad.poison.reason) for bad in one.refused] == [
        (parts(bad.record), bad.poison.reason) for bad in other.refused
    ]


@pytest.mark.servers
@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
async def test_a_consumer_reads_the_real_log_alike(servers: Any, topic_prefix: str, compression: str | None) -> None:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    await create_topics(kafka.client_kwargs(), stream_topics([("columns", 1)]), topic_prefix)
    topic = kafka.physical(events_topic("columns"))
    async with AIOKafkaProducer(
        **kafka.client_kwargs(), compression_type=compression, max_batch_size=40_000
    ) as producer:
        for first in (0, 700):
            sent = [
                await producer.send(topic, b"%d" % n * 9, key=b"k", partition=0, headers=[("ce_id", b"%d" % n)])
                for n in range(first, first + 700)
            ]
            await producer.flush()
            assert (await sent[-1]).offset == first + 699
    expected = await _read(kafka, topic, 301, as_columns=False)
    assert await _read(kafka, topic, 301, as_columns=True) == expected
    assert (expected[0][2], len(expected), expected[0][6]) == (301, 1_099, [("ce_id", b"301")])


async def _read(kafka: KafkaSettings, topic: str, offset: int, *, as_columns: bool) -> list[Any]:
    """Return every record from an offset on, which lies within a batch."""
    place, kinds = TopicPartition(topic, 0), set()
    found: list[Any] = []
    async with AIOKafkaConsumer(**kafka.client_kwargs(), enable_auto_commit=False) as consumer:
        fetch = column_fetch(consumer) if as_columns else None
        consumer.assign([place])
        consumer.seek(place, offset)
        while len(found) < 1_400 - offset:
            fetched = await (fetch(200, 500) if fetch else consumer.getmany(timeout_ms=200, max_records=500))
            for records in fetched.values():
                kinds.add(type(records))
                found += [parts(record) for record in records]
        assert await consumer.position(place) == 1_400
    assert (RecordColumns in kinds) == as_columns
    return found
