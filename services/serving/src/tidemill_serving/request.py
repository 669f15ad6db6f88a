"""What a prediction request may hold: the fields of the pipeline's request stream, checked one by one."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, NoReturn

import orjson
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us, parse_us
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Poison

# A checked field: timestamps are int, microseconds since the epoch, UTC.
Value = bool | int | float | str | None
Values = dict[str, Value]

MAX_ID_BYTES = 256
# What monitoring can join by; a prediction that never meets its label would be as good as lost.
MAX_KEY_BYTES = 512
# 9999-12-31T23:59:59Z: the last second that RFC 3339 can write.
MAX_INSTANT_US = 253_402_300_799_000_000

# What else a value of the kind that a field mostly comes as must be.
_Look = Callable[[str, Any], Value]

_TYPE_NAMES = {
    definition.FIELD_TYPE_BOOL: "a bool",
    definition.FIELD_TYPE_INT64: "an int64",
    definition.FIELD_TYPE_FLOAT64: "a float64",
    definition.FIELD_TYPE_STRING: "a string",
    definition.FIELD_TYPE_TIMESTAMP: "a timestamp",
}


class Row(NamedTuple):
    """One request as it came: fields by name, and the caller's id (empty: derived)."""

    fields: Mapping[str, feature.Scalar]
    prediction_id: str


@dataclass(frozen=True)
class RequestSchema:
    """The fields that a request to one pipeline carries, and the one that joins it with its label."""

    stream: definition.Stream
    join_field: str

    @cached_property
    def _fields(self) -> dict[str, definition.Field]:
        return {field.name: field for field in self.stream.fields}

    @cached_property
    def _keys(self) -> frozenset[str]:
        return frozenset((self.join_field, self.stream.key_field))

    @cached_property
    def _timestamps(self) -> frozenset[str]:
        return frozenset(field.name for field in self.stream.fields if field.type == definition.FIELD_TYPE_TIMESTAMP)

    @cached_property
    def _most_bytes(self) -> int:
        """The most bytes that a request takes without its texts: names, punctuation, numbers and instants."""
        return 2 + sum(len(orjson.dumps(name)) + 2 + _LONGEST_VALUE for name in self._fields)

    @cached_property
    def _usual(self) -> dict[str, tuple[str, _Look | None]]:
        looks: dict[int, tuple[str, _Look | None]] = {
            definition.FIELD_TYPE_BOOL: ("bool_value", None),
            definition.FIELD_TYPE_INT64: ("int64_value", None),
            definition.FIELD_TYPE_FLOAT64: ("float64_value", _finite),
            definition.FIELD_TYPE_STRING: ("string_value", None),
            definition.FIELD_TYPE_TIMESTAMP: ("timestamp_us", _instant),
        }
        texts = {
            name: ("string_value", _key)
            for name in self._keys
            if self._fields[name].type == definition.FIELD_TYPE_STRING
        }
        return {name: texts.get(name) or looks[field.type] for name, field in self._fields.items()}

    def check(self, fields: Mapping[str, feature.Scalar]) -> Values:
        """Return the request's values in the order of the schema; a nullable field that is absent is None.

        Raises `Poison` with the first fault, naming the field.
        """
        if len(fields) > len(self._fields) or not self._fields.keys() >= set(fields):
            self._refuse_unknown(fields)
        values: Values = {}
        get = fields.get
        for name, (kind, look) in self._usual.items():
            scalar = get(name)
            # Most are of the usual kind, and nothing else is asked of them.
            if scalar is None or scalar.WhichOneof("value") != kind:
                values[name] = self._value(self._fields[name], scalar)
            else:
                value = getattr(scalar, kind)
                values[name] = value if look is None else look(name, value)
        self._check_size(values)
        return values

    def to_json(self, values: Values) -> bytes:
        """Return the request's fields as the event's JSON: instants are RFC 3339, absent fields are null."""
        return orjson.dumps({**values, **{name: _shown(values[name]) for name in self._timestamps}})

    def join_key(self, values: Values) -> str:
        """Return the text that keys the prediction and its label."""
        value = values[self.join_field]
        return value if isinstance(value, str) else orjson.dumps(value).decode()

    def _refuse_unknown(self, fields: Mapping[str, feature.Scalar]) -> NoReturn:
        name = min(set(fields) - set(self._fields))
        near = difflib.get_close_matches(name, self._fields, n=1)
        fix = f"did you mean {near[0]!r}?" if near else f"stream {self.stream.name} has {', '.join(self._fields)}"
        raise Poison(Reason.UNKNOWN_FIELD, f"stream {self.stream.name} has no field {name[:80]!r}", field=name, fix=fix)

    def _value(self, field: definition.Field, scalar: feature.Scalar | None) -> Value:
        """Return the value of a field that is absent, or not of its usual kind."""
        kind = None if scalar is None else scalar.WhichOneof("value")
        if scalar is None or kind is None:
            self._check_absent(field, given=scalar is not None)
            return None
        value, wanted = getattr(scalar, kind), field.type
        if wanted == definition.FIELD_TYPE_FLOAT64 and kind == "int64_value":
            return float(value)
        if wanted == definition.FIELD_TYPE_TIMESTAMP and kind == "string_value":
            return _instant(field.name, _parsed(field.name, value))
        raise Poison(
            Reason.WRONG_TYPE,
            f"field {field.name!r} is {_TYPE_NAMES[wanted]}, not {kind.removesuffix('_value')}",
            field=field.name,
            fix=f"send {_TYPE_NAMES[wanted]}",
        )

    def _check_absent(self, field: definition.Field, *, given: bool) -> None:
        if field.name in self._keys:
            reason = Reason.NULL_KEY if given else Reason.MISSING_FIELD
            raise Poison(
                reason,
                f"field {field.name!r} identifies the request and is {'null' if given else 'missing'}",
                field=field.name,
                fix=f"send {_TYPE_NAMES[field.type]}",
            )
        if not field.nullable:
            raise Poison(
                Reason.MISSING_FIELD,
                f"field {field.name!r} is {'null' if given else 'missing'} and stream {self.stream.name} needs it",
                field=field.name,
                fix=f"send {_TYPE_NAMES[field.type]}",
            )

    def _check_size(self, values: Values) -> None:
        limit = self.stream.max_event_bytes
        size = sum([len(value) for value in values.values() if isinstance(value, str)])
        # JSON takes at most six bytes a character: most requests need no encoding to be known small.
        if limit and 6 * size + self._most_bytes > limit:
            size = len(self.to_json(values))
            if size > limit:
                raise Poison(Reason.OVERSIZED, f"the request is {size} bytes; stream {self.stream.name} allows {limit}")


