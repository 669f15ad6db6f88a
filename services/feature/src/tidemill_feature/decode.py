"""From Kafka records to typed columns; whether a record is poison is decided here, before any of its effects.

Records are decoded all at once, with a decoder compiled from the stream's definition. Where one of them is refused,
they are gone through one by one; and that one is looked at once more, slowly, to name the reason.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import MAXYEAR, MINYEAR, UTC, datetime, timedelta
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.cloudevents import WATERMARK_TYPE
from tidemill_contracts.dead_letters import REDRIVEN_FOR
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import EARLIEST_US, LATEST_US, parse_us
from tidemill_contracts.reasons import Reason
from tidemill_features.columns import column_of
from tidemill_features.expressions import Column
from tidemill_runtime.batches import Record, Refused
from tidemill_runtime.errors import Poison

from tidemill_feature.record_columns import RecordColumns

Ints = NDArray[np.int64]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_INT64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_INSTANT = Annotated[datetime, msgspec.Meta(tz=True)]
_KEY = Annotated[str, msgspec.Meta(min_length=1)]
_TYPES: dict[int, Any] = {
    definition.FIELD_TYPE_BOOL: bool,
    definition.FIELD_TYPE_INT64: _INT64,
    definition.FIELD_TYPE_FLOAT64: float,
    definition.FIELD_TYPE_STRING: str,
    definition.FIELD_TYPE_TIMESTAMP: _INSTANT,
}

# (source, id), else the record's own offset, which no other record of its partition has.
Identity = tuple[bytes, bytes] | int


_TYPE, _SOURCE, _ID = "ce_type", "ce_source", "ce_id"
# The headers that are looked at here, and by whoever keeps records from a group.
HEADERS = (_TYPE, _SOURCE, _ID, REDRIVEN_FOR)


class Read(NamedTuple):
    """What is looked at of some records; watermarks are left out."""

    offset: Ints
    written_ms: Ints
    values: list[bytes]
    identities: list[Identity]


@dataclass(frozen=True, slots=True)
class Decoded:
    """The events among some records of one partition, in offset order, and the records that are none.

    `values`: the decoded event bodies. A watermark is neither.
    """

    offset: Ints
    event_us: Ints
    written_ms: Ints
    identities: list[Identity]
    values: list[Any]
    refused: list[Refused]


class StreamDecoder:
    """Decodes the records of one stream."""

    def __init__(self, stream: definition.Stream) -> None:
        self.stream = stream
        self.types = {field.name: field.type for field in stream.fields}
        # Attributes have names of their own, since a field may be called `from` or `class`.
        attributes = {field.name: f"f{place}" for place, field in enumerate(stream.fields)}
        fields: list[Any] = []
        for field in sorted(stream.fields, key=lambda field: field.nullable):
            name, kind = attributes[field.name], _TYPES[field.type]
            if field.name == stream.key_field and kind is str:
                kind = _KEY
            fields.append((name, kind | None, None) if field.nullable else (name, kind))
        event = msgspec.defstruct("Event", fields, gc=False, rename={a: name for name, a in attributes.items()})
        self._decode = msgspec.json.Decoder(event).decode
        self._getters = {name: attrgetter(attribute) for name, attribute in attributes.items()}
        self._time = self._getters[stream.time_field]
        kept = [name for name, kind in self.types.items() if kind == definition.FIELD_TYPE_TIMESTAMP]
        self._instants = [(name, self._getters[name]) for name in kept if name != stream.time_field]
        self._max_future_us = stream.max_future_ms * 1000

    def decode(self, records: Sequence[Record]) -> Decoded:
        """Return the events of records of one partition."""
        return self._at_once(records) or self._one_by_one(records)

    def _at_once(self, records: Sequence[Record]) -> Decoded | None:
        """Return the events where no record is poison, else None."""
        offsets, written_ms, raws, identities = (
            _columns(records) if isinstance(records, RecordColumns) else _lists(records)
        )
        limit = self.stream.max_event_bytes
        if limit and max(map(len, raws), default=0) > limit:
            return None
        try:
            values = list(map(self._decode, raws))
        except _UNDECODABLE:
            return None
        event_us = np.array([_us(instant) for instant in map(self._time, values)], np.int64)
        if ((event_us < EARLIEST_US) | (event_us >= LATEST_US)).any():
            return None
        if self._max_future_us and (event_us > written_ms * 1000 + self._max_future_us).any():
            return None
        if any(_unwritable(instant) for _, get in self._instants for instant in map(get, values)):
            return None
        return Decoded(offsets, event_us, written_ms, identities, values, [])

    def _one_by_one(self, records: Sequence[Record]) -> Decoded:
        """Return the events, and what is poison."""
        times: list[int] = []
        written_ms: list[int] = []
        offsets: list[int] = []
        identities: list[Identity] = []
        values: list[Any] = []
        refused: list[Refused] = []
        for record in records:
            headers = dict(record.headers)
            if headers.get(_TYPE) == _WATERMARK:
                continue
            try:
                event, event_us = self._event(record)
            except Poison as poison:
                refused.append(Refused(record, poison))
                continue
            source, event_id = headers.get(_SOURCE), headers.get(_ID)
            identities.append((source, event_id) if source and event_id else record.offset)
            values.append(event)
            times.append(event_us)
            written_ms.append(record.timestamp)
            offsets.append(record.offset)
        return Decoded(_ints(offsets), _ints(times), _ints(written_ms), identities, values, refused)

    def columns(self, events: Sequence[Any], names: Sequence[str]) -> dict[str, Column]:
        """Return some fields of decoded events as columns."""
        return {name: column_of(self._values(events, name), self.types[name]) for name in names}

    def _values(self, events: Sequence[Any], name: str) -> list[Any]:
        values = list(map(self._getters[name], events))
        if self.types[name] == definition.FIELD_TYPE_TIMESTAMP:
            return [None if value is None else _us(value) for value in values]
        return values

    def _event(self, record: Record) -> tuple[Any, int]:
        """Return a record's body and event time. Raises `Poison`."""
        raw = record.value
        limit = self.stream.max_event_bytes
        if limit and raw is not None and len(raw) > limit:
            raise Poison(Reason.OVERSIZED, f"{len(raw)} bytes; the stream allows {limit}")
        try:
            event = self._decode(raw or b"")
        except _UNDECODABLE as error:
            raise explained(raw, self.stream, str(error)) from error
        event_us = _us(self._time(event))
        if not EARLIEST_US <= event_us < LATEST_US:
            raise Poison(Reason.OUT_OF_RANGE, "the event time is out of range", field=self.stream.time_field)
        if self._max_future_us and event_us > record.timestamp * 1000 + self._max_future_us:
            raise Poison(
                Reason.TOO_FAR_IN_FUTURE,
                f"the event lies {(event_us // 1000 - record.timestamp) / 1000:.0f} s after the record was written",
                field=self.stream.time_field,
                fix=f"at most {self.stream.max_future_ms / 1000:.0f} s are allowed",
            )
        for name, get in self._instants:
            if _unwritable(get(event)):
                message = "in UTC the instant lies outside the years 1 to 9999"
                raise Poison(Reason.OUT_OF_RANGE, message, field=name, fix="leave out its offset: end it in Z")
        return event, event_us


