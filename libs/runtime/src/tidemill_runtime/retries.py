"""Back-off: how long to wait before the next attempt; pure."""

from collections.abc import Iterator
from random import Random


def delays(first_s: float = 0.05, last_s: float = 5.0, random: Random | None = None) -> Iterator[float]:
    """Yield growing delays in seconds, for ever, spread over their upper half so that workers do not march in step."""
    spread = random or Random()
    limit = first_s
    while True:
        yield limit * (0.5 + spread.random() / 2)
        limit = min(last_s, limit * 2)
