import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Poison
from tidemill_serving.request import (
    MAX_INSTANT_US,
    RequestSchema,
    check_as_of,
    check_batch,
    check_prediction_id,
)

STREAM = definition.Stream(
    name="flight-scheduled",
    fields=[
        definition.Field(name="flight_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="origin", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="tailnum", type=definition.FIELD_TYPE_STRING, nullable=True),
        definition.Field(name="distance", type=definition.FIELD_TYPE_FLOAT64),
        definition.Field(name="seats", type=definition.FIELD_TYPE_INT64, nullable=True),
        definition.Field(name="late", type=definition.FIELD_TYPE_BOOL, nullable=True),
        definition.Field(name="asked_at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="flight_id",
    time_field="asked_at",
    max_event_bytes=400,
)
SCHEMA = RequestSchema(STREAM, "flight_id")
GOOD = {
    "flight_id": feature.Scalar(string_value="1-EWR"),
    "origin": feature.Scalar(string_value="EWR"),
    "distance": feature.Scalar(float64_value=100.5),
    "asked_at": feature.Scalar(timestamp_us=1_000_000),
}


def refusal(**changes: feature.Scalar | None) -> Poison:
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(Poison) as caught:
        SCHEMA.check(fields)
    return caught.value


def test_a_good_request_yields_its_values_in_schema_order_with_null_for_what_is_absent() -> None:
    values = SCHEMA.check(GOOD)
    assert list(values) == [field.name for field in STREAM.fields]
    assert values["tailnum"] is None
    assert values["asked_at"] == 1_000_000


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"origine": feature.Scalar(string_value="x")}, Reason.UNKNOWN_FIELD, "origine"),
        ({"origin": None}, Reason.MISSING_FIELD, "origin"),
        ({"origin": feature.Scalar()}, Reason.MISSING_FIELD, "origin"),
        ({"flight_id": None}, Reason.MISSING_FIELD, "flight_id"),
        ({"flight_id": feature.Scalar()}, Reason.NULL_KEY, "flight_id"),
        ({"flight_id": feature.Scalar(string_value="")}, Reason.NULL_KEY, "flight_id"),
        ({"flight_id": feature.Scalar(string_value="a\0b")}, Reason.BAD_UTF8, "flight_id"),
        ({"flight_id": feature.Scalar(string_value="a" * 513)}, Reason.OVERSIZED, "flight_id"),
        ({"origin": feature.Scalar(int64_value=3)}, Reason.WRONG_TYPE, "origin"),
        ({"distance": feature.Scalar(string_value="3")}, Reason.WRONG_TYPE, "distance"),
        ({"seats": feature.Scalar(float64_value=3.0)}, Reason.WRONG_TYPE, "seats"),
        ({"seats": feature.Scalar(bool_value=True)}, Reason.WRONG_TYPE, "seats"),
        ({"late": feature.Scalar(int64_value=1)}, Reason.WRONG_TYPE, "late"),
        ({"distance": feature.Scalar(float64_value=math.nan)}, Reason.NON_FINITE, "distance"),
        ({"distance": feature.Scalar(float64_value=-math.inf)}, Reason.NON_FINITE, "distance"),
        ({"asked_at": feature.Scalar(string_value="2013-06-04T00:00:00")}, Reason.NAIVE_TIMESTAMP, "asked_at"),
        ({"asked_at": feature.Scalar(string_value="yesterday")}, Reason.WRONG_TYPE, "asked_at"),
        ({"asked_at": feature.Scalar(timestamp_us=-1)}, Reason.OUT_OF_RANGE, "asked_at"),
        ({"asked_at": feature.Scalar(timestamp_us=MAX_INSTANT_US + 1)}, Reason.OUT_OF_RANGE, "asked_at"),
        ({"asked_at": feature.Scalar(float64_value=1.0)}, Reason.WRONG_TYPE, "asked_at"),
    ],
)
def test_each_malformed_field_has_one_named_reason(
    changes: dict[str, feature.Scalar | None], reason: Reason, field: str
) -> None:
    poison = refusal(**changes)
    assert (poison.reason, poison.field) == (reason, field)


