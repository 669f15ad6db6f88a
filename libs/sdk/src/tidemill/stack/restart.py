"""How long a crashed process waits before it is started again."""

from dataclasses import dataclass

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 10.0
HEALTHY_AFTER_S = 30.0


@dataclass(frozen=True)
class Backoff:
    """Doubles from crash to crash up to a bound, and forgets once a process stayed up.

    >>> Backoff().after_crash(uptime_s=1.0).delay_s
    0.2
    >>> Backoff(crashes=20).after_crash(uptime_s=1.0).delay_s
    10.0
    >>> Backoff(crashes=20).after_crash(uptime_s=60.0).delay_s
    0.2
    """

    crashes: int = 0

    @property
    def delay_s(self) -> float:
        if self.crashes == 0:
            return 0.0
        exponent = min(self.crashes - 1, 32)  # the bound is reached long before the power overflows
        return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0**exponent)

    def after_crash(self, *, uptime_s: float) -> "Backoff":
        return Backoff(crashes=1 if uptime_s >= HEALTHY_AFTER_S else self.crashes + 1)
