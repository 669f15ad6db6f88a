"""Verdicts on events: every class of bad input by its name, and two validators with one opinion."""

import json
import math
from contextlib import suppress
from datetime import timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import EARLIEST_US, EPOCH, LATEST_US
from tidemill_contracts.reasons import Reason
from tidemill_ingestion.timestamps import InstantError, parse
from tidemill_ingestion.validation import Validator
from tidemill_ingestion.verdicts import Refusal, Valid

NOW_US = 1_800_000_000_000_000
GOOD = {
    "ride_id": "r-1",
    "seats": 3,
    "fare": 12.5,
    "shared": False,
    "note": None,
    "at": "2013-06-04T10:00:00Z",
    "due": "2013-06-04T12:00:00.25+02:00",
}


def field(name: str, kind: int, *, nullable: bool = False) -> definition.Field:
    return definition.Field(name=name, type=kind, nullable=nullable)  # type: ignore[arg-type]


STREAM = definition.Stream(
    name="rides",
    fields=[
        field("ride_id", definition.FIELD_TYPE_STRING),
        field("seats", definition.FIELD_TYPE_INT64, nullable=True),
        field("fare", definition.FIELD_TYPE_FLOAT64),
        field("shared", definition.FIELD_TYPE_BOOL),
        field("note", definition.FIELD_TYPE_STRING, nullable=True),
        field("at", definition.FIELD_TYPE_TIMESTAMP),
        field("due", definition.FIELD_TYPE_TIMESTAMP, nullable=True),
    ],
    key_field="ride_id",
    time_field="at",
    max_future_ms=600_000,
    max_event_bytes=2_000,
)
VALIDATOR = Validator(STREAM)


def but(**changed: Any) -> bytes:
    """Return the good event with fields changed; `...` leaves one out."""
    event = {name: value for name, value in {**GOOD, **changed}.items() if value is not ...}
    return json.dumps(event).encode()


def text(value: str) -> bytes:
    """Return the good event with the fare written as given, since Python would not write it so."""
    return but(fare="FARE").replace(b'"FARE"', value.encode())


def test_a_good_event_is_valid_with_its_key_and_time() -> None:
    fields = json.loads(but())
    assert VALIDATOR.check(but(), NOW_US) == Valid(b"r-1", 1_370_340_000_000_000, "2013-06-04T10:00:00Z", fields)