def _unwritable(instant: datetime | None) -> bool:
    """Say whether its offset carries an instant out of the years that calendars have: no log or answer can hold it."""
    if instant is None or instant.year not in _EDGES:
        return False
    return not _FIRST_US <= _us(instant) <= _LAST_US


def _ints(values: list[int]) -> Ints:
    return np.array(values, np.int64)


def _columns(records: RecordColumns) -> Read:
    watermark = records.where(_TYPE, _WATERMARK)
    events = records.take(~watermark) if watermark.any() else records
    named = list(zip(events.header(_SOURCE), events.header(_ID), strict=True))
    identities: list[Identity] = [*named]
    if not all(map(all, named)):
        identities = [pair if all(pair) else offset for pair, offset in zip(named, events.offset.tolist(), strict=True)]
    return Read(events.offset, events.timestamp, events.values(), identities)


def _lists(records: Sequence[Record]) -> Read:
    identities: list[Identity] = []
    events: list[Record] = []
    for record in records:
        headers = dict(record.headers)
        if headers.get(_TYPE) != _WATERMARK:
            source, event_id = headers.get(_SOURCE), headers.get(_ID)
            identities.append((source, event_id) if source and event_id else record.offset)
            events.append(record)
    offsets, written_ms = _ints([record.offset for record in events]), _ints([record.timestamp for record in events])
    return Read(offsets, written_ms, [record.value or b"" for record in events], identities)


