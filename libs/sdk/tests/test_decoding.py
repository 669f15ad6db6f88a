"""Any topic of the catalogue is shown as readable JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from tidemill.clients.decoding import Decoder, dead_letter
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_contracts.topics import load_topics


@dataclass
class Kept:
    """A record as a Kafka consumer hands it over."""

    topic: str = "tidemill.x"
    partition: int = 1
    offset: int = 2
    timestamp: int = 3_000
    key: bytes | None = b"UA1"
    value: bytes | None = b"{}"
    headers: Sequence[tuple[str, bytes]] = field(default_factory=list)


@pytest.mark.parametrize("topic", load_topics(), ids=lambda topic: topic.name)
def test_every_topic_of_the_catalogue_is_found_and_its_message_known(topic: object) -> None:
    name = topic.name.replace("<stream>", "flight-scheduled")  # type: ignore[attr-defined]
    decoder = Decoder.of(name)
    assert decoder.topic == topic
    assert decoder.value(b"") is None


def test_a_protobuf_record_is_shown_with_the_names_of_its_fields() -> None:
    record = serving.PredictionRecord(prediction_id="p", probability=0.25, model_version=3)
    found = Decoder.of("serving.predictions.v1").envelope(Kept(value=record.SerializeToString()))
    assert found["value"] == {"prediction_id": "p", "probability": 0.25, "model_version": 3}
    assert (found["partition"], found["offset"], found["time"], found["key"]) == (1, 2, "1970-01-01T00:00:03Z", "UA1")


def test_what_cannot_be_decoded_is_shown_as_it_is() -> None:
    assert Decoder.of("serving.predictions.v1").value(b"\xff") == {"undecodable": "/w=="}
    assert Decoder.of("events.flights").value(b"not json") == "not json"
    assert Decoder.of("events.flights").value(b"\xff") == "base64:/w=="
    assert Decoder.of("somebody.elses").value(b'{"a": 1}') == {"a": 1}


def test_a_header_without_a_value_is_shown_as_empty() -> None:
    headers: list[tuple[str, Any]] = [("h", None), ("x-dlq-reason", None)]
    found = Decoder.of("events.flights.dlq").envelope(Kept(headers=headers))
    assert found["headers"] == {"h": "", "x-dlq-reason": ""}
    assert dead_letter(found)["reason"] == ""


def test_a_dead_letter_says_why_and_where_from() -> None:
    headers = [("x-dlq-reason", b"wrong_type"), ("__connect.errors.offset", b"41"), ("ce_id", b"1")]
    letter = dead_letter(Decoder.of("events.flights.dlq").envelope(Kept(value=b"\x80", headers=headers)))
    assert (letter["reason"], letter["from_offset"], letter["value"]) == ("wrong_type", "41", "base64:gA==")
