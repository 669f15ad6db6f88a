"""Pauses a stream whose share of bad records exceeds its limit, as arroyo does with its dead letters; pure.

    OPEN ──share of the window > limit──▶ PAUSED ──until_us, or an operator──▶ PROBATION ──a good window──▶ OPEN
                                            ▲                                     │
                                            └──────share of few records > limit───┘

A record is bad when the gate refuses it. While a stream is paused nothing of it is taken in and nothing is lost: who
sent it keeps it, and a bridge does not read on.
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

# The window moves by this share of its length.
_PARTS = 12
# After a pause a tenth of the usual records suffices to pause again: a producer that is still wrong does little harm.
_PROBATION = 10


class Limit(NamedTuple):
    """When a stream pauses: `share` of at least `min_events` within `window_us` refused; for `pause_us`.

    A share of 1 is never exceeded: such a stream never pauses.
    """

    share: float = 0.5
    window_us: int = 60_000_000
    min_events: int = 1_000
    pause_us: int = 60_000_000


class Paused(NamedTuple):
    """A pause, with the evidence that led to it."""

    limit: float
    events: int
    refused: int
    mostly: str
    since_us: int
    until_us: int

    @property
    def share(self) -> float:
        """The share that was reached."""
        return self.refused / self.events


class Change(NamedTuple):
    """A stream was paused (`resumed_us` is None) or resumed; `actor` is empty where it did so by itself."""

    pause: Paused
    resumed_us: int | None = None
    actor: str = ""
    reason: str = ""


@dataclass(slots=True)
class _Part:
    number: int
    events: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class Brake:
    """Counts one stream's good and bad records in a sliding window; memory is bounded by its parts and the reasons."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.pause: Paused | None = None
        self._probation = False
        self._part_us = max(1, limit.window_us // _PARTS)
        self._parts: deque[_Part] = deque(maxlen=_PARTS)
        self._began_us: int | None = None

    def release(self, now_us: int) -> Change | None:
        """End a pause whose time is over; returns the change, if this is one."""
        if self.pause is None or now_us < self.pause.until_us:
            return None
        return self.resume(now_us)

    def resume(self, now_us: int, actor: str = "", reason: str = "") -> Change | None:
        """End a pause at once; None where there is none."""
        pause = self.pause
        if pause is None:
            return None
        self.pause, self._probation, self._began_us = None, True, now_us
        self._parts.clear()
        return Change(pause, now_us, actor, reason)

    def note(self, good: int, refused: Iterable[str], now_us: int) -> Change | None:
        """Count judged records, `refused` by their reasons; returns the pause that begins, if one does."""
        part = self._part(now_us)
        reasons = Counter(refused)
        bad = reasons.total()
        part.events += good + bad
        if bad:
            part.reasons += reasons
        if self._probation and self._began_us is not None and now_us >= self._began_us + self.limit.window_us:
            self._probation = False
        return self._judge(now_us) if bad and self.pause is None else None

    def window(self, now_us: int) -> tuple[int, int]:
        """Return the records of the window and how many of them were refused."""
        oldest = now_us // self._part_us - _PARTS
        recent = [part for part in self._parts if part.number > oldest]
        return sum(part.events for part in recent), sum(part.reasons.total() for part in recent)

    def _part(self, now_us: int) -> _Part:
        number = now_us // self._part_us
        # A clock that steps back counts on in the newest part.
        if not self._parts or self._parts[-1].number < number:
            self._parts.append(_Part(number))
        return self._parts[-1]

    def _judge(self, now_us: int) -> Change | None:
        events, refused = self.window(now_us)
        enough = self.limit.min_events
        if self._probation:
            enough //= _PROBATION
        if events < enough or refused <= self.limit.share * events:
            return None
        reasons: Counter[str] = Counter()
        for part in self._parts:
            reasons += part.reasons
        mostly = reasons.most_common(1)[0][0]
        until_us = now_us + self.limit.pause_us
        self.pause = Paused(self.limit.share, events, refused, mostly, now_us, until_us)
        return Change(self.pause)
