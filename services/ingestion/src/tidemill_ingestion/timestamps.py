"""Instants on the wire: RFC 3339 with an offset, in the years that 64-bit nanoseconds can count; pure."""

import re
from datetime import datetime, timedelta

from tidemill_contracts.instants import EARLIEST_US, EPOCH, LATEST_US
from tidemill_contracts.reasons import Reason

# datetime.fromisoformat takes week dates and much else that other readers of the log do not.
_shape = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(Z|[+-]\d\d:[0-5]\d)?", re.ASCII).fullmatch
FIRST_YEAR, LAST_YEAR = "1678", "2261"
# Years of which an offset can carry some instants in or out.
_EDGES = frozenset({"1677", FIRST_YEAR, LAST_YEAR, "2262"})
_MICROSECOND = timedelta(microseconds=1)


class InstantError(ValueError):
    """The text is no instant that every reader of the log understands."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def parse(text: str) -> datetime:
    """Return the instant. Raises `InstantError` with its named reason."""
    shape = _shape(text)
    if shape is None:
        raise InstantError(Reason.WRONG_TYPE, "write an RFC 3339 instant such as 2013-06-04T00:00:00Z")
    if shape[1] is None:
        raise InstantError(Reason.NAIVE_TIMESTAMP, "say the UTC offset: end the instant in Z or +hh:mm")
    year = text[:4]
    if not FIRST_YEAR <= year <= LAST_YEAR and year not in _EDGES:
        raise _out_of_range()
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise InstantError(Reason.WRONG_TYPE, f"no such instant: {error}") from error
    if year in _EDGES and not EARLIEST_US <= to_us(instant) < LATEST_US:
        raise _out_of_range()
    return instant


def _out_of_range() -> InstantError:
    return InstantError(Reason.OUT_OF_RANGE, f"years run from {FIRST_YEAR} to {LAST_YEAR}, in UTC")


def to_us(instant: datetime) -> int:
    """Return microseconds since the epoch, UTC.

    >>> to_us(parse("1970-01-01T00:00:01.5+00:00"))
    1500000
    """
    return (instant - EPOCH) // _MICROSECOND