_EDGES = (MINYEAR, MAXYEAR)
_FIRST_US = (datetime(MINYEAR, 1, 1, tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST_US = (datetime(MAXYEAR, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC) - _EPOCH) // _MICROSECOND
_WATERMARK = WATERMARK_TYPE.encode()
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _us(instant: datetime) -> int:
    return (instant - _EPOCH) // _MICROSECOND


def explained(raw: bytes | None, stream: definition.Stream, otherwise: str) -> Poison:
    """Return why a record is no event of the stream; `otherwise` is the decoder's own word."""
    if not raw:
        return Poison(Reason.EMPTY, "the record has no value")
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        return Poison(Reason.BAD_UTF8, str(error))
    except Poison as constant:
        return constant
    except (ValueError, RecursionError) as error:
        return Poison(Reason.UNDECODABLE, f"no JSON: {error}")
    if not isinstance(body, dict):
        return Poison(Reason.UNDECODABLE, "the value is JSON, but no object")
    for field in stream.fields:
        poison = _field_fault(field, body, stream)
        if poison is not None:
            return poison
    return Poison(Reason.UNDECODABLE, otherwise)


def _refuse_constant(name: str) -> Any:
    raise Poison(Reason.NON_FINITE, f"{name} is no JSON number")


def _field_fault(field: definition.Field, body: dict[str, Any], stream: definition.Stream) -> Poison | None:
    """Return what is wrong with one field, if anything."""
    name, value = field.name, body.get(field.name)
    if name == stream.key_field and name in body and value in (None, ""):
        return Poison(Reason.NULL_KEY, "the key field is null or empty", field=name)
    if value is None:
        if field.nullable:
            return None
        return Poison(Reason.MISSING_FIELD, "the field is missing or null", field=name)
    kind = field.type
    fits = {
        definition.FIELD_TYPE_BOOL: isinstance(value, bool),
        definition.FIELD_TYPE_INT64: isinstance(value, int) and not isinstance(value, bool),
        definition.FIELD_TYPE_FLOAT64: isinstance(value, int | float) and not isinstance(value, bool),
        definition.FIELD_TYPE_STRING: isinstance(value, str),
        definition.FIELD_TYPE_TIMESTAMP: isinstance(value, str),
    }
    if not fits[kind]:
        return Poison(Reason.WRONG_TYPE, f"{type(value).__name__} is not what the stream declares", field=name)
    if kind == definition.FIELD_TYPE_INT64 and not -(2**63) <= value < 2**63:
        return Poison(Reason.OUT_OF_RANGE, "the integer does not fit into 64 bits", field=name)
    if kind == definition.FIELD_TYPE_FLOAT64 and not abs(value) <= _LARGEST:
        return Poison(Reason.NON_FINITE, "the number is not finite", field=name)
    if kind == definition.FIELD_TYPE_STRING:
        return _text_fault(name, value)
    return _instant_fault(name, value) if kind == definition.FIELD_TYPE_TIMESTAMP else None


_LARGEST = float(np.finfo(np.float64).max)


def _text_fault(name: str, text: str) -> Poison | None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return Poison(Reason.BAD_UTF8, "a \\u escape is half of a surrogate pair", field=name)
    return None


def _instant_fault(name: str, text: str) -> Poison | None:
    try:
        msgspec.convert(text, datetime)
        parse_us(text)
    except ValueError as error:
        naive = "has no UTC offset" in str(error)
        return Poison(Reason.NAIVE_TIMESTAMP if naive else Reason.WRONG_TYPE, str(error), field=name)
    return None
