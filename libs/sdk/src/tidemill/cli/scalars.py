"""Values between JSON and the wire form of a field."""

from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us, parse_us
from tidemill_contracts.reasons import Reason

from tidemill.cli.answers import USAGE, RefusedError

INT64 = range(-(2**63), 2**63)
_TYPE_NAMES = {
    definition.FIELD_TYPE_BOOL: "a boolean",
    definition.FIELD_TYPE_INT64: "an integer",
    definition.FIELD_TYPE_FLOAT64: "a number",
    definition.FIELD_TYPE_STRING: "a string",
    definition.FIELD_TYPE_TIMESTAMP: "an instant",
}


class UnfitError(ValueError):
    """What the wire form cannot carry, named as the service would name it."""

    def __init__(self, reason: Reason, message: str, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.field = field


def scalar(name: str, value: Any, field: definition.Field | None) -> feature.Scalar:
    """Return a JSON value in the wire form of its field, None where there is no such field.

    What does not fit the field goes as it is, for the service to name. Raises `UnfitError` for what cannot go.
    """
    if value is None:
        return feature.Scalar()
    kind = definition.FIELD_TYPE_UNSPECIFIED if field is None else field.type
    if isinstance(value, bool):
        return feature.Scalar(bool_value=value)
    if isinstance(value, int):
        return _integer(name, value, kind)
    if isinstance(value, float):
        return feature.Scalar(float64_value=value)
    if not isinstance(value, str):
        raise _wrong_type(name, kind, "a list" if isinstance(value, list) else "an object")
    if kind == definition.FIELD_TYPE_TIMESTAMP:
        return _instant(name, value)
    return feature.Scalar(string_value=wire_text(name, value))


def _integer(name: str, value: int, kind: int) -> feature.Scalar:
    if kind == definition.FIELD_TYPE_FLOAT64:
        try:
            return feature.Scalar(float64_value=float(value))
        except OverflowError as error:
            raise UnfitError(Reason.NON_FINITE, f"field {name!r}: no 64-bit float is so large", name) from error
    if value in INT64:
        return feature.Scalar(int64_value=value)
    if kind in (definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_UNSPECIFIED):
        raise UnfitError(Reason.OUT_OF_RANGE, f"field {name!r}: the integer does not fit into 64 bits", name)
    raise _wrong_type(name, kind, "an integer")


def _instant(name: str, text: str) -> feature.Scalar:
    try:
        return feature.Scalar(timestamp_us=parse_us(text))
    except ValueError:
        return feature.Scalar(string_value=wire_text(name, text))


def wire_text(name: str, text: str) -> str:
    """Return a text that the wire can carry; JSON's escapes may write what is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = ascii(name)[1:-1]
        raise UnfitError(Reason.BAD_UTF8, "a \\u escape is half of a surrogate pair", shown) from error
    return text


def _wrong_type(name: str, kind: int, found: str) -> UnfitError:
    wanted = _TYPE_NAMES.get(kind, "a single value")  # type: ignore[call-overload]
    return UnfitError(Reason.WRONG_TYPE, f"field {name!r} is {wanted}, not {found}", name)


def python_value(value: feature.Scalar) -> Any:
    """Return a wire value as JSON can say it; instants as RFC 3339."""
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    found = getattr(value, kind)
    return format_us(found) if kind == "timestamp_us" else found


def instant_us(text: str | None) -> int | None:
    """Return an option's instant in microseconds. Raises `RefusedError`."""
    if text is None:
        return None
    try:
        found = parse_us(text)
        # An offset can lead out of the years that can be written.
        format_us(found)
    except OverflowError as error:
        raise RefusedError(f"no instant: {text!r} lies outside the years 1 to 9999 of UTC", USAGE) from error
    except ValueError as error:
        details = {"reason": "naive_timestamp"} if "no UTC offset" in str(error) else {}
        fix = "" if details else "; write it as 2013-06-04T00:00:00Z"
        raise RefusedError(f"no instant: {error}{fix}", USAGE, details) from error
    return found


def as_of_us(text: str | None) -> int | None:
    """Return the moment that an option asks for, in microseconds; None means now. Raises `RefusedError`."""
    found = instant_us(text)
    if found == 0:
        raise RefusedError(f"--as-of {text}: calls write now as this instant; ask for a microsecond later", USAGE)
    return found
