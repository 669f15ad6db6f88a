"""What becomes of each event of a request before Kafka is asked: a record to write, a refusal, or a repeat; pure."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tidemill_contracts.canonical import stream_hash
from tidemill_contracts.cloudevents import EVENT_TYPE, JSON_TYPE, WATERMARK_TYPE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.instants import format_us
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import events_topic

from tidemill_ingestion.recent import Identity, Recent
from tidemill_ingestion.validation import Validator
from tidemill_ingestion.verdicts import Refusal, Valid

DEFAULT_SOURCE = "tidemill/ingestion"
# Attributes become Kafka headers and parts of keys: short texts.
MAX_ATTRIBUTE_CHARS = 512

Headers = list[tuple[str, bytes]]


class Admitted(NamedTuple):
    """An event to be written as one record."""

    topic: str
    key: bytes
    value: bytes
    headers: Headers
    identity: Identity | None
    time_us: int


class Repeat(NamedTuple):
    """The event's identity was accepted before, or stands earlier in the same request: `first` is its index there."""

    first: int | None


Admission = Admitted | Refusal | Repeat

_REPEAT = Repeat(None)
_EVENT_TYPE = EVENT_TYPE.encode()


class Gate:
    """Admits events to one registered stream."""

    def __init__(self, stream: definition.Stream, recent: Recent) -> None:
        self.stream = stream
        self.topic = events_topic(stream.name)
        self._validator = Validator(stream)
        self._window_us = stream.dedup_window_ms * 1000
        self.recent = recent
        self._common: Headers = [
            ("ce_specversion", b"1.0"),
            ("ce_subject", stream.name.encode()),
            ("ce_dataschema", stream_hash(stream).encode()),
            ("content-type", JSON_TYPE.encode()),
        ]

    def admit(
        self, events: Iterable[messages.Event], source: str, now_us: int, new_id: Callable[[], str]
    ) -> list[Admission]:
        """Return what becomes of each event, in order; `source` stands in where an event names none."""
        admissions: list[Admission] = []
        first_of: dict[Identity, int] = {}
        for event in events:
            admissions.append(self._admit(event, event.source or source or DEFAULT_SOURCE, now_us, new_id))
            admitted = admissions[-1]
            if isinstance(admitted, Admitted) and admitted.identity is not None:
                first = first_of.setdefault(admitted.identity, len(admissions) - 1)
                if first != len(admissions) - 1:
                    admissions[-1] = Repeat(first)
        return admissions

    def accepted(self, admitted: Admitted) -> None:
        """Remember an event that Kafka has acknowledged."""
        if admitted.identity is not None:
            self.recent.add(admitted.identity, admitted.time_us)

    def _admit(self, event: messages.Event, source: str, now_us: int, new_id: Callable[[], str]) -> Admission:
        given_id, kind, trace = event.id, event.type, event.traceparent
        if len(given_id) + len(source) + len(kind) + len(trace) > MAX_ATTRIBUTE_CHARS:
            return _refuse_attributes({"id": given_id, "source": source, "type": kind, "traceparent": trace})
        if kind == WATERMARK_TYPE:
            return Refusal(Reason.UNSUPPORTED, "type", f"type {WATERMARK_TYPE} is Tidemill's own: send another")
        data = event.data
        valid = self._validator.check(data, now_us)
        if not isinstance(valid, Valid):
            return valid
        # An id of our own can be nobody's repeat.
        identity = (source, given_id) if given_id else None
        if identity is not None and self.recent.holds(identity, valid.time_us, self._window_us):
            return _REPEAT
        headers = [
            *self._common,
            ("ce_id", (given_id or new_id()).encode()),
            ("ce_source", source.encode()),
            ("ce_type", kind.encode() if kind else _EVENT_TYPE),
            ("ce_time", _utc(valid).encode()),
        ]
        if trace:
            headers.append(("ce_traceparent", trace.encode()))
        return Admitted(self.topic, valid.key, data, headers, identity, valid.time_us)


def _utc(valid: Valid) -> str:
    return valid.time_text if valid.time_text[-1] == "Z" else format_us(valid.time_us)


def _refuse_attributes(texts: dict[str, str]) -> Refusal:
    longest = max(texts, key=lambda name: len(texts[name]))
    message = f"id, source, type and traceparent hold at most {MAX_ATTRIBUTE_CHARS} characters in all"
    return Refusal(Reason.OVERSIZED, longest, message)
