"""Event classes become streams."""

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from tidemill_contracts.bounds import MAX_EVENT_BYTES, MAX_FIELDS, MAX_PARTITIONS
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import schema_of

from tidemill.declarations.events import Event, StreamOptions
from tidemill.declarations.origin import Origin
from tidemill.definition.report import Report, unknown
from tidemill.definition.source import line_of_field, line_of_text

TYPES: Mapping[object, definition.FieldType.ValueType] = {
    str: definition.FIELD_TYPE_STRING,
    int: definition.FIELD_TYPE_INT64,
    float: definition.FIELD_TYPE_FLOAT64,
    bool: definition.FIELD_TYPE_BOOL,
    datetime: definition.FIELD_TYPE_TIMESTAMP,
}
LATE_POLICIES = {
    "drop": definition.LATE_POLICY_DROP,
    "correct": definition.LATE_POLICY_CORRECT,
    "dead-letter": definition.LATE_POLICY_DEAD_LETTER,
}
_OPTIONS = ("stream", "key", "time", "lateness", "partitions", "late", "dedup", "max_future", "max_event_bytes")


@dataclass(frozen=True, slots=True)
class CompiledStream:
    """A stream with the name of the class that declares it, which is how messages call it."""

    owner: str
    message: definition.Stream

    @property
    def schema(self) -> dict[str, definition.Field]:
        return schema_of(self.message.fields)


class Streams:
    """Compiles each event class once; a class with a fault is None from then on, and reported once."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._compiled: dict[type[Event], CompiledStream | None] = {}

    def get(self, event: object, origin: Origin, subject: str) -> CompiledStream | None:
        """Return the stream of what was given where an event class is wanted."""
        if not (isinstance(event, type) and issubclass(event, Event)) or event is Event:
            self._report.add(origin, subject, f"an event class (class X(tm.Event, …)) is wanted, not {event!r}")
            return None
        if event not in self._compiled:
            options, own = event.__tidemill__, f"event {event.__name__}"
            place = origin if options is None else options.origin
            self._compiled[event] = self._report.guarded(place, own, lambda: self._compile(event))
        return self._compiled[event]

    def all(self) -> list[definition.Stream]:
        """Return the streams compiled so far, by name."""
        found = [stream.message for stream in self._compiled.values() if stream is not None]
        return sorted(found, key=lambda stream: stream.name)

    def _compile(self, event: type[Event]) -> CompiledStream | None:
        options = event.__tidemill__
        if options is None:
            return None
        subject = f"event {event.__name__}"
        before = len(self._report.problems)
        fields = self._fields(event, options.origin, subject)
        message = self._options(options, subject)
        message.fields.extend(fields)
        if options.stream is not None:
            self._check_roles(event.__name__, message, options, subject)
            self._check_name(message, options, subject)
        return CompiledStream(event.__name__, message) if len(self._report.problems) == before else None

    def _options(self, options: StreamOptions, subject: str) -> definition.Stream:
        report, origin = self._report, options.origin
        for name in options.unknown:
            report.add(origin, subject, unknown(name, _OPTIONS, "keyword"))
        if options.stream is None:
            report.add(origin, subject, 'it names no stream; write class X(tm.Event, stream="…", key="…", time="…")')
        else:
            report.name(origin, subject, options.stream, stream=True)
        message = definition.Stream(
            name=str(options.stream), key_field=str(options.key or ""), time_field=str(options.time or "")
        )
        if report.number(origin, f"{subject}: partitions", options.partitions, low=1, high=MAX_PARTITIONS, whole=True):
            message.partitions = options.partitions
        bytes_subject = f"{subject}: max_event_bytes"
        if report.number(origin, bytes_subject, options.max_event_bytes, low=1, high=MAX_EVENT_BYTES, whole=True):
            message.max_event_bytes = options.max_event_bytes
        if report.one_of(origin, f"{subject}: late", options.late, LATE_POLICIES):
            message.late_policy = LATE_POLICIES[options.late]
        message.lateness_ms = report.duration(origin, f"{subject}: lateness", options.lateness, zero=True) or 0
        message.dedup_window_ms = report.duration(origin, f"{subject}: dedup", options.dedup, zero=True) or 0
        message.max_future_ms = report.duration(origin, f"{subject}: max_future", options.max_future, zero=True) or 0
        return message

    def _fields(self, event: type[Event], origin: Origin, subject: str) -> list[definition.Field]:
        try:
            hints = typing.get_type_hints(event)
        except Exception as error:  # an annotation in quotes is any code
            self._report.add(origin, subject, f"a field's type is not understood: {error}")
            return []
        hints = {name: hint for name, hint in hints.items() if not name.startswith("__")}
        if not 1 <= len(hints) <= MAX_FIELDS:
            self._report.add(origin, subject, f"it has {len(hints)} fields; 1 to {MAX_FIELDS} are possible")
        fields = []
        for name, hint in hints.items():
            if name.startswith("_"):
                line = line_of_field(origin, name)
                message = f"field {name!r}: the offline log's own columns begin with _; begin it with a letter"
                self._report.add(origin, subject, message, line=line)
            if hasattr(event, name):
                line = line_of_field(origin, name)
                self._report.add(origin, subject, f"field {name!r}: a field has no default value", line=line)
            field = self._field(name, hint, origin, subject)
            fields += [field] if field is not None else []
        return fields

    def _field(self, name: str, hint: object, origin: Origin, subject: str) -> definition.Field | None:
        nullable = False
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            parts = typing.get_args(hint)
            rest = [part for part in parts if part is not types.NoneType]
            nullable = len(rest) < len(parts)
            hint = rest[0] if len(rest) == 1 else hint
        kind = TYPES.get(hint) if isinstance(hint, type) else None
        if kind is None:
            shown = hint.__name__ if isinstance(hint, type) else str(hint)
            message = f"field {name!r}: type {shown} is not possible; use str, int, float, bool or datetime (| None)"
            self._report.add(origin, subject, message, line=line_of_field(origin, name))
            return None
        return definition.Field(name=name, type=kind, nullable=nullable)

    def _check_roles(self, owner: str, stream: definition.Stream, options: StreamOptions, subject: str) -> None:
        """Check that key and time are fields that can serve as such."""
        schema = schema_of(stream.fields)
        wanted = {
            "key": (options.key, definition.FIELD_TYPE_STRING, "str"),
            "time": (options.time, definition.FIELD_TYPE_TIMESTAMP, "datetime"),
        }
        for role, (name, kind, type_name) in wanted.items():
            if name is None:
                self._report.add(options.origin, subject, f'it names no {role}; add {role}="…", one of its fields')
                continue
            field = self._report.field(options.origin, f"{subject}: {role}", name, schema, owner)
            if field is not None and (field.type != kind or field.nullable):
                message = f"field {name!r} must be {type_name} and never null"
                line = line_of_text(options.origin, name)
                self._report.add(options.origin, f"{subject}: {role}", message, line=line)

    def _check_name(self, stream: definition.Stream, options: StreamOptions, subject: str) -> None:
        for other in self._compiled.values():
            if other is not None and other.message.name == stream.name:
                message = f"stream {stream.name!r} is declared by {other.owner} already; one class declares a stream"
                self._report.add(options.origin, subject, message)
