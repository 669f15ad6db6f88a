"""What becomes of each event of a request: headers, identity, repeats, gates that follow definitions."""

import json
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.canonical import stream_hash, to_json
from tidemill_contracts.cloudevents import WATERMARK_TYPE, Attributes, from_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.instants import format_us, parse_us
from tidemill_contracts.reasons import Reason
from tidemill_ingestion.admission import Admission, Admitted, Gate, Held, Repeat
from tidemill_ingestion.brake import Brake, Limit
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.recent import Recent
from tidemill_ingestion.verdicts import Refusal

NOW_US = 1_800_000_000_000_000
HOUR_MS = 3_600_000
STREAM = definition.Stream(
    name="rides",
    fields=[
        definition.Field(name="ride_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="ride_id",
    time_field="at",
    partitions=3,
    dedup_window_ms=HOUR_MS,
    max_future_ms=600_000,
)


def event(identity: str = "", *, at: str = "2013-06-04T10:00:00Z", **attributes: str) -> messages.Event:
    data = json.dumps({"ride_id": "r-1", "at": at}).encode()
    return messages.Event(id=identity, data=data, **attributes)


def admit(gate: Gate, *events: messages.Event, source: str = "") -> list[Admission]:
    return gate.admit(events, source, NOW_US, lambda: "assigned")


@pytest.fixture
def gate() -> Gate:
    return Gate(STREAM, Recent(100))


def admitted(admission: Admission) -> Admitted:
    assert isinstance(admission, Admitted)
    return admission


def test_headers_are_what_the_codec_reads(gate: Gate) -> None:
    one = admitted(admit(gate, event("e-1", source="meter", type="ride.ended", traceparent="00-1"))[0])
    assert (one.topic, one.key, one.value) == ("events.rides", b"r-1", event().data)
    assert from_headers(one.headers) == Attributes(
        id="e-1",
        source="meter",
        type="ride.ended",
        time_us=parse_us("2013-06-04T10:00:00Z"),
        subject="rides",
        dataschema=stream_hash(STREAM),
        traceparent="00-1",
    )
    assert dict(one.headers)["ce_specversion"] == b"1.0"
    assert dict(one.headers)["content-type"] == b"application/json"


def test_event_time_is_written_in_utc(gate: Gate) -> None:
    one = admitted(admit(gate, event(at="2013-06-04T12:00:00+02:00"))[0])
    assert dict(one.headers)["ce_time"] == b"2013-06-04T10:00:00Z"


def test_an_event_without_id_gets_one_and_is_nobodys_repeat(gate: Gate) -> None:
    one, two = admit(gate, event(), event())
    attributes = from_headers(admitted(one).headers)
    assert (attributes.id, attributes.source) == ("assigned", "tidemill/ingestion")
    assert attributes.type == "tidemill.event.v1"
    assert isinstance(two, Admitted)


def test_source_of_the_batch_stands_in_for_the_events(gate: Gate) -> None:
    one, two = admit(gate, event("1"), event("1", source="own"), source="batch")
    assert from_headers(admitted(one).headers).source == "batch"
    assert from_headers(admitted(two).headers).source == "own"


def test_a_repeat_within_the_request_points_to_the_first(gate: Gate) -> None:
    assert admit(gate, event("1"), event("2"), event("1"))[2] == Repeat(0)


def test_a_repeat_has_its_event_time_within_the_window_of_the_first_in_one_request_as_in_two(gate: Gate) -> None:
    first, near, far = event("1"), event("1", at="2013-06-04T11:00:00Z"), event("1", at="2013-06-05T10:00:00Z")
    found = admit(gate, first, near, far, far)
    assert [type(one) for one in found] == [Admitted, Repeat, Admitted, Repeat]
    assert (found[1], found[3]) == (Repeat(0), Repeat(2))
    assert gate.profile.cut(NOW_US).duplicates == 2


def test_without_a_window_only_the_same_instant_is_a_repeat_in_one_request_as_in_two() -> None:
    unwindowed = definition.Stream()
    unwindowed.CopyFrom(STREAM)
    unwindowed.dedup_window_ms = 0
    gate = Gate(unwindowed, Recent(100))
    found = admit(gate, event("1"), event("1", at="2013-06-04T10:00:01Z"), event("1", at="2013-06-04T10:00:01Z"))
    assert [type(one) for one in found] == [Admitted, Admitted, Repeat]


def verdicts(requests: Sequence[Sequence[Sequence[messages.Event]]]) -> tuple[list[type], int, int]:
    """Return what became of each event, and what the profile counted; a request brings events in several batches."""
    gate, found = Gate(STREAM, Recent(100)), list[Admission]()
    for batches in requests:
        request = gate.request()
        answered = [one for batch in batches for one in gate.admit(batch, "s", NOW_US, lambda: "new", request)]
        for one in answered:
            if isinstance(one, Admitted):
                gate.accepted(one, 0, NOW_US)
        found += answered
    profile = gate.profile.cut(NOW_US)
    return [type(one) for one in found], profile.accepted, profile.duplicates


def split(events: Sequence[messages.Event], cuts: set[int]) -> list[Sequence[messages.Event]]:
    places = [0, *sorted(cut for cut in cuts if cut < len(events)), len(events)]
    return [events[begin:end] for begin, end in pairwise(places)]


CUTS = st.sets(st.integers(1, 24))
T0_US = parse_us("2013-06-04T10:00:00Z")


@given(
    st.lists(st.tuples(st.sampled_from(["", "1", "2", "3"]), st.integers(0, 16)), min_size=1, max_size=25), CUTS, CUTS
)
def test_however_events_are_split_into_requests_and_batches_their_verdicts_are_the_same(
    sent: list[tuple[str, int]], requests: set[int], batches: set[int]
) -> None:
    quarter_us = HOUR_MS * 1000 // 4
    events = [event(name, at=format_us(T0_US + step * quarter_us)) for name, step in sent]
    alone = verdicts([[[one]] for one in events])
    assert verdicts([split(one, batches) for one in split(events, requests)]) == alone
    assert verdicts([[events]]) == alone


def test_only_what_kafka_acknowledged_makes_a_later_event_a_repeat(gate: Gate) -> None:
    first = admitted(admit(gate, event("1"))[0])
    assert isinstance(admit(gate, event("1"))[0], Admitted)
    gate.accepted(first, 0, NOW_US)
    assert admit(gate, event("1"))[0] == Repeat(None)


def test_the_same_identity_beyond_the_window_is_another_event(gate: Gate) -> None:
    gate.accepted(admitted(admit(gate, event("1"))[0]), 0, NOW_US)
    assert admit(gate, event("1", at="2013-06-04T11:00:00Z"))[0] == Repeat(None)
    assert isinstance(admit(gate, event("1", at="2013-06-04T11:00:00.000001Z"))[0], Admitted)


def test_memory_of_identities_is_bounded_and_forgets_the_oldest() -> None:
    recent = Recent(2)
    for number in range(3):
        recent.add(("s", str(number)), 0, 10)
    recent.add(("s", "1"), 5, 10)
    recent.add(("s", "9"), 0, 10)
    assert len(recent) == 2
    assert recent.forgotten == 2
    assert [recent.holds(("s", name), 0, 10) for name in ("0", "1", "2", "9")] == [False, True, False, True]


def test_identities_leave_memory_once_the_window_has_passed_them() -> None:
    recent = Recent(100)
    for number in range(50):
        recent.add(("s", str(number)), number, 10)
    assert len(recent) == 11
    assert recent.forgotten == 0
    assert not recent.holds(("s", "38"), 38, 10)
    assert recent.holds(("s", "39"), 39, 10)


def test_a_late_event_pushes_nothing_that_is_in_the_window_out_of_memory() -> None:
    recent = Recent(100)
    for number, time_us in enumerate((100, 50, 101)):
        recent.add(("s", str(number)), time_us, 10)
    assert recent.holds(("s", "0"), 100, 10)
    assert recent.holds(("s", "2"), 101, 10)


def test_a_paused_stream_decides_about_no_event_and_takes_events_again_by_itself() -> None:
    gate = Gate(STREAM, Recent(10), brake=Brake(Limit(share=0.5, min_events=4, pause_us=1_000)))
    bad = messages.Event(data=b"{")
    assert [type(one) for one in admit(gate, event("1"), bad, bad, bad)] == [Admitted, Refusal, Refusal, Refusal]
    held = admit(gate, event("2"), bad)
    assert [type(one) for one in held] == [Held, Held]
    pause = gate.paused(NOW_US)
    assert pause is not None
    assert (pause.refused, pause.events, pause.mostly) == (3, 4, "undecodable")
    assert [change.resumed_us for change in gate.changes] == [None]
    assert gate.paused(NOW_US + 1_000) is None
    assert isinstance(admit(gate, event("2"))[0], Admitted)
    assert [change.resumed_us for change in gate.changes] == [None, NOW_US + 1_000]


def test_a_redefinition_ends_no_pause_and_forgets_no_identity() -> None:
    gates = Gates(10, lambda _name: Limit(share=0.0, min_events=1))
    record = definition.DefinitionRecord(kind="stream", name="rides", revision=1)
    record.definition.streams.append(STREAM)
    gates.fold(to_json(record))
    gate = gates.find("rides")
    assert isinstance(gate, Gate)
    admit(gate, messages.Event(data=b"{"))
    record.definition.streams[0].max_event_bytes = 77
    gates.fold(to_json(record))
    after = gates.find("rides")
    assert isinstance(after, Gate)
    assert after is not gate
    assert isinstance(admit(after, event("1"))[0], Held)
    assert after.recent is gate.recent
    assert len(after.changes) == 1


def test_watermarks_cannot_be_forged_by_a_producer(gate: Gate) -> None:
    refused = admit(gate, event("1", type=WATERMARK_TYPE))[0]
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.field) == (Reason.UNSUPPORTED, "type")


@pytest.mark.parametrize("name", ["id", "source", "type", "traceparent"])
def test_attributes_are_bounded(gate: Gate, name: str) -> None:
    one = event()
    setattr(one, name, "x" * 600)
    refused = admit(gate, one)[0]
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.field) == (Reason.OVERSIZED, name)


