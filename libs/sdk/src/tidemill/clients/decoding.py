"""Records of any topic of the catalogue as readable values."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.definition.v1 import definition_pb2
from tidemill_contracts.feature.v1 import records_pb2 as feature_pb2
from tidemill_contracts.ingestion.v1 import dead_letters_pb2
from tidemill_contracts.ingestion.v1 import records_pb2 as ingestion_pb2
from tidemill_contracts.instants import format_us
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring_pb2
from tidemill_contracts.registry.v1 import records_pb2 as registry_pb2
from tidemill_contracts.serving.v1 import records_pb2 as serving_pb2
from tidemill_contracts.topics import STREAM, Topic, load_topics
from tidemill_contracts.training.v1 import training_pb2

# Importing a generated module is what puts its messages into the pool.
REGISTERED = (
    dead_letters_pb2,
    definition_pb2,
    feature_pb2,
    ingestion_pb2,
    monitoring_pb2,
    registry_pb2,
    serving_pb2,
    training_pb2,
)


class Record(Protocol):
    """What is read of a Kafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Decoder:
    """Reads the records of one topic; `topic` is None where the catalogue does not know it."""

    name: str
    topic: Topic | None

    @classmethod
    def of(cls, name: str) -> "Decoder":
        """Return the decoder of a logical topic name."""
        for topic in load_topics():
            head, _, tail = topic.name.partition(STREAM)
            matches = name.startswith(head) and name.endswith(tail) and len(name) > len(head) + len(tail)
            if topic.name == name or (topic.per_stream and matches and (tail or not name.endswith(".dlq"))):
                return cls(name, topic)
        return cls(name, None)

    def envelope(self, record: Record) -> dict[str, Any]:
        """Return the whole record: place, time, key, headers and value."""
        return {
            "topic": self.name,
            "partition": record.partition,
            "offset": record.offset,
            "time": format_us(record.timestamp * 1000),
            "key": None if record.key is None else text_of(record.key),
            # Kafka knows headers without a value, which nothing here writes.
            "headers": {name: text_of(value or b"") for name, value in record.headers},
            "value": self.value(record.value),
        }

    def value(self, raw: bytes | None) -> Any:
        """Return the value in a form that JSON can say; what cannot be decoded is shown as it is."""
        if not raw:
            return None
        if self.topic is not None and self.topic.encoding == "protobuf":
            descriptor = descriptor_pool.Default().FindMessageTypeByName(self.topic.message)
            message = message_factory.GetMessageClass(descriptor)()
            try:
                message.ParseFromString(raw)
            except DecodeError:
                return {"undecodable": base64.b64encode(raw).decode()}
            return to_dict(message)
        try:
            found = json.loads(raw.decode())
            # Dead letters hold what JSON cannot say again: numbers that are not finite, halves of surrogate pairs.
            json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            return text_of(raw)
        return found


def text_of(raw: bytes) -> str:
    """Return bytes as text, in base64 where they are no UTF-8."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(raw).decode()


def dead_letter(envelope: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a dead letter's headers say of why and where it was refused."""
    headers = envelope["headers"]
    return {
        "topic": envelope["topic"],
        "partition": envelope["partition"],
        "offset": envelope["offset"],
        "reason": headers.get("x-dlq-reason", ""),
        "message": headers.get("__connect.errors.exception.message", ""),
        "group": headers.get("x-dlq-consumer-group", ""),
        "attempt": headers.get("x-dlq-attempt", ""),
        "first_failed_at": headers.get("x-dlq-first-failed-at", ""),
        "from_topic": headers.get("__connect.errors.topic", ""),
        "from_partition": headers.get("__connect.errors.partition", ""),
        "from_offset": headers.get("__connect.errors.offset", ""),
        "key": envelope["key"],
        "value": envelope["value"],
    }
