"""What is poison in a record of a stream, and what it is called."""

import json
import sys
from typing import Any, NamedTuple

import pytest
from tidemill_contracts.cloudevents import WATERMARK_TYPE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import EARLIEST_US, LATEST_US, format_us, parse_us
from tidemill_contracts.reasons import Reason
from tidemill_feature.decode import StreamDecoder

TYPES = {
    "ride": definition.FIELD_TYPE_STRING,
    "fare": definition.FIELD_TYPE_FLOAT64,
    "seats": definition.FIELD_TYPE_INT64,
    "at": definition.FIELD_TYPE_TIMESTAMP,
}
STREAM = definition.Stream(
    name="rides",
    fields=[definition.Field(name=name, type=kind) for name, kind in TYPES.items()],
    key_field="ride",
    time_field="at",
    max_event_bytes=100_000,
)
GOOD = {"ride": "r-1", "fare": 1.5, "seats": 2, "at": "2013-06-04T10:00:00Z"}


class Raw(NamedTuple):
    """A record as it lies in the log."""

    value: bytes | None
    topic: str = "events.rides"
    partition: int = 0
    offset: int = 0
    timestamp: int = parse_us("2013-06-04T10:00:01Z") // 1000
    key: bytes | None = b"r-1"
    headers: tuple[tuple[str, bytes], ...] = ()


def but(**changes: Any) -> bytes:
    """Return the good event with some fields changed; `...` leaves one out."""
    return json.dumps({k: v for k, v in {**GOOD, **changes}.items() if v is not ...}).encode()


def deep(depth: int) -> bytes:
    """Return the good event with an undeclared field of many nested lists."""
    return but()[:-1] + b', "extra": ' + b"[" * depth + b"]" * depth + b"}"


BAD = [
    (None, Reason.EMPTY, ""),
    (b"", Reason.EMPTY, ""),
    (b"\xff\xfe", Reason.BAD_UTF8, ""),
    (but().decode().encode("utf-16"), Reason.BAD_UTF8, ""),
    (but()[:-3], Reason.UNDECODABLE, ""),
    (b"[1]", Reason.UNDECODABLE, ""),
    (deep(5_000), Reason.UNDECODABLE, ""),
    (deep(40_000), Reason.UNDECODABLE, ""),
    (but(ride="\ud800"), Reason.BAD_UTF8, "ride"),
    (but(ride=...), Reason.MISSING_FIELD, "ride"),
    (but(ride=None), Reason.NULL_KEY, "ride"),
    (but(ride=""), Reason.NULL_KEY, "ride"),
    (but(fare=...), Reason.MISSING_FIELD, "fare"),
    (but(fare=None), Reason.MISSING_FIELD, "fare"),
    (but(fare="1"), Reason.WRONG_TYPE, "fare"),
    (but(fare=float("nan")), Reason.NON_FINITE, ""),
    (but().replace(b"1.5", b"1e999"), Reason.NON_FINITE, "fare"),
    (but(seats=2**63), Reason.OUT_OF_RANGE, "seats"),
    (but(seats=2**70), Reason.OUT_OF_RANGE, "seats"),
    (but(at="2013-06-04T10:00:00"), Reason.NAIVE_TIMESTAMP, "at"),
    (but(at="2013-06-04"), Reason.WRONG_TYPE, "at"),
    (but(at="2013-W23-2T10:00:00Z"), Reason.WRONG_TYPE, "at"),
    (but(at="0001-01-01T00:00:00+14:00"), Reason.OUT_OF_RANGE, "at"),
    (but(fare=1, ride="r" * 100_000), Reason.OVERSIZED, ""),
]


@pytest.mark.parametrize(("value", "reason", "field"), BAD)
def test_a_bad_record_is_refused_with_its_one_reason(value: bytes | None, reason: Reason, field: str) -> None:
    found = StreamDecoder(STREAM).decode([Raw(value), Raw(but())])
    assert len(found.values) == 1, "the record after it is read"
    (refused,) = found.refused
    assert (refused.poison.reason, refused.poison.field) == (reason, field)


LIMITS = [
    (but(ride="r" * (100 - len(but(ride="")))), 0, True),
    (but(ride="r" * (101 - len(but(ride="")))), 0, False),
    (but(fare=sys.float_info.max), 0, True),
    (but(seats=2**63 - 1), 0, True),
    (but(at="2013-06-04T10:00:02Z"), 1_000, True),
    (but(at="2013-06-04T10:00:02.000001Z"), 1_000, False),
    (but(at=format_us(EARLIEST_US)), 0, True),
    (but(at=format_us(EARLIEST_US - 1)), 0, False),
    (but(at=format_us(LATEST_US - 1)), 0, True),
    (but(at=format_us(LATEST_US)), 0, False),
]


@pytest.mark.parametrize(("value", "max_future_ms", "good"), LIMITS)
def test_what_is_within_the_limits_is_an_event_whether_or_not_poison_lies_beside_it(
    value: bytes, max_future_ms: int, good: bool
) -> None:
    stream = definition.Stream()
    stream.CopyFrom(STREAM)
    stream.max_event_bytes, stream.max_future_ms = 100, max_future_ms
    for beside in ([], [Raw(b"")]):
        assert len(StreamDecoder(stream).decode([Raw(value), *beside]).values) == good


@pytest.mark.parametrize(
    ("until", "good"),
    [
        (None, True),
        ("0001-01-01T00:00:00Z", True),
        ("0001-01-01T00:00:00-01:00", True),
        # No calendar has the year before, nor the one after.
        ("0001-01-01T00:00:00+01:00", False),
        ("9999-12-31T23:59:59.999999Z", True),
        ("9999-12-31T23:59:59+01:00", True),
        ("9999-12-31T23:59:59-01:00", False),
    ],
)
def test_an_instant_that_utc_cannot_write_is_poison_in_any_field(until: str | None, good: bool) -> None:
    stream = definition.Stream()
    stream.CopyFrom(STREAM)
    stream.fields.add(name="until", type=definition.FIELD_TYPE_TIMESTAMP, nullable=True)
    for beside in ([], [Raw(b"")]):
        found = StreamDecoder(stream).decode([Raw(but(until=until)), *beside])
        assert len(found.values) == good
        refused = {(one.poison.reason, one.poison.field) for one in found.refused}
        assert ((Reason.OUT_OF_RANGE, "until") in refused) != good


def test_watermarks_and_identities_are_read_alike_whether_or_not_poison_lies_beside_them() -> None:
    records = [
        Raw(b"{}", headers=(("ce_type", WATERMARK_TYPE.encode()),)),
        Raw(but(), offset=1, headers=(("ce_source", b"meter"), ("ce_id", b"7"))),
        Raw(but(), offset=2, headers=(("ce_source", b"meter"),)),
    ]
    for beside in ([], [Raw(b"", offset=3)]):
        found = StreamDecoder(STREAM).decode([*records, *beside])
        assert (found.identities, len(found.refused)) == ([(b"meter", b"7"), 2], len(beside))