BAD = [
    (b"", Reason.EMPTY, ""),
    (b"  ", Reason.EMPTY, ""),
    (b"\xff{}", Reason.BAD_UTF8, ""),
    (but()[:-9], Reason.UNDECODABLE, ""),
    (b"{} {}", Reason.UNDECODABLE, ""),
    (b"[1]", Reason.UNDECODABLE, ""),
    (b"null", Reason.UNDECODABLE, ""),
    (b"\xef\xbb\xbf" + but(), Reason.UNDECODABLE, ""),
    (b'{"a":' * 400 + b"1" + b"}" * 400, Reason.OVERSIZED, ""),
    (but(note="x" * 3000), Reason.OVERSIZED, ""),
    (but(note="\ud800"), Reason.BAD_UTF8, "note"),
    (but(**{"a\ud800": 1}), Reason.BAD_UTF8, "a\\ud800"),
    (but(**{"a\ud800": math.nan}), Reason.NON_FINITE, "a\\ud800"),
    (but(größe="\ud800"), Reason.BAD_UTF8, "größe"),
    (but(extra=1), Reason.UNKNOWN_FIELD, "extra"),
    (but(**{"e" * 1_000: 1}), Reason.UNKNOWN_FIELD, "e" * 100),
    (but(**{"e" * 1_000: math.nan}), Reason.NON_FINITE, "e" * 100),
    (but(**{"e" * 1_000: "\ud800"}), Reason.BAD_UTF8, "e" * 100),
    (but(fare=...), Reason.MISSING_FIELD, "fare"),
    (but(ride_id=...), Reason.MISSING_FIELD, "ride_id"),
    (but(ride_id=None), Reason.NULL_KEY, "ride_id"),
    (but(ride_id=7), Reason.WRONG_TYPE, "ride_id"),
    (but(ride_id=""), Reason.NULL_KEY, "ride_id"),
    (but(fare=None), Reason.MISSING_FIELD, "fare"),
    (but(fare="12"), Reason.WRONG_TYPE, "fare"),
    (but(fare=True), Reason.WRONG_TYPE, "fare"),
    (but(fare=[1]), Reason.WRONG_TYPE, "fare"),
    (text("NaN"), Reason.NON_FINITE, "fare"),
    (text("-Infinity"), Reason.NON_FINITE, "fare"),
    (text("1e999"), Reason.NON_FINITE, "fare"),
    (text("1" + "0" * 400), Reason.NON_FINITE, "fare"),
    (but(seats=2**63), Reason.OUT_OF_RANGE, "seats"),
    (but(seats=-(2**63) - 1), Reason.OUT_OF_RANGE, "seats"),
    (but(seats=2**70), Reason.OUT_OF_RANGE, "seats"),
    (but(seats=10**400), Reason.OUT_OF_RANGE, "seats"),
    (but(seats=1.0), Reason.WRONG_TYPE, "seats"),
    (but(seats=True), Reason.WRONG_TYPE, "seats"),
    (but(shared=1), Reason.WRONG_TYPE, "shared"),
    (but(at="2013-06-04T10:00:00"), Reason.NAIVE_TIMESTAMP, "at"),
    (but(due="2013-06-04T10:00:00.5"), Reason.NAIVE_TIMESTAMP, "due"),
    (but(at="2013-W23-2T10:00:00Z"), Reason.WRONG_TYPE, "at"),
    (but(at="2013-06-04 10:00:00Z"), Reason.WRONG_TYPE, "at"),
    (but(at="2013-06-31T10:00:00Z"), Reason.WRONG_TYPE, "at"),
    (but(at="2013-06-04T10:00:61Z"), Reason.WRONG_TYPE, "at"),
    (but(at=1370340000), Reason.WRONG_TYPE, "at"),
    (but(at="0001-01-01T00:00:00Z"), Reason.OUT_OF_RANGE, "at"),
    (but(at="1678-01-01T00:00:00+01:00"), Reason.OUT_OF_RANGE, "at"),
    (but(due="2261-12-31T23:59:59.999999-00:01"), Reason.OUT_OF_RANGE, "due"),
    (but(at="1677-12-31T23:59:59-00:00"), Reason.OUT_OF_RANGE, "at"),
    (but(due="9999-12-31T23:59:59-14:00"), Reason.OUT_OF_RANGE, "due"),
    (but(at="2099-01-01T00:00:00Z"), Reason.TOO_FAR_IN_FUTURE, "at"),
]


@pytest.mark.parametrize(("data", "reason", "where"), BAD, ids=[f"{n}-{case[1]}" for n, case in enumerate(BAD)])
def test_each_class_of_bad_input_has_its_named_reason(data: bytes, reason: Reason, where: str) -> None:
    verdict = VALIDATOR.check(data, NOW_US)
    assert isinstance(verdict, Refusal)
    assert (verdict.reason, verdict.field) == (reason, where)
    assert verdict.message
    # What goes to the caller must itself be UTF-8.
    assert (verdict.message + verdict.field).encode()
    assert len(verdict.message) < 300


@pytest.mark.parametrize(
    "data",
    [
        but(seats=2**63 - 1),
        but(seats=-(2**63)),
        but(seats=...),
        but(note=..., due=...),
        but(fare=3),
        but(fare=2**70),
        but(at="2013-06-04T10:00:00.123456789+05:30"),
        but(at="1677-12-31T23:30:00-00:30"),
        but(due="2262-01-01T00:59:59.999999+01:00"),
        b"\n" + but() + b"  ",
    ],
)
def test_what_every_reader_of_the_log_understands_is_valid(data: bytes) -> None:
    assert isinstance(VALIDATOR.check(data, NOW_US), Valid)


def test_deep_nesting_is_refused_not_followed() -> None:
    roomy = definition.Stream()
    roomy.CopyFrom(STREAM)
    roomy.max_event_bytes = 10_000_000
    verdict = Validator(roomy).check(b"[" * 1_000_000, NOW_US)
    assert isinstance(verdict, Refusal)
    assert verdict.reason is Reason.UNDECODABLE


