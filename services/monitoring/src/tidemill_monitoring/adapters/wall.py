"""The wall clock, for `emitted_at` and for records from the future; nothing is decided by it."""

from time import time_ns


def now_us() -> int:
    """Return microseconds since the epoch, UTC."""
    return time_ns() // 1000
