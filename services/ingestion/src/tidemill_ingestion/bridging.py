"""Records of a producer's own Kafka topic as events of a stream; pure.

Identity is the producer's CloudEvents id, else the place of the record: reading it again gives the same event, so that
readers of the stream recognise a repeat.

Source: CloudEvents Kafka protocol binding 1.0.2, section 3.
"""

from collections.abc import Mapping

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Record
from tidemill_runtime.errors import Poison

from tidemill_ingestion.http_events import SPEC_VERSION, Parsed, media_type, structured
from tidemill_ingestion.verdicts import Refusal

_ENVELOPE, _BATCH = "application/cloudevents", "application/cloudevents-batch"
# What Confluent's serialisers put before a record: this, then the number of a schema.
_FRAME = b"\x00"


def event_of(record: Record) -> Parsed:
    """Return the event that a record holds: binary or structured CloudEvents, or plain JSON without any attributes."""
    try:
        # What else a producer puts there is its own affair, and need not be text.
        headers = {name.lower(): (value or b"").decode() for name, value in record.headers if _is_ours(name.lower())}
    except UnicodeDecodeError as error:
        return Refusal(Reason.BAD_UTF8, "", f"a header of the record is not UTF-8: {error}")
    if record.value is None:
        return Refusal(Reason.EMPTY, "", "the record has no value: a deletion is no event")
    kind = media_type(headers.get("content-type", ""))
    if kind.startswith(_BATCH):
        return Refusal(Reason.UNSUPPORTED, "content-type", "a record holds one event, not a batch of CloudEvents")
    if kind.startswith(_ENVELOPE):
        event = structured(record.value)
        if isinstance(event, Refusal):
            return event
    else:
        found = _binary(headers, record.value)
        if isinstance(found, Refusal):
            return found
        event = found
    # A dead letter that was sent again has both as headers, whatever its form.
    event.source = event.source or headers.get("ce_source") or f"kafka/{record.topic}"
    event.id = event.id or headers.get("ce_id") or place_of(record)
    return event


def place_of(record: Record) -> str:
    """Return the place of a record, and its time, so that a topic made anew brings new events."""
    return f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp}"


def _is_ours(name: str) -> bool:
    return name.startswith("ce_") or name == "content-type"


def poison_of(refusal: Refusal) -> Poison:
    """Return a refusal as what the stream runner dead-letters."""
    return Poison(refusal.reason, refusal.message, field=refusal.field)


def _binary(headers: Mapping[str, str], value: bytes) -> messages.Event | Refusal:
    version = headers.get("ce_specversion", SPEC_VERSION)
    if version != SPEC_VERSION:
        return Refusal(Reason.UNSUPPORTED, "specversion", f"CloudEvents {SPEC_VERSION} is spoken here, not {version!r}")
    if value.startswith(_FRAME):
        message = "the record is framed by a schema registry's serialiser: bridge topics of JSON or CloudEvents"
        return Refusal(Reason.UNDECODABLE, "", message)
    names = ("id", "source", "type", "traceparent")
    return messages.Event(data=value, **{name: headers.get(f"ce_{name}", "") for name in names})
