"""What would become of dead letters if they were sent again: judged as readers of the stream judge, nothing written."""

import json
from typing import Any

import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_ingestion.checking import check_events

NOW_US = 1_371_000_000_000_000
STREAM = definition.Stream(
    name="rides",
    key_field="ride_id",
    time_field="at",
    fields=[
        definition.Field(name="ride_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
        definition.Field(name="seats", type=definition.FIELD_TYPE_INT64, nullable=True),
    ],
)
RIDE = {"ride_id": "r", "at": "2013-06-04T17:12:00Z"}


def reasons(*bodies: Any, ignore: bool = True) -> list[str]:
    events = [messages.Event(data=body if isinstance(body, bytes) else json.dumps(body).encode()) for body in bodies]
    verdicts = check_events(STREAM, events, NOW_US, ignore_unknown_fields=ignore)
    assert all((one.outcome == messages.OUTCOME_ACCEPTED) == (not one.reason) for one in verdicts)
    return [one.reason for one in verdicts]


def test_each_event_gets_its_own_verdict_and_a_repeat_none_of_its_own() -> None:
    found = reasons(RIDE, {**RIDE, "seats": "two"}, RIDE, b"", {**RIDE, "ride_id": None})
    assert found == ["", Reason.WRONG_TYPE, "", Reason.EMPTY, Reason.NULL_KEY]


def test_fields_that_nobody_declared_are_passed_over_where_readers_do() -> None:
    foreign = {**RIDE, "colour": "red"}
    assert reasons(foreign) == [""]
    assert reasons(foreign, ignore=False) == [Reason.UNKNOWN_FIELD]


def test_what_was_not_too_large_is_not_once_undeclared_fields_are_passed_over() -> None:
    ride = {**RIDE, "ride_id": "é" * 25_000, "colour": "red"}
    assert reasons(json.dumps(ride, ensure_ascii=False).encode()) == [""]


@pytest.mark.parametrize("value", [2**63, 1.5, float("nan")])
def test_what_a_reader_refuses_beside_an_unknown_field_is_still_refused(value: float) -> None:
    assert reasons({**RIDE, "colour": "red", "seats": value}) != [""]
