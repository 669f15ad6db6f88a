"""Values between JSON and the wire form of a field."""

from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.instants import format_us, parse_us

from tidemill.cli.answers import USAGE, RefusedError

INT64 = range(-(2**63), 2**63)


def scalar(value: Any, field: definition.Field | None) -> feature.Scalar:
    """Return a JSON value in the wire form of its field; what does not fit goes as it is, for the service to name."""
    if value is None:
        return feature.Scalar()
    kind = definition.FIELD_TYPE_UNSPECIFIED if field is None else field.type
    if isinstance(value, bool):
        return feature.Scalar(bool_value=value)
    if isinstance(value, int) and kind == definition.FIELD_TYPE_FLOAT64:
        return feature.Scalar(float64_value=float(value))
    if isinstance(value, int) and value in INT64:
        return feature.Scalar(int64_value=value)
    if isinstance(value, float):
        return feature.Scalar(float64_value=value)
    if isinstance(value, str) and kind == definition.FIELD_TYPE_TIMESTAMP:
        try:
            return feature.Scalar(timestamp_us=parse_us(value))
        except ValueError:
            return feature.Scalar(string_value=value)
    return feature.Scalar(string_value=value if isinstance(value, str) else str(value))


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
        return parse_us(text)
    except ValueError as error:
        details = {"reason": "naive_timestamp"} if "no UTC offset" in str(error) else {}
        raise RefusedError(f"no instant: {error}", USAGE, details) from error
