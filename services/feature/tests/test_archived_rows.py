"""What the offline role makes of records before it writes them, and what it reads out of its own marks."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidemill_contracts.cloudevents import watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.progress.v1.progress_pb2 import TopicPartitionOffset
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_feature.archiving import Buffer, event_rows, prediction_rows
from tidemill_feature.decode import HEADERS, StreamDecoder
from tidemill_feature.record_columns import RecordColumns, Region, columns_of
from tidemill_features.admission import Admission, Rules, rules_of
from tidemill_features.archive import counting, identity_text, offsets_of, summary_of
from tidemill_runtime.batches import Batch
from tidemill_runtime.positions import Partition
from tidemill_testkit.click_world import NOW_MS, Row, event, stream
from tidemill_testkit.effort import examples

# Behind them lie the records of a batch.
HEAD_BYTES = 61


def as_columns(records: Sequence[Row]) -> RecordColumns:
    """Return records as they come where there are many."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, -1, 2**24)
    for one in records:
        builder.append(one.offset - records[0].offset, one.timestamp, one.key, one.value, list(one.headers))
    raw = bytes(builder.build())
    region = Region(HEAD_BYTES, len(raw), len(records), records[0].offset, records[0].timestamp, None)
    return columns_of(("t", 0), raw, [region], 0, HEADERS)


def test_rows_carry_origin_identity_and_typed_fields_and_leave_out_watermarks() -> None:
    records = [
        event("t", 5),
        event("t", 6, amount=None, name="again"),
        Row("t", 0, 7, None, b"", watermark("clicks", 1)),
    ]
    rows = event_rows(stream(), [(0, records)])
    assert rows.columns["_offset"] == [5, 6]
    assert rows.columns["_identity"] == ["s\x1f5", "s\x1fagain"]
    assert rows.columns["amount"] == [1.0, None]
    # Kafka tells milliseconds: the record came before the end of its one.
    assert rows.columns["_available_us"] == [NOW_MS * 1000 + 999] * 2
    assert rows.columns["at"] == rows.columns["_event_us"]
    assert not rows.refused


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"\xff", b'{"user": null, "at": "2013-01-01T00:00:00Z"}'])
def test_poison_is_left_out_and_named(value: bytes | None) -> None:
    rows = event_rows(stream(), [(0, [event("t", 1), Row("t", 0, 2, b"u", value, [])])])
    assert rows.columns["_offset"] == [1]
    assert [refused.record.offset for refused in rows.refused] == [2]


def test_predictions_name_their_positions_by_topic() -> None:
    prediction = serving.PredictionRecord(
        prediction_id="p",
        pipeline="x",
        join_key="k",
        as_of_us=3,
        positions=[TopicPartitionOffset(topic="events.a", partition=n, next_offset=7 + n) for n in (0, 1)],
        request_json=b'{"user":"u"}',
    )
    rows = prediction_rows([(0, [Row("t", 0, 1, b"k", prediction.SerializeToString(), [])])])
    assert json.loads(rows.columns["positions"][0]) == {"events.a": {"0": 7, "1": 8}}
    assert rows.columns["_event_us"] == rows.columns["as_of_us"] == [3]


def test_a_buffer_is_full_by_bytes_and_empty_after_a_commit() -> None:
    buffer = Buffer(max_bytes=2_600)
    place = Partition("t", 0)
    for offset in range(5):
        assert not buffer.full
        buffer.add(Batch({place: [event("t", offset)]}))
    assert buffer.full
    assert buffer.read[place] == (0, 5)
    buffer.clear()
    assert not buffer.full
    assert not buffer.topics()


def test_a_buffer_knows_how_far_was_read_where_the_last_records_were_kept_back() -> None:
    buffer, place, other = Buffer(max_bytes=10_000), Partition("t", 0), Partition("t", 1)
    buffer.add(Batch({place: [event("t", 3)]}, {place: 6}))
    buffer.add(Batch({}, {place: 8, other: 2}))
    assert (buffer.read, buffer.rows) == ({place: (3, 8), other: (2, 2)}, 1)


def test_rows_and_room_are_the_same_however_many_records_came_at_once() -> None:
    few = [event("t", offset, amount=None if offset % 3 else 2.5) for offset in range(12)]
    few[7] = Row("t", 0, 7, b"u", b"{", few[7].headers, few[7].timestamp + 3)
    place, singly, mixed = Partition("t", 0), Buffer(max_bytes=10_000), Buffer(max_bytes=10_000)
    for one in few:
        singly.add(Batch({place: [one]}))
    for run in (few[:2], few[2:3], as_columns(few[3:10]), few[10:]):
        mixed.add(Batch({place: run}))
    rows, expected = (event_rows(stream(), buffer.runs("t")) for buffer in (mixed, singly))
    assert rows.columns == expected.columns
    assert len(rows) == 11
    assert [(one.record.offset, one.poison.reason) for one in rows.refused] == [(7, "undecodable")]
    assert (mixed.bytes, mixed.rows, mixed.read) == (singly.bytes, 12, {place: (0, 12)})
    mixed.sift(lambda batch: Batch({place: [one for one in batch if one.offset % 2]}))
    assert mixed.rows == 6
    assert event_rows(stream(), mixed.runs("t")).columns["_offset"] == [1, 3, 5, 9, 11]
    mixed.forget("t")
    assert (mixed.bytes, mixed.rows) == (0, 0)


