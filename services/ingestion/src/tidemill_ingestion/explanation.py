"""The slow verdict on an event: every rule in order, each with its named reason; pure.

Rules look at the exact JSON text (Python's decoder keeps whole integers and reads NaN), so that what a faster decoder
rounds or rejects is named for what it is.
"""

import json
import math
from typing import Any

import orjson
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason

from tidemill_ingestion.exact import loads
from tidemill_ingestion.timestamps import InstantError, parse, to_us
from tidemill_ingestion.verdicts import Refusal, Valid

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
_NO_INT64 = "the integer does not fit into 64 bits"
DEFAULT_MAX_BYTES = 64 * 1024
# Of a field that nobody declared, whose name is its sender's: answers would be larger than the events.
_NAME_CHARS = 100
_TYPE_NAMES = {
    definition.FIELD_TYPE_BOOL: "true or false",
    definition.FIELD_TYPE_INT64: "an integer",
    definition.FIELD_TYPE_FLOAT64: "a number",
    definition.FIELD_TYPE_STRING: "a string",
    definition.FIELD_TYPE_TIMESTAMP: "an RFC 3339 instant (a string)",
}


class Explainer:
    """Decides whether events fit one stream, and says why not."""

    def __init__(self, stream: definition.Stream) -> None:
        self._fields = tuple(stream.fields)
        self._names = frozenset(field.name for field in stream.fields)
        self._integers = frozenset(f.name for f in stream.fields if f.type == definition.FIELD_TYPE_INT64)
        self._stream = stream.name
        self._key_field = stream.key_field
        self._time_field = stream.time_field
        self.max_bytes = stream.max_event_bytes or DEFAULT_MAX_BYTES
        self.max_future_us = stream.max_future_ms * 1000

    def check(self, data: bytes, now_us: int) -> Valid | Refusal:
        """Return the verdict on one event's data; `now_us` is the wall clock."""
        if not data.strip():
            return Refusal(Reason.EMPTY, "", "the event has no data: send a JSON object with the stream's fields")
        if len(data) > self.max_bytes:
            return Refusal(
                Reason.OVERSIZED,
                "",
                f"{len(data):,} bytes are more than the {self.max_bytes:,} that stream {self._stream!r} takes",
            )
        decoded = self._decode(data)
        if isinstance(decoded, Refusal):
            return decoded
        unknown = min(decoded.keys() - self._names, default=None)
        if unknown is not None:
            name = unknown[:_NAME_CHARS]
            return Refusal(
                Reason.UNKNOWN_FIELD,
                name,
                f"stream {self._stream!r} declares no field {name!r}: leave it out, or declare and apply it",
            )
        for field in self._fields:
            refusal = self._check_field(field, decoded)
            if refusal is not None:
                return refusal
        time_text = decoded[self._time_field]
        time_us = to_us(parse(time_text))
        if time_us > now_us + self.max_future_us:
            ahead_s = self.max_future_us // 1_000_000
            message = f"{time_text} lies more than {ahead_s} s ahead of the clock here: check the producer's"
            return Refusal(Reason.TOO_FAR_IN_FUTURE, self._time_field, message)
        return Valid(key_of(decoded[self._key_field]), time_us, time_text, decoded)

    def _decode(self, data: bytes) -> dict[str, Any] | Refusal:
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            return Refusal(Reason.BAD_UTF8, "", f"byte {error.start} is not UTF-8: encode the event as UTF-8")
        try:
            exact = loads(text)
        except RecursionError:
            return Refusal(Reason.UNDECODABLE, "", "nested too deeply: an event is one flat JSON object")
        except ValueError as error:
            return Refusal(Reason.UNDECODABLE, "", f"no JSON: {error}")
        if not isinstance(exact, dict):
            return Refusal(Reason.UNDECODABLE, "", "the data must be one JSON object with the stream's fields")
        try:
            orjson.loads(data)
        except orjson.JSONDecodeError as error:
            return self._unreadable(exact, error)
        return exact

    def _unreadable(self, event: dict[str, Any], error: orjson.JSONDecodeError) -> Refusal:
        """Name what a strict decoder rejects and Python's reads: NaN, infinities, halves of surrogate pairs."""
        for name, value in event.items():
            cut = name[:_NAME_CHARS]
            # What goes to the sender must itself be UTF-8.
            shown = cut.encode(errors="backslashreplace").decode()
            if _beyond_float(value):
                if name in self._integers and isinstance(value, int):
                    return Refusal(Reason.OUT_OF_RANGE, name, f"field {name!r}: {_NO_INT64}")
                message = f"field {cut!r} is not finite: send a finite number, or null where the field may be null"
                return Refusal(Reason.NON_FINITE, shown, message)
            if not _encodable(name) or (isinstance(value, str) and not _encodable(value)):
                return Refusal(Reason.BAD_UTF8, shown, "a \\u escape is half of a surrogate pair")
        return Refusal(Reason.UNDECODABLE, "", f"no JSON: {error}")

    def _check_field(self, field: definition.Field, event: dict[str, Any]) -> Refusal | None:
        name = field.name
        if name not in event:
            if field.nullable:
                return None
            return Refusal(Reason.MISSING_FIELD, name, f"stream {self._stream!r} needs field {name!r}")
        value = event[name]
        if name == self._key_field and value in (None, ""):
            return Refusal(Reason.NULL_KEY, name, f"the key {name!r} of stream {self._stream!r} is never null or empty")
        if value is None and not field.nullable:
            message = f"field {name!r} is never null: declare it `| None`, or send a value"
            return Refusal(Reason.MISSING_FIELD, name, message)
        if value is None:
            return None
        wrong = _wrong(field.type, value)
        return None if wrong is None else Refusal(wrong[0], name, f"field {name!r}: {wrong[1]}")


def key_of(value: str | bool | float) -> bytes:
    """Return the Kafka key of a key field's value: its text, as JSON writes it.

    >>> key_of("UA-1"), key_of(7), key_of(True), key_of(0.5)
    (b'UA-1', b'7', b'true', b'0.5')
    """
    return value.encode() if isinstance(value, str) else orjson.dumps(value)


def _wrong(kind: int, value: Any) -> tuple[Reason, str] | None:
    """Return what is wrong with a value that is not null; None when it fits."""
    expected = _TYPE_NAMES[kind]  # type: ignore[index]
    mismatch = (Reason.WRONG_TYPE, f"{_shown(value)} is not {expected}")
    if kind == definition.FIELD_TYPE_BOOL:
        return None if isinstance(value, bool) else mismatch
    if kind == definition.FIELD_TYPE_STRING:
        return None if isinstance(value, str) else mismatch
    if kind == definition.FIELD_TYPE_TIMESTAMP:
        return _wrong_instant(value) if isinstance(value, str) else mismatch
    if isinstance(value, bool) or not isinstance(value, int | float):
        return mismatch
    if kind == definition.FIELD_TYPE_FLOAT64:
        return None
    if not isinstance(value, int):
        return mismatch
    if not INT64_MIN <= value <= INT64_MAX:
        return (Reason.OUT_OF_RANGE, _NO_INT64)
    return None


def _wrong_instant(text: str) -> tuple[Reason, str] | None:
    try:
        parse(text)
    except InstantError as error:
        return (error.reason, str(error))
    return None


def _beyond_float(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not math.isfinite(value)
    except OverflowError:
        return True


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
