"""What becomes of each event of a request before Kafka is asked: a record, a refusal, a repeat, or nothing; pure."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tidemill_contracts.canonical import stream_hash
from tidemill_contracts.cloudevents import EVENT_TYPE, JSON_TYPE, WATERMARK_TYPE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.instants import format_us
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import events_topic
from tidemill_runtime.outgoing import Outgoing

from tidemill_ingestion.brake import Brake, Change, Limit, Paused
from tidemill_ingestion.quality import Profile
from tidemill_ingestion.recent import BEFORE, Identity, Recent, Request
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

    def outgoing(self) -> Outgoing:
        """Return the record to write."""
        return Outgoing(self.topic, self.value, self.key, self.headers)


class Repeat(NamedTuple):
    """The event's identity was accepted within the window; `first` is its place where that was in this request."""

    first: int | None


class Held(NamedTuple):
    """The stream is paused: nothing was decided about the event."""

    pause: Paused


Admission = Admitted | Refusal | Repeat | Held

_EVENT_TYPE = EVENT_TYPE.encode()
# Nobody looked for so many pauses: the oldest are told no more.
_MAX_CHANGES = 100


class Gate:
    """Admits events to one registered stream."""

    def __init__(
        self,
        stream: definition.Stream,
        recent: Recent,
        *,
        brake: Brake | None = None,
        profile: Profile | None = None,
    ) -> None:
        """Take what is known of the stream already, where there is something."""
        self.stream = stream
        self.topic = events_topic(stream.name)
        self._validator = Validator(stream)
        self._window_us = stream.dedup_window_ms * 1000
        self.recent = recent
        self.brake = brake or Brake(Limit())
        self.profile = profile or Profile(stream)
        self.profile.follow(stream)
        # Pauses and resumptions that nobody has been told of yet.
        self.changes: deque[Change] = deque(maxlen=_MAX_CHANGES)
        self._common: Headers = [
            ("ce_specversion", b"1.0"),
            ("ce_subject", stream.name.encode()),
            ("ce_dataschema", stream_hash(stream).encode()),
            ("content-type", JSON_TYPE.encode()),
        ]

    def paused(self, now_us: int) -> Paused | None:
        """Return the pause that the stream is in; one whose time is over ends here."""
        self._changed(self.brake.release(now_us))
        return self.brake.pause

    def resume(self, now_us: int, actor: str, reason: str) -> None:
        """End a pause because an operator says so."""
        self._changed(self.brake.resume(now_us, actor, reason))

    def request(self) -> Request:
        """Return the identities of a request that is yet to be admitted."""
        return Request(self.recent, self._window_us)

    def admit(
        self,
        events: Sequence[messages.Event],
        source: str,
        now_us: int,
        new_id: Callable[[], str],
        request: Request | None = None,
    ) -> list[Admission]:
        """Return what becomes of each event, in order; `source` stands in where an event names none.

        `request` is given where a request brings events of the stream in several batches.
        """
        pause = self.paused(now_us)
        if pause is not None:
            return [Held(pause)] * len(events)
        admissions = self.judge(events, source, now_us, new_id, request)
        refusals = [one for one in admissions if isinstance(one, Refusal)]
        self.judged(len(admissions) - len(refusals), refusals, now_us)
        return list(admissions)

    def judge(
        self,
        events: Iterable[messages.Event | Refusal],
        source: str,
        now_us: int,
        new_id: Callable[[], str],
        request: Request | None = None,
    ) -> list[Admitted | Refusal | Repeat]:
        """Return the verdict on each event, paused or not; whoever acts on it says so with `judged`."""
        admissions: list[Admitted | Refusal | Repeat] = []
        request = request or self.request()
        for event in events:
            if isinstance(event, Refusal):
                admissions.append(event)
            else:
                named = event.source or source or DEFAULT_SOURCE
                admissions.append(self._admit(event, named, now_us, new_id, request))
            request.place += 1
        return admissions

    def judged(self, good: int, refusals: Iterable[Refusal], now_us: int) -> None:
        """Take note of records that were judged, here or where they could not even be read."""
        reasons = [refusal.reason.value for refusal in refusals]
        self.profile.refuse(reasons)
        self._changed(self.brake.note(good, reasons, now_us))

    def accepted(self, admitted: Admitted, partition: int, now_us: int) -> None:
        """Remember an event that Kafka has acknowledged, in the order of its partition."""
        self.profile.accept(partition, admitted.time_us, now_us)
        if admitted.identity is not None:
            self.recent.add(admitted.identity, admitted.time_us, self._window_us)

    def _changed(self, change: Change | None) -> None:
        if change is not None:
            self.changes.append(change)

    def _admit(
        self, event: messages.Event, source: str, now_us: int, new_id: Callable[[], str], request: Request
    ) -> Admitted | Refusal | Repeat:
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
        if identity is not None:
            first = request.take(identity, valid.time_us)
            if first is not None:
                self.profile.duplicates += 1
                return Repeat(None if first == BEFORE else first)
        self.profile.observe(valid.fields)
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