def test_predictions_are_read_from_columns_too() -> None:
    values = [serving.PredictionRecord(prediction_id=f"p{n}", as_of_us=n).SerializeToString() for n in range(3)]
    records = [Row("t", 0, n, b"k", value, [("a", b"b")]) for n, value in enumerate([*values, b"\xff", None])]
    rows, expected = prediction_rows([(0, as_columns(records))]), prediction_rows([(0, records)])
    assert rows.columns == expected.columns
    assert rows.columns["prediction_id"] == ["p0", "p1", "p2", ""]
    assert [one.record.offset for one in rows.refused] == [3]


def test_offsets_survive_the_snapshot_summary() -> None:
    assert offsets_of(summary_of({1: 5, 0: 2**40})) == {0: 2**40, 1: 5}
    assert offsets_of({}) == {}


# Bytes that are no UTF-8, that join a text's parts, that begin one in hexadecimal or an offset, and digits of both.
PARTS = st.lists(
    st.sampled_from([b"a", b"7", b"\x1f", b"\x1e", b"#", b"\xc3\xa9", b"\xff", b"1f"]), min_size=1, max_size=3
)
NAMES = st.one_of(PARTS.map(b"".join), st.binary(min_size=1, max_size=4))
IDENTITIES = st.one_of(st.integers(0, 9), st.tuples(NAMES, NAMES))


@settings(max_examples=examples(1_000), deadline=None)
@given(one=IDENTITIES, other=IDENTITIES)
@example(one=(b"s", b"7"), other=7)
@example(one=(b"a\x1fb", b"c"), other=(b"a", b"b\x1fc"))
@example(one=(b"pos", b"\xfe"), other=(b"pos", b"\xff"))
@example(one=(b"\x1e61", b"ff"), other=(b"a", b"\xff"))
def test_two_identities_have_one_text_only_where_they_are_one(one: Any, other: Any) -> None:
    assert (identity_text(one) == identity_text(other)) == (one == other)


@pytest.mark.parametrize(("source", "name"), [("s", "7"), ("https://pos/é", "\U0001f600"), ("#7", "\x1e")])
def test_the_text_of_an_identity_in_utf_8_is_what_older_tables_hold(source: str, name: str) -> None:
    assert identity_text((source.encode(), name.encode())) == f"{source}\x1f{name}"


@settings(max_examples=examples(100), deadline=None)
@given(named=st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=20))
@example(named=[(b"pos", b"\xfe"), (b"pos", b"\xff"), (b"pos", b"\xfe")])
def test_archived_rows_and_rows_in_columns_count_what_the_online_role_counts(named: list[tuple[bytes, bytes]]) -> None:
    records = [
        replace(event("t", offset), headers=[("ce_source", source), ("ce_id", name)])
        for offset, (source, name) in enumerate(named)
    ]
    rules = rules_of(stream())
    online = StreamDecoder(stream()).decode(records)
    expected = ~Admission(rules).admit(online.offset, online.event_us, online.identities).duplicate
    for run in (records, as_columns(records)):
        rows = event_rows(stream(), [(0, run)]).columns
        codes = {text: code for code, text in enumerate(dict.fromkeys(rows["_identity"]))}
        identity = np.array([codes[text] for text in rows["_identity"]])
        places = np.zeros(len(named), np.int64), np.arange(len(named))
        assert counting(*places, identity, np.array(rows["_event_us"]), rules).tolist() == expected.tolist()


def test_what_counts_is_what_the_online_role_would_fold() -> None:
    partition = np.zeros(5, np.int64)
    event_us = np.array([0, 100, 100, 10, 101]) * 1_000_000
    identity = np.array([0, 1, 1, 2, 3])
    rules = Rules(60_000_000, 60_000_000, definition.LATE_POLICY_DROP)
    assert counting(partition, np.arange(5), identity, event_us, rules).tolist() == [True, True, False, False, True]
    corrected = Rules(60_000_000, 60_000_000, definition.LATE_POLICY_CORRECT)
    assert counting(partition, np.arange(5), identity, event_us, corrected).tolist() == [True, True, False, True, True]
