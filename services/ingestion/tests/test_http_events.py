"""CloudEvents over HTTP, as parsed: three modes, one event."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_ingestion.http_events import batch, binary, structured
from tidemill_ingestion.verdicts import Refusal

DATA = {"ride_id": "r-1", "fare": 1.1}
ENVELOPE = {"specversion": "1.0", "id": "e-1", "source": "meter", "type": "ride", "data": DATA}
EXPECTED = messages.Event(id="e-1", source="meter", type="ride", data=json.dumps(DATA, separators=(",", ":")).encode())


def test_the_three_modes_carry_one_event() -> None:
    body = json.dumps(ENVELOPE).encode()
    headers = {"content-type": "application/json", "ce-specversion": "1.0", "ce-id": "e-1"}
    assert structured(body) == EXPECTED
    assert batch(b"[" + body + b"," + body + b"]") == [EXPECTED, EXPECTED]
    assert binary({**headers, "ce-source": "meter", "ce-type": "ride"}, EXPECTED.data) == EXPECTED


def test_binary_attributes_are_percent_decoded_and_trace_context_is_kept() -> None:
    event = binary({"content-type": "application/json", "ce-id": "Euro%20%E2%82%AC", "traceparent": "00-ab"}, b"{}")
    assert event == messages.Event(id="Euro €", traceparent="00-ab", data=b"{}")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ('"a b"', "a b"),
        (r'"an \"old\" \\ id"', r'an "old" \ id'),
        ('"Euro%20%E2%82%AC"', "Euro €"),
        ("%22a%22", '"a"'),
        ('"a', '"a'),
        ('a"b"', 'a"b"'),
        ('"a" "b"', '"a" "b"'),
        ("100%", "100%"),
    ],
)
def test_quotes_around_a_header_are_taken_off_before_it_is_percent_decoded(header: str, value: str) -> None:
    event = binary({"content-type": "application/json", "ce-specversion": '"1.0"', "ce-id": header}, b"{}")
    assert event == messages.Event(id=value, data=b"{}")


@pytest.mark.parametrize("name", ["id", "source", "type", "traceparent", "specversion"])
@pytest.mark.parametrize("encoded", ["a%FF", "%C0%A0", "%ED%A0%80"])
def test_a_header_that_percent_encodes_no_utf8_is_refused_rather_than_replaced(name: str, encoded: str) -> None:
    refused = binary({"content-type": "application/json", f"ce-{name}": encoded}, b"{}")
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.field) == (Reason.BAD_UTF8, name)


def test_base64_data_is_decoded() -> None:
    encoded = {**ENVELOPE, "data_base64": base64.b64encode(b'{"a":1}').decode()}
    del encoded["data"]
    event = structured(json.dumps(encoded).encode())
    assert isinstance(event, messages.Event)
    assert event.data == b'{"a":1}'


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"specversion": "0.3"}, Reason.UNSUPPORTED, "specversion"),
        ({"specversion": None}, Reason.UNSUPPORTED, "specversion"),
        ({"id": 7}, Reason.WRONG_TYPE, "id"),
        ({"source": "\ud800"}, Reason.BAD_UTF8, "source"),
        ({"datacontenttype": "text/xml"}, Reason.UNSUPPORTED, "datacontenttype"),
        ({"datacontenttype": "\ud800"}, Reason.UNSUPPORTED, "datacontenttype"),
        ({"data": ..., "data_base64": "***"}, Reason.UNDECODABLE, "data_base64"),
        ({"data": ..., "data_base64": 5}, Reason.UNDECODABLE, "data_base64"),
        ({"data": ..., "data_base64": "é"}, Reason.UNDECODABLE, "data_base64"),
    ],
)
def test_a_bad_envelope_has_a_named_reason(changed: dict[str, Any], reason: Reason, field: str) -> None:
    envelope = {name: value for name, value in {**ENVELOPE, **changed}.items() if value is not ...}
    refused = structured(json.dumps(envelope).encode())
    assert isinstance(refused, Refusal)
    assert (refused.reason, refused.field) == (reason, field)
    assert refused.message.encode()


@pytest.mark.parametrize("body", [b"", b"{", b"7", b"[" * 100_000, b'"x"'])
def test_a_body_that_is_no_envelope_is_undecodable(body: bytes) -> None:
    refused = structured(body)
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.UNDECODABLE


def test_numbers_that_json_forbids_reach_validation_as_written() -> None:
    event = structured(json.dumps({**ENVELOPE, "data": {"fare": float("nan"), "seats": 2**80}}).encode())
    assert isinstance(event, messages.Event)
    assert event.data == b'{"fare":NaN,"seats":1208925819614629174706176}'


def test_an_integer_of_any_length_spoils_no_batch() -> None:
    long = json.dumps({**ENVELOPE, "data": {"seats": 0}}).replace("0}", "9" * 10_000 + "}").encode()
    events = batch(b"[" + json.dumps(ENVELOPE).encode() + b"," + long + b"]")
    assert isinstance(events, list)
    assert [type(event) for event in events] == [messages.Event, messages.Event]


def test_one_bad_envelope_does_not_spoil_its_batch() -> None:
    events = batch(json.dumps([ENVELOPE, 5, {**ENVELOPE, "id": 3}]).encode())
    assert isinstance(events, list)
    assert [type(event) for event in events] == [messages.Event, Refusal, Refusal]


@given(st.binary(max_size=80))
def test_no_body_breaks_the_parser(body: bytes) -> None:
    assert isinstance(structured(body), messages.Event | Refusal)
    assert isinstance(batch(body), list | Refusal)
    assert isinstance(binary({"content-type": "application/json"}, body), messages.Event | Refusal)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner), max_leaves=5))
def test_no_data_breaks_the_envelope(data: Any) -> None:
    body = json.dumps({**ENVELOPE, "data": data}).encode()
    assert isinstance(structured(body), messages.Event)
