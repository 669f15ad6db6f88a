"""Tells a stalled consumer from one that waits for the world, and ends the process that stalls."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from tidemill_runtime.errors import Stalled

_LOOKS_PER_STALL = 5


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


async def watch(
    sight: Callable[[], Awaitable[Sighting]], stall_s: float, name: str, tell: Callable[[str], None]
) -> None:
    """Look several times per `stall_s`, for ever. Raises `Stalled`, after telling readiness."""
    detector = StallDetector(stall_s)
    while True:
        await asyncio.sleep(stall_s / _LOOKS_PER_STALL)
        fault = detector.observe(await sight(), monotonic())
        if fault is not None:
            tell(fault)
            raise Stalled(f"{name}: {fault}")