@pytest.mark.parametrize("text", ["2013-06-04T10:00:00", "yesterday"])
def test_the_fix_of_what_is_no_instant_is_told_once(text: str) -> None:
    poison = refusal(asked_at=feature.Scalar(string_value=text))
    assert poison.fix == "write it as 2013-06-04T00:00:00Z"
    assert f"{text!r}" in str(poison)
    assert "write" not in str(poison)


def test_an_oversized_request_is_refused_by_its_bytes_not_its_characters() -> None:
    assert SCHEMA.check({**GOOD, "origin": feature.Scalar(string_value="e" * 200)})
    assert refusal(origin=feature.Scalar(string_value="\N{SNOWMAN}" * 200)).reason is Reason.OVERSIZED
    empty = SCHEMA.check({**GOOD, "origin": feature.Scalar(string_value="")})
    room = STREAM.max_event_bytes - len(SCHEMA.to_json(empty))
    assert SCHEMA.check({**GOOD, "origin": feature.Scalar(string_value="e" * room)})
    assert refusal(origin=feature.Scalar(string_value="e" * (room + 1))).reason is Reason.OVERSIZED
    # Without any text to speak of.
    narrow = definition.Stream()
    narrow.CopyFrom(STREAM)
    narrow.max_event_bytes = len(SCHEMA.to_json(empty)) - 1
    with pytest.raises(Poison) as caught:
        RequestSchema(narrow, SCHEMA.join_field).check({**GOOD, "origin": feature.Scalar(string_value="")})
    assert caught.value.reason is Reason.OVERSIZED


def test_an_unknown_field_names_the_likely_one() -> None:
    assert refusal(origine=feature.Scalar(string_value="x")).fix == "did you mean 'origin'?"


def test_an_integer_stands_for_a_float_and_an_instant_may_be_text() -> None:
    values = SCHEMA.check(
        {
            **GOOD,
            "distance": feature.Scalar(int64_value=3),
            "asked_at": feature.Scalar(string_value="1970-01-01T01:00:01+01:00"),
        }
    )
    assert values["distance"] == 3.0
    assert isinstance(values["distance"], float)
    assert values["asked_at"] == 1_000_000


def test_logged_fields_are_the_json_that_the_event_would_have() -> None:
    shown = json.loads(SCHEMA.to_json(SCHEMA.check(GOOD)))
    assert shown["asked_at"] == "1970-01-01T00:00:01Z"
    assert shown["tailnum"] is None
    assert shown["distance"] == 100.5


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=30), max_size=6))
def test_no_input_gets_past_without_a_verdict(extra: dict[str, str]) -> None:
    fields = {**GOOD, **{name: feature.Scalar(string_value=text) for name, text in extra.items()}}
    expected = (Reason.UNKNOWN_FIELD, Reason.WRONG_TYPE, Reason.NULL_KEY)
    try:
        verdict: object = set(SCHEMA.check(fields)) == {field.name for field in STREAM.fields}
    except Poison as poison:
        verdict = poison.reason in expected
    assert verdict


def test_as_of_is_bounded_on_both_sides() -> None:
    assert check_as_of(0, now_us=10, max_future_ms=0) == 0
    assert check_as_of(5, now_us=10, max_future_ms=0) == 5
    for as_of_us, reason in ((-1, Reason.OUT_OF_RANGE), (10_000, Reason.TOO_FAR_IN_FUTURE)):
        with pytest.raises(Poison) as caught:
            check_as_of(as_of_us, now_us=10, max_future_ms=1)
        assert caught.value.reason is reason


def test_batches_and_ids_are_bounded() -> None:
    assert check_prediction_id("x" * 256)
    for call, reason in (
        (lambda: check_batch(0, 5), Reason.EMPTY),
        (lambda: check_batch(6, 5), Reason.OUT_OF_RANGE),
        (lambda: check_prediction_id("x" * 257), Reason.OVERSIZED),
        (lambda: check_prediction_id("é" * 129), Reason.OVERSIZED),
    ):
        with pytest.raises(Poison) as caught:
            call()
        assert caught.value.reason is reason
