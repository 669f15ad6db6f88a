"""What validation says of one event; pure values."""

from typing import Any, NamedTuple

from tidemill_contracts.reasons import Reason


class Valid(NamedTuple):
    """An event that fits its stream, and what its record needs to know of it."""

    # Key of the Kafka record.
    key: bytes
    # Event time, microseconds since the epoch, UTC.
    time_us: int
    # The event time as the event wrote it.
    time_text: str
    # The event's fields as they were decoded; a nullable one may be absent.
    fields: dict[str, Any]


class Refusal(NamedTuple):
    """Why an event is refused; `message` says what to do."""

    reason: Reason
    # The offending field; empty where the whole event is at fault.
    field: str
    message: str
