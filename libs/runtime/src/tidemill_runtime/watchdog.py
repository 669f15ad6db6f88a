"""Tells a stalled consumer from one that waits for the world; pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a consumer looks like at one moment; `lag` is None where the broker did not say."""

    assigned: bool
    lag: int | None
    applied: int
    # It is retrying or restoring: bounded elsewhere, and not a stall.
    excused: bool = False


class StallDetector:
    """Measures how long a consumer has been assigned, with lag, and not advancing."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._applied = -1
        self._since_s: float | None = None

    def observe(self, sighting: Sighting, now_s: float) -> str | None:
        """Return what is wrong once the stall has lasted `limit_s`; None before."""
        moved = sighting.applied != self._applied
        self._applied = sighting.applied
        if moved or sighting.excused or not sighting.assigned or not sighting.lag:
            self._since_s = None
            return None
        if self._since_s is None:
            self._since_s = now_s
        stalled_s = now_s - self._since_s
        if stalled_s < self._limit_s:
            return None
        return f"assigned, {sighting.lag} records behind, and no progress for {stalled_s:.0f} s"
