"""Instants: microseconds since the epoch (UTC) inside, RFC 3339 on the wire."""

from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Event times lie in the years 1678 to 2261, which 64-bit nanoseconds can count too; the end is exclusive.
EARLIEST_US = (datetime(1678, 1, 1, tzinfo=UTC) - EPOCH) // _MICROSECOND
LATEST_US = (datetime(2262, 1, 1, tzinfo=UTC) - EPOCH) // _MICROSECOND


def parse_us(text: str) -> int:
    """Return microseconds since the epoch of an RFC 3339 instant.

    >>> parse_us("1970-01-01T00:00:01Z")
    1000000

    Raises `ValueError` where the text is no instant or carries no offset.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no UTC offset: write it as 2013-06-04T00:00:00Z")
    return (moment - EPOCH) // _MICROSECOND


def format_us(instant_us: int) -> str:
    """Return the RFC 3339 form, in UTC, with as many fractional digits as needed.

    >>> format_us(1_500_000)
    '1970-01-01T00:00:01.500000Z'
    """
    return (EPOCH + instant_us * _MICROSECOND).isoformat().replace("+00:00", "Z")


def to_timestamp(instant_us: int) -> Timestamp:
    """Return the protobuf form of an instant."""
    seconds, micros = divmod(instant_us, 1_000_000)
    return Timestamp(seconds=seconds, nanos=micros * 1000)


def from_timestamp(stamp: Timestamp) -> int:
    """Return microseconds since the epoch; 0 for an absent stamp."""
    return stamp.seconds * 1_000_000 + stamp.nanos // 1000