# Of a number, an instant in its quotes, a boolean, or the quotes of a text.
_LONGEST_VALUE = 32


@lru_cache(4096)
def _shown(instant: Value) -> str | None:
    """Return an instant as text; requests of one hour share most of theirs."""
    return format_us(instant) if isinstance(instant, int) else None


def _key(name: str, value: str) -> str:
    if not value:
        raise Poison(Reason.NULL_KEY, f"field {name!r} identifies the request and is empty", field=name)
    return _joinable(value, name, MAX_KEY_BYTES)


def _finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        fix = "send a finite number, or null where the field may be null"
        raise Poison(Reason.NON_FINITE, f"field {name!r} is {value}", field=name, fix=fix)
    return value


def _instant(name: str, value: int) -> int:
    if not 0 <= value <= MAX_INSTANT_US:
        raise Poison(
            Reason.OUT_OF_RANGE,
            f"field {name!r} is {value} µs since the epoch",
            field=name,
            fix="send microseconds since 1970-01-01T00:00:00Z, up to the year 9999",
        )
    return value


def _parsed(name: str, text: str) -> int:
    try:
        return parse_us(text)
    except ValueError as error:
        raise instant_poison(name, text, error) from error


def instant_poison(name: str, text: str, error: ValueError) -> Poison:
    """Return why a text is no instant: one without an offset, or none at all."""
    naive = _is_naive(text)
    reason = Reason.NAIVE_TIMESTAMP if naive else Reason.WRONG_TYPE
    # Of a naive one the error tells the fix as well.
    fault = f"{text!r} has no UTC offset" if naive else error
    return Poison(reason, f"field {name!r}: {fault}", field=name, fix="write it as 2013-06-04T00:00:00Z")


def _is_naive(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is None
    except ValueError:
        return False


def check_as_of(as_of_us: int, now_us: int, max_future_ms: int) -> int:
    """Return the moment that a request asks for; 0 stays 0 and means the moment its features are read."""
    if not 0 <= as_of_us <= MAX_INSTANT_US:
        raise Poison(
            Reason.OUT_OF_RANGE,
            f"as_of_us is {as_of_us}",
            field="as_of_us",
            fix="send microseconds since 1970-01-01T00:00:00Z, or 0 for now",
        )
    if as_of_us > now_us + max_future_ms * 1000:
        raise Poison(
            Reason.TOO_FAR_IN_FUTURE,
            f"as_of_us {format_us(as_of_us)} lies more than {max_future_ms} ms ahead of {format_us(now_us)}",
            field="as_of_us",
        )
    return as_of_us


def check_prediction_id(prediction_id: str) -> str:
    """Return the caller's id, bounded; empty means that one is derived."""
    return _joinable(prediction_id, "prediction_id", MAX_ID_BYTES)


def _joinable(text: str, field: str, limit: int) -> str:
    if len(text.encode()) > limit:
        raise Poison(Reason.OVERSIZED, f"{field} is over {limit} bytes", field=field, fix="use a shorter one")
    if "\0" in text:
        raise Poison(Reason.BAD_UTF8, f"{field} holds a NUL character", field=field, fix="leave it out")
    return text


def check_batch(rows: int, limit: int) -> None:
    """Refuse a batch that is empty or above the bound."""
    if rows == 0:
        raise Poison(Reason.EMPTY, "the batch has no rows", field="rows")
    if rows > limit:
        raise Poison(
            Reason.OUT_OF_RANGE, f"the batch has {rows} rows; at most {limit} are taken", field="rows", fix="split it"
        )