@pytest.mark.parametrize("digits", [400, 4_300, 4_301, 60_000])
@pytest.mark.parametrize("sign", ["", "-"])
def test_an_integer_is_named_for_what_it_is_whatever_its_length(sign: str, digits: int) -> None:
    roomy = definition.Stream()
    roomy.CopyFrom(STREAM)
    roomy.max_event_bytes = 100_000
    for name, reason in (("seats", Reason.OUT_OF_RANGE), ("fare", Reason.NON_FINITE)):
        data = but(**{name: "LONG"}).replace(b'"LONG"', (sign + "7" * digits).encode())
        verdict = Validator(roomy).check(data, NOW_US)
        assert isinstance(verdict, Refusal)
        assert (verdict.reason, verdict.field) == (reason, name)
        assert len(verdict.message) < 200


def test_the_event_times_that_are_accepted_are_those_that_readers_take() -> None:
    for bound_us, ok in ((EARLIEST_US, {0, 1}), (LATEST_US, {-1})):
        for step in (-1, 0, 1):
            written = (EPOCH + timedelta(microseconds=bound_us + step)).astimezone(timezone(timedelta(hours=-5)))
            verdict = VALIDATOR.check(but(due=written.isoformat()), NOW_US)
            assert isinstance(verdict, Valid) == (step in ok)


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.floats(),
    st.text(st.characters(exclude_categories=()), max_size=6),
    st.datetimes().map(lambda moment: moment.isoformat()),
    st.datetimes().map(lambda moment: moment.isoformat() + "Z"),
    st.sampled_from(["2013-06-04T10:00:00Z", "2013-06-04T10:00:00+14:00", "1678-01-01T00:00:00+23:59"]),
    st.lists(st.integers(), max_size=2),
)
EVENTS = st.builds(
    lambda changed, gone: {name: value for name, value in {**GOOD, **changed}.items() if name not in gone},
    st.dictionaries(st.sampled_from([*GOOD, "extra"]), SCALARS, max_size=3),
    st.sets(st.sampled_from([*GOOD]), max_size=2),
)
DATA = st.one_of(
    EVENTS.map(lambda event: json.dumps(event).encode()),
    EVENTS.map(lambda event: json.dumps(event, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=60),
    st.builds(
        lambda at, byte, data: data[:at] + bytes([byte]) + data[at + 1 :],
        st.integers(0, 120),
        st.integers(0, 255),
        EVENTS.map(lambda event: json.dumps(event).encode()),
    ),
)


@given(DATA)
@example(text("1e400"))
@example(text("-0"))
def test_the_fast_verdict_is_the_slow_verdict(data: bytes) -> None:
    assert VALIDATOR.check(data, NOW_US) == VALIDATOR.explainer.check(data, NOW_US)


@given(DATA)
def test_what_is_accepted_reads_back_finite_and_typed(data: bytes) -> None:
    verdict = VALIDATOR.check(data, NOW_US)
    if not isinstance(verdict, Valid):
        return
    event = json.loads(data)
    assert verdict.key == event["ride_id"].encode()
    assert math.isfinite(event["fare"])
    assert verdict.time_us <= NOW_US + 600_000_000
    assert parse(verdict.time_text).tzinfo is not None


@given(st.text(max_size=30))
def test_no_text_breaks_the_reader_of_instants(words: str) -> None:
    with suppress(InstantError):
        assert parse(words).tzinfo is not None


@pytest.mark.parametrize("offset", ["+05:60", "-00:99", "+24:00"])
def test_an_offset_that_no_clock_shows_is_no_instant(offset: str) -> None:
    with pytest.raises(InstantError) as caught:
        parse(f"2013-06-04T00:00:00{offset}")
    assert caught.value.reason is Reason.WRONG_TYPE


@pytest.mark.parametrize(
    ("kind", "value", "key"),
    [
        (definition.FIELD_TYPE_INT64, 7, b"7"),
        (definition.FIELD_TYPE_BOOL, True, b"true"),
        (definition.FIELD_TYPE_STRING, "ü", "ü".encode()),
        (definition.FIELD_TYPE_FLOAT64, 0.5, b"0.5"),
    ],
)
def test_the_record_key_is_the_text_of_the_key_field(kind: int, value: Any, key: bytes) -> None:
    stream = definition.Stream(
        name="s",
        fields=[field("k", kind), field("at", definition.FIELD_TYPE_TIMESTAMP)],
        key_field="k",
        time_field="at",
    )
    verdict = Validator(stream).check(json.dumps({"k": value, "at": GOOD["at"]}).encode(), NOW_US)
    assert isinstance(verdict, Valid)
    assert verdict.key == key