def record(stream: definition.Stream) -> bytes:
    closure = definition.Definition(streams=[stream])
    return to_json(definition.DefinitionRecord(kind="stream", name=stream.name, definition=closure))


def test_gates_follow_definitions() -> None:
    gates = Gates(10)
    missing = gates.find("rides")
    assert isinstance(missing, Refusal)
    assert missing.reason is Reason.UNKNOWN_STREAM
    gates.fold(record(STREAM))
    before = gates.find("rides")
    gates.fold(record(STREAM))
    assert gates.find("rides") is before
    wider = definition.Stream()
    wider.CopyFrom(STREAM)
    wider.fields.add(name="tip", type=definition.FIELD_TYPE_FLOAT64)
    gates.fold(record(wider))
    after = gates.find("rides")
    assert isinstance(after, Gate)
    refused = admit(after, event("1"))[0]
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.field) == (Reason.MISSING_FIELD, "tip")
    gates.fold(None)
    with pytest.raises(ValueError, match="DefinitionRecord"):
        gates.fold(b"[]")


def test_a_redefined_stream_still_knows_its_repeats() -> None:
    gates = Gates(10)
    gates.fold(record(STREAM))
    before = gates.find("rides")
    assert isinstance(before, Gate)
    before.accepted(admitted(admit(before, event("1"))[0]), 0, NOW_US)
    longer = definition.Stream()
    longer.CopyFrom(STREAM)
    longer.max_future_ms += 1
    gates.fold(record(longer))
    after = gates.find("rides")
    assert isinstance(after, Gate)
    assert admit(after, event("1"))[0] == Repeat(None)


