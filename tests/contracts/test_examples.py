"""Every example message of every topic goes through the decoder of every service that reads the topic.

The decoders are the services' own functions; a consumer that the catalogue declares and that has none here fails.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.json_format import ParseDict
from google.protobuf.message_factory import GetMessageClass
from tidemill.clients.decoding import Decoder, dead_letter
from tidemill_contracts.canonical import from_json, to_dict, to_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.cloudevents import from_headers
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.topics import STREAM, Topic, load_topics
from tidemill_feature import archiving
from tidemill_feature.decode import StreamDecoder
from tidemill_feature.registered import Definitions
from tidemill_feature.schemas import Schemas
from tidemill_feature.uses import Uses
from tidemill_ingestion.gates import Gates
from tidemill_monitoring import decode as monitoring_decode
from tidemill_monitoring.registered import Registered as MonitoringRegistered
from tidemill_registry.evidence import read_evidence
from tidemill_serving.desired import Registered as ServingRegistered
from tidemill_training.requests import decode_request

EXAMPLES = Path(__file__).parents[2] / "proto" / "examples"
TOPICS = {topic.name: topic for topic in load_topics()}
NOW_US = 1_800_000_000_000_000


@dataclass(frozen=True)
class Example:
    """One example, as the Kafka record that it stands for."""

    entry: Topic
    case: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    partition: int = 0
    offset: int = 0
    timestamp: int = NOW_US // 1000

    @property
    def stream(self) -> str:
        """The user stream of an event."""
        return from_headers(self.headers).subject

    @property
    def topic(self) -> str:
        """The topic's logical name."""
        return self.entry.name.replace(STREAM, self.stream)


def message_of(topic: Topic) -> Any:
    """Return an empty message of the topic's type."""
    return GetMessageClass(descriptor_pool.Default().FindMessageTypeByName(topic.message))()


def encoded(topic: Topic, value: Any) -> bytes | None:
    """Return the bytes that the owner would have written."""
    if value is None:
        return None
    if topic.message == "original":
        return value["base64"].encode() if isinstance(value, dict) else str(value).encode()
    if topic.message == "cloudevents.json":
        return json.dumps(value).encode()
    message = ParseDict(value, message_of(topic))
    return message.SerializeToString() if topic.encoding == "protobuf" else to_json(message)


def load(topic: Topic) -> list[Example]:
    """Return the examples of one topic."""
    found = []
    for path in sorted((EXAMPLES.parent / "topics" / topic.example).resolve().glob("*.json")):
        raw = json.loads(path.read_text())
        key = None if raw["key"] is None else raw["key"].encode()
        headers = [(name, text.encode()) for name, text in raw["headers"].items()]
        found.append(Example(topic, path.stem, key, encoded(topic, raw["value"]), headers))
    return found


ALL = [example for topic in TOPICS.values() for example in load(topic)]


def catalogue() -> Catalogue:
    """Return what the examples of the registry's topic define."""
    found = Catalogue()
    for example in load(TOPICS["registry.pipelines.v1"]):
        found.fold(example.value)
    return found


def _feature_event(example: Example) -> Any:
    decoded = StreamDecoder(catalogue().streams[example.stream]).decode([example])
    assert not decoded.refused, decoded.refused
    return decoded


def _feature_version(example: Example) -> Any:
    Uses().fold(example.key, example.value)
    return Schemas().fold(example.value)


def _monitoring_event(example: Example) -> Any:
    plans = monitoring_decode.plans_of(catalogue())
    return monitoring_decode.event(example, plans[f"events.{example.stream}"], NOW_US)


def _rows(decoder: Callable[..., archiving.Rows]) -> Callable[[Example], Any]:
    def decode(example: Example) -> Any:
        rows = decoder([(0, [example])])
        assert not rows.refused, rows.refused
        return rows

    return decode


def _sdk(example: Example) -> Any:
    record: Any = example
    envelope = Decoder.of(example.topic).envelope(record)
    if example.entry.message == "original":
        letter = dead_letter(envelope)
        assert letter["reason"]
        assert letter["from_topic"]
        return letter
    assert "undecodable" not in envelope["value"]
    return envelope["value"]


