"""CloudEvents 1.0 in Kafka's binary content mode: attributes are `ce_` headers, the value is the data.

Source: CloudEvents Kafka protocol binding 1.0.2, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tidemill_contracts.instants import format_us, parse_us

Headers = Sequence[tuple[str, bytes]]

EVENT_TYPE = "tidemill.event.v1"
WATERMARK_TYPE = "tidemill.watermark.v1"
JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the headers of one record say of it."""

    id: str
    source: str
    type: str
    # Microseconds since the epoch, UTC; None where the record carries none.
    time_us: int | None
    subject: str = ""
    dataschema: str = ""
    traceparent: str = ""

    @property
    def is_watermark(self) -> bool:
        return self.type == WATERMARK_TYPE


def to_headers(attributes: Attributes, content_type: str = JSON_TYPE) -> list[tuple[str, bytes]]:
    """Return Kafka headers for an event; absent attributes are left out."""
    pairs = [
        ("ce_specversion", "1.0"),
        ("ce_id", attributes.id),
        ("ce_source", attributes.source),
        ("ce_type", attributes.type),
        ("ce_time", "" if attributes.time_us is None else format_us(attributes.time_us)),
        ("ce_subject", attributes.subject),
        ("ce_dataschema", attributes.dataschema),
        ("ce_traceparent", attributes.traceparent),
        ("content-type", content_type),
    ]
    return [(name, value.encode()) for name, value in pairs if value]


def from_headers(headers: Headers) -> Attributes:
    """Return the attributes of a record; a record of a foreign producer may have none.

    Raises `ValueError` where a header is not UTF-8 or `ce_time` is no instant.
    """
    found = {name: value for name, value in headers if name.startswith("ce_")}

    def text(name: str) -> str:
        return found.get(name, b"").decode()

    time = text("ce_time")
    return Attributes(
        id=text("ce_id"),
        source=text("ce_source"),
        type=text("ce_type"),
        time_us=parse_us(time) if time else None,
        subject=text("ce_subject"),
        dataschema=text("ce_dataschema"),
        traceparent=text("ce_traceparent"),
    )


def identity(attributes: Attributes, topic: str, partition: int, offset: int) -> tuple[str, ...]:
    """Return what makes two records the same event: (source, id), else the record's own place."""
    if attributes.source and attributes.id:
        return (attributes.source, attributes.id)
    return (topic, str(partition), str(offset))


def watermark(stream: str, time_us: int) -> list[tuple[str, bytes]]:
    """Return the headers of a watermark: null key, empty value, carries the partition's clock to `time_us`."""
    source = "tidemill/ingestion"
    return to_headers(
        Attributes(id=f"watermark-{time_us}", source=source, type=WATERMARK_TYPE, time_us=time_us, subject=stream)
    )
