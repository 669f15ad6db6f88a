"""Records of producers' own topics as events."""

import json
from dataclasses import dataclass, field

import pytest
from pydantic import ValidationError
from tidemill_contracts.dead_letters import redriven_headers
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_ingestion.bridging import event_of
from tidemill_ingestion.settings import Settings
from tidemill_ingestion.verdicts import Refusal


@dataclass
class Raw:
    """A Kafka record as a bridge reads it."""

    value: bytes | None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    topic: str = "raw.rides"
    partition: int = 2
    offset: int = 7
    timestamp: int = 1_370_340_000_123
    key: bytes | None = None


def read(record: Raw) -> messages.Event:
    event = event_of(record)
    assert isinstance(event, messages.Event)
    return event


def test_plain_json_is_named_by_its_place() -> None:
    event = read(Raw(b'{"a": 1}'))
    assert (event.data, event.source, event.id) == (b'{"a": 1}', "kafka/raw.rides", "raw.rides/2/7/1370340000123")
    assert read(Raw(b'{"a": 1}')) == event
    others = [Raw(b"{}", offset=8), Raw(b"{}", partition=3), Raw(b"{}", timestamp=5), Raw(b"{}", topic="raw.walks")]
    assert len({(one.source, one.id) for one in map(read, others)} - {(event.source, event.id)}) == 4


def test_binary_cloud_events_keep_their_identity() -> None:
    headers = [("ce_specversion", b"1.0"), ("ce_id", b"e-1"), ("ce_source", b"meter"), ("ce_type", b"ride")]
    event = read(Raw(b"{}", [*headers, ("ce_traceparent", b"00-1"), ("content-type", b"application/json")]))
    assert (event.id, event.source, event.type, event.traceparent) == ("e-1", "meter", "ride", "00-1")


def test_structured_cloud_events_are_opened() -> None:
    envelope = {"specversion": "1.0", "id": "e-1", "source": "meter", "type": "ride", "data": {"a": 1}}
    kind = ("Content-Type", b"Application/CloudEvents+JSON; charset=UTF-8")
    event = read(Raw(json.dumps(envelope).encode(), [kind]))
    assert (event.id, event.source, event.type, event.data) == ("e-1", "meter", "ride", b'{"a":1}')


def test_half_an_identity_is_completed_so_that_two_topics_never_meet() -> None:
    assert (read(Raw(b"{}", [("ce_id", b"e-1")])).source, read(Raw(b"{}", [("ce_id", b"e-1")])).id) == (
        "kafka/raw.rides",
        "e-1",
    )
    event = read(Raw(b"{}", [("ce_source", b"meter")]))
    assert (event.source, event.id) == ("meter", "raw.rides/2/7/1370340000123")


def test_a_dead_letter_sent_again_twice_is_one_event() -> None:
    envelope = b'{"specversion": "1.0", "type": "t", "data": {}}'
    for value, own in ((b"{}", []), (envelope, [("content-type", b"application/cloudevents+json")])):
        said = redriven_headers(own, place=("raw.rides", 2, 7), letter="l", groups=["g"], attempt=1)
        first, second = read(Raw(value, said, offset=90)), read(Raw(value, said, offset=91))
        assert (first.source, first.id) == (second.source, second.id) == ("kafka/raw.rides", "raw.rides/2/7")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (Raw(None), Reason.EMPTY),
        (Raw(b"\x00\x00\x00\x00\x07avro"), Reason.UNDECODABLE),
        (Raw(b"[]", [("content-type", b"application/cloudevents-batch+json")]), Reason.UNSUPPORTED),
        (Raw(b"{}", [("ce_specversion", b"0.3")]), Reason.UNSUPPORTED),
        (Raw(b"{", [("content-type", b"application/cloudevents+json")]), Reason.UNDECODABLE),
        (Raw(b"{}", [("ce_id", b"\xff")]), Reason.BAD_UTF8),
    ],
)
def test_what_is_no_event_has_a_reason(record: Raw, reason: Reason) -> None:
    refused = event_of(record)
    assert isinstance(refused, Refusal)
    assert refused.reason is reason


@pytest.mark.parametrize(
    ("bridges", "wrong"),
    [
        # Its events come back as records to be copied, and what is refused as letters to be judged.
        ("t.events.rides=rides", "'t.events.rides' would feed itself"),
        ("t.events.rides.dlq=rides", "would feed itself"),
        ("raw=walks,t.events.walks=rides,t.events.rides=walks", "would feed itself"),
        ("raw=", "write name=value"),
        ("=rides", "write name=value"),
        ("raw", "write name=value"),
        ("raw=rides,raw=walks", "name each once"),
    ],
)
def test_bridges_that_could_not_do_what_they_say_are_wrong_settings(bridges: str, wrong: str) -> None:
    with pytest.raises(ValidationError, match=wrong):
        Settings.model_validate({"roles": "bridge", "bridges": bridges, "kafka": {"topic_prefix": "t."}})


def test_a_stream_may_feed_another() -> None:
    bridges = "raw=rides, t.events.rides=walks,t.events.walks=runs"
    settings = Settings.model_validate({"roles": "bridge", "bridges": bridges, "kafka": {"topic_prefix": "t."}})
    assert settings.bridges == {"raw": "rides", "t.events.rides": "walks", "t.events.walks": "runs"}