DECODERS: Mapping[tuple[str, str], Callable[[Example], Any]] = {
    ("events.<stream>", "feature"): _feature_event,
    ("events.<stream>", "monitoring"): _monitoring_event,
    ("serving.predictions.v1", "monitoring"): monitoring_decode.prediction,
    ("serving.predictions.v1", "feature"): _rows(archiving.prediction_rows),
    ("monitoring.outcomes.v1", "feature"): _rows(archiving.outcome_rows),
    ("monitoring.clock.v1", "training"): lambda example: from_json(example.value or b"", monitoring.ClockRecord()),
    ("monitoring.metrics.v1", "registry"): lambda example: read_evidence(example.value),
    ("monitoring.policy-triggers.v1", "monitoring"): monitoring_decode.trigger,
    ("monitoring.retrain-requests.v1", "training"): lambda example: decode_request(example.value),
    ("registry.pipelines.v1", "ingestion"): lambda example: Gates(10).fold(example.value),
    ("registry.pipelines.v1", "feature"): lambda example: Definitions().fold(example.value),
    ("registry.pipelines.v1", "serving"): lambda example: ServingRegistered().with_definition(example.value),
    ("registry.pipelines.v1", "monitoring"): lambda example: MonitoringRegistered().fold_definition(example.value),
    ("registry.deployments.v1", "serving"): lambda e: ServingRegistered().with_deployment(e.key, e.value),
    ("registry.deployments.v1", "monitoring"): lambda e: MonitoringRegistered().fold_deployment(e.value),
    ("registry.models.v1", "feature"): _feature_version,
    ("registry.models.v1", "monitoring"): lambda example: MonitoringRegistered().fold_version(example.value),
}


def decoder_of(topic: Topic, consumer: str) -> Callable[[Example], Any] | None:
    """Return how a consumer reads a topic; the SDK reads every topic alike."""
    return _sdk if consumer == "sdk" else DECODERS.get((topic.name, consumer))


@pytest.mark.parametrize(("topic", "consumer"), [(t.name, c) for t in TOPICS.values() for c in t.consumers])
def test_every_declared_consumer_is_held_to_the_examples(topic: str, consumer: str) -> None:
    assert decoder_of(TOPICS[topic], consumer) is not None, (
        f"the catalogue says that {consumer} reads {topic}: name its decoder in DECODERS, or take it off the list"
    )


def test_no_decoder_is_kept_for_a_consumer_that_is_not_declared() -> None:
    assert [(t, c) for t, c in DECODERS if c not in TOPICS[t].consumers] == []


@pytest.mark.parametrize("example", ALL, ids=lambda example: f"{example.entry.name}:{example.case}")
def test_every_consumer_decodes_the_example(example: Example) -> None:
    for consumer in (*example.entry.consumers, "sdk"):
        decode = decoder_of(example.entry, consumer)
        if decode is not None and not (consumer == "sdk" and example.value is None):
            decode(example)


@pytest.mark.parametrize("example", ALL, ids=lambda example: f"{example.entry.name}:{example.case}")
def test_an_example_says_everything_in_the_words_of_its_message(example: Example) -> None:
    path = (EXAMPLES.parent / "topics" / example.entry.example / f"{example.case}.json").resolve()
    raw = json.loads(path.read_text())
    assert set(raw) == {"key", "headers", "value"}
    if example.entry.message not in ("original", "cloudevents.json"):
        # No field that the message does not have, and every value in the form that the topic carries.
        assert to_dict(ParseDict(raw["value"], message_of(example.entry))) == raw["value"]


@pytest.mark.parametrize("example", ALL, ids=lambda example: f"{example.entry.name}:{example.case}")
def test_the_headers_are_cloud_events(example: Example) -> None:
    if example.entry.message == "original":
        return
    attributes = from_headers(example.headers)
    assert attributes.id
    assert attributes.source
    assert attributes.type
    assert dict(example.headers)["content-type"].decode().startswith(("application/json", "application/protobuf"))


@pytest.mark.parametrize(("topic", "consumer"), sorted(DECODERS))
@pytest.mark.parametrize("raw", [b"\xff\xfe", b"{", b"[1]", b'"text"'])
def test_what_is_no_message_is_refused_and_never_taken_for_one(topic: str, consumer: str, raw: bytes) -> None:
    first = load(TOPICS[topic])[0]
    damaged = Example(first.entry, "damaged", first.key, raw, first.headers)
    # ValueError: what the runtime and the adapters translate into a dead letter with its reason.
    refusal: Exception | None = None
    try:
        DECODERS[topic, consumer](damaged)
    except Exception as error:
        refusal = error
    assert refusal is not None, f"{consumer} took {raw!r} for a message of {topic}"
    assert type(refusal).__name__ in {
        "Poison",
        "ParseError",
        "JSONDecodeError",
        "UnsoundEvidenceError",
        "ValueError",
        "UnicodeDecodeError",
        "AssertionError",
    }, repr(refusal)


def test_base64_in_an_example_is_what_protobuf_reads() -> None:
    (durable,) = [one for one in load(TOPICS["serving.predictions.v1"]) if one.case == "durable-canary"]
    record = message_of(durable.entry)
    record.ParseFromString(durable.value or b"")
    assert json.loads(record.request_json)["flight_id"] == (durable.key or b"").decode()
    raw = json.loads((EXAMPLES / "serving.predictions.v1" / "durable-canary.json").read_text())
    assert base64.b64decode(raw["value"]["request_json"]) == record.request_json
