"""Predictions that were answered and whose log record never came: pure.

A serving process numbers what it logs ASYNC, also what it then drops; the records of one process lie in all partitions.
A number that is missing is lost once it has been missing for a while and every partition that is being read has passed
the moment at which it was missed. After a start nothing is judged that was in the log already, nor a process's first
while: what its other partitions still hold of it is not known before.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tidemill_runtime.positions import Partition

# Those heard of longest ago are forgotten first: processes end.
_PROCESSES_MAX = 1_000
# Beyond so many, neighbours become one gap that knows how much of it is missing, but no longer what.
_GAPS_MAX = 1_000


class Logged(NamedTuple):
    """Where a record lies, when it was written, which process wrote it, and its number."""

    partition: Partition
    offset: int
    written_us: int
    process_id: str
    sequence: int


class Lost(NamedTuple):
    """How many records of a process never came."""

    process_id: str
    records: int


class _Gap(NamedTuple):
    first: int
    last: int
    # How many of these numbers are missing: all of them, unless gaps were joined.
    missing: int
    # When it was noticed, by the wall clock, and when the record was written that showed it.
    noticed_us: int
    written_us: int


@dataclass
class _Process:
    began_us: int
    grace_us: int
    high: int
    # Ascending, by number and by time.
    gaps: list[_Gap] = field(default_factory=list)
    lost: int = 0
    told_us: int = 0

    def note(self, one: Logged, now_us: int) -> None:
        if now_us - self.began_us < self.grace_us:
            self.high = max(self.high, one.sequence)
        elif one.sequence > self.high:
            if one.sequence > self.high + 1:
                missing = one.sequence - self.high - 1
                self.gaps.append(_Gap(self.high + 1, one.sequence - 1, missing, now_us, one.written_us))
                if len(self.gaps) > _GAPS_MAX:
                    self.gaps = _joined(self.gaps)
            self.high = one.sequence
        elif place := bisect_right(self.gaps, one.sequence, key=lambda gap: gap.first):
            self.gaps[place - 1 : place] = _without(self.gaps[place - 1], one.sequence)

    def settle(self, now_us: int, passed_us: int) -> None:
        """Count gaps that nothing can fill any more."""
        kept = []
        for gap in self.gaps:
            if now_us - gap.noticed_us >= self.grace_us and gap.written_us <= passed_us:
                self.lost += gap.missing
            else:
                kept.append(gap)
        self.gaps = kept


def _without(gap: _Gap, number: int) -> list[_Gap]:
    if number > gap.last:
        return [gap]
    if gap.missing <= gap.last - gap.first:
        return [gap._replace(missing=gap.missing - 1)] if gap.missing > 1 else []
    parts = (
        gap._replace(last=number - 1, missing=number - gap.first),
        gap._replace(first=number + 1, missing=gap.last - number),
    )
    return [part for part in parts if part.missing]


def _joined(gaps: Sequence[_Gap]) -> list[_Gap]:
    """Return at most half as many as there may be: those noticed about the same time in one, at the latest's time."""
    apart_us = 0
    while True:
        found: list[_Gap] = []
        began_us = 0
        for gap in gaps:
            if found and gap.noticed_us - began_us <= apart_us:
                found[-1] = _both(found[-1], gap)
            else:
                found.append(gap)
                began_us = gap.noticed_us
        if len(found) <= _GAPS_MAX // 2:
            return found
        apart_us = 2 * apart_us + 1_000


def _both(first: _Gap, second: _Gap) -> _Gap:
    written_us = max(first.written_us, second.written_us)
    return _Gap(first.first, second.last, first.missing + second.missing, second.noticed_us, written_us)


class Sequences:
    """What is missing of each process.

    `ends`: where the log ended when it was begun to be read; `grace_us`: how long a number may be missing.
    """

    def __init__(self, ends: Mapping[Partition, int], grace_us: int) -> None:
        self._ends = dict(ends)
        self._grace_us = grace_us
        self._processes: dict[str, _Process] = {}
        # Of each partition, when its newest record was written, and when it was read.
        self._read: dict[Partition, tuple[int, int]] = {}

    def note(self, logged: Iterable[Logged], now_us: int) -> None:
        """Take in records in the order in which they were read."""
        for one in logged:
            self._read[one.partition] = one.written_us, now_us
            if one.offset < self._ends.get(one.partition, 0):
                continue
            process = self._processes.pop(one.process_id, None) or _Process(now_us, self._grace_us, one.sequence)
            self._processes[one.process_id] = process
            process.note(one, now_us)
            if len(self._processes) > _PROCESSES_MAX:
                del self._processes[next(iter(self._processes))]

    def lost(self, now_us: int) -> list[Lost]:
        """Return what is lost for good and was not told yet, of each process at most once in a while."""
        recent = [written_us for written_us, read_us in self._read.values() if now_us - read_us < self._grace_us]
        passed_us = min(recent, default=now_us)
        found = []
        for name, process in self._processes.items():
            process.settle(now_us, passed_us)
            if process.lost and now_us - process.told_us >= self._grace_us:
                found.append(Lost(name, process.lost))
                process.lost, process.told_us = 0, now_us
        return found