def test_a_retired_stream_takes_no_events_until_it_is_registered_again() -> None:
    gates = Gates(10)
    gates.fold(record(STREAM))
    gates.fold(to_json(definition.DefinitionRecord(kind="view", name="rides", retired=True)))
    assert isinstance(gates.find("rides"), Gate)
    gates.fold(to_json(definition.DefinitionRecord(kind="stream", name="rides", retired=True)))
    refusal = gates.find("rides")
    assert isinstance(refusal, Refusal)
    assert refusal.reason is Reason.UNKNOWN_STREAM
    assert (len(gates), list(gates)) == (0, [])
    gates.fold(record(STREAM))
    assert isinstance(gates.find("rides"), Gate)


def test_a_watermark_reaches_every_partition_of_its_streams() -> None:
    gates = Gates(10)
    gates.fold(record(STREAM))
    assert gates.check_watermark(["rides"], 1_370_000_000_000_000, NOW_US) is None
    marks = list(gates.watermarks(["rides", "rides"], 1_370_000_000_000_000))
    assert [(topic, partition) for topic, partition, _ in marks] == [("events.rides", number) for number in range(3)]
    assert from_headers(marks[0][2]).is_watermark


@pytest.mark.parametrize(
    ("streams", "time_us", "reason"),
    [
        (["walks"], NOW_US, Reason.UNKNOWN_STREAM),
        (["rides"], NOW_US + 600_000_001, Reason.TOO_FAR_IN_FUTURE),
        (["rides"], -(2**63), Reason.OUT_OF_RANGE),
    ],
)
def test_a_watermark_that_would_break_clocks_is_refused(streams: list[str], time_us: int, reason: Reason) -> None:
    gates = Gates(10)
    gates.fold(record(STREAM))
    refusal = gates.check_watermark(streams, time_us, NOW_US)
    assert refusal is not None
    assert refusal.reason is reason
