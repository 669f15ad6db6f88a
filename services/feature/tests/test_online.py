"""Which records of a batch the online worker folds, counts and refuses, decided without any server."""

import json
from typing import NamedTuple

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us, parse_us
from tidemill_contracts.reasons import Reason
from tidemill_feature.decode import StreamDecoder
from tidemill_feature.online import OnlineState, PartitionState, StreamCounts, StreamState, step
from tidemill_features.admission import Admission, rules_of
from tidemill_features.fold import ViewShards
from tidemill_features.plan import compile_view
from tidemill_runtime.batches import Batch
from tidemill_runtime.positions import Partition

PLACE = Partition("events.rides", 0)
BUILD = b"b" * 16
AT_US = parse_us("2013-06-04T10:00:00Z")
LATENESS_S, WINDOW_S = 4, 60
STREAM = definition.Stream(
    name="rides",
    fields=[
        definition.Field(name="ride", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="ride",
    time_field="at",
    max_event_bytes=100_000,
    lateness_ms=LATENESS_S * 1_000,
    dedup_window_ms=WINDOW_S * 1_000,
)
COUNT = definition.Aggregation(
    name="n",
    function=definition.AGGREGATION_FUNCTION_COUNT,
    window_ms=60_000,
    type=definition.FIELD_TYPE_INT64,
)


class Written(NamedTuple):
    """A record as it lies in the log."""

    value: bytes
    offset: int
    headers: tuple[tuple[str, bytes], ...]
    topic: str = PLACE.topic
    partition: int = PLACE.number
    timestamp: int = AT_US // 1_000
    key: bytes = b"r"


def event(offset: int, name: str, second: int) -> Written:
    value = json.dumps({"ride": "r", "at": format_us(AT_US + second * 1_000_000)}).encode()
    return Written(value, offset, (("ce_source", b"meter"), ("ce_id", name.encode())))


LOG = [event(0, "a", 0), event(1, "b", 50), event(2, "a", 0), event(3, "c", 45), event(4, "d", 46)]


def state(policy: "definition.LatePolicy.ValueType", **place: int) -> OnlineState:
    stream = definition.Stream()
    stream.CopyFrom(STREAM)
    stream.late_policy = policy
    plan = compile_view(definition.View(name="busy", stream="rides", entity=["ride"], features=[COUNT]), stream)
    shards = {BUILD: ViewShards(plan, "p", 100)}
    source = StreamState(stream, StreamDecoder(stream), shards, ("ride",))
    where = {"applied": 0, "next_offset": 0, **place}
    held = PartitionState(bytes(16), None, admission=Admission(rules_of(stream)), views=frozenset({BUILD}), **where)
    return OnlineState(1, {"rides": source}, {PLACE: held})


@pytest.mark.parametrize(
    ("policy", "folded", "left_out", "dead"),
    [
        (definition.LATE_POLICY_DROP, [0, 1, 4], 1, []),
        (definition.LATE_POLICY_CORRECT, [0, 1, 3, 4], 0, []),
        (definition.LATE_POLICY_DEAD_LETTER, [0, 1, 4], 1, [3]),
    ],
)
def test_late_events_go_by_their_streams_policy_and_a_late_repeat_is_a_repeat(
    policy: "definition.LatePolicy.ValueType", folded: list[int], left_out: int, dead: list[int]
) -> None:
    online = state(policy)
    done = step(online, Batch({PLACE: LOG}))
    (folding,) = done.effects.foldings
    assert folding.events.offset.tolist() == folded
    assert [(one.record.offset, one.poison.reason) for one in done.refused] == [(at, Reason.TOO_LATE) for at in dead]
    assert online.streams["rides"].counts == StreamCounts(5, 1, 1, left_out, len(dead))
    assert (online.partitions[PLACE].next_offset, online.partitions[PLACE].read) == (5, 5)


@pytest.mark.parametrize(("seen", "dead"), [(3, [3]), (4, [])])
def test_what_was_refused_before_is_not_refused_again(seen: int, dead: list[int]) -> None:
    done = step(state(definition.LATE_POLICY_DEAD_LETTER, seen=seen), Batch({PLACE: LOG}))
    assert [one.record.offset for one in done.refused] == dead


def test_what_is_in_the_rings_already_is_remembered_and_not_folded_again() -> None:
    online = state(definition.LATE_POLICY_DROP, applied=2, next_offset=2)
    (folding,) = step(online, Batch({PLACE: LOG})).effects.foldings
    assert folding.events.offset.tolist() == [4]
    assert online.streams["rides"].counts == StreamCounts(3, 1, 1, 1)


@pytest.mark.parametrize(("read", "backwards"), [(0, None), (1, PLACE)])
def test_of_offsets_that_fell_nothing_is_looked_at(read: int, backwards: Partition | None) -> None:
    online = state(definition.LATE_POLICY_DROP, read=read, next_offset=read)
    done = step(online, Batch({PLACE: LOG}))
    assert done.effects.backwards == backwards
    assert bool(done.effects.foldings) == (backwards is None)
