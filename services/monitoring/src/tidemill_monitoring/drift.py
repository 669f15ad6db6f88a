"""Has the champion's loss moved, beyond chance and beyond what its owner calls practical?

The bounded loss of every champion answer (revision 1, by label time) is averaged per day of event time, and ADWIN looks
at the days. A rise is one incident, after which the watch is disarmed until the first label of a new version; a fall
moves the reference down and alarms nobody. A version that was replaced without an incident hands its days on: the
question is whether the pipeline's answers got worse, and a schedule that retrains every few weeks would otherwise leave
no past to compare with.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tidemill_monitoring.adwin import CAPACITY, Cut, best_cut
from tidemill_monitoring.clock import DAY_US
from tidemill_monitoring.windows import Floats, Ints, losses, running_sum

# A loss counts up to here: one sure and wrong answer must not outweigh a day.
LOSS_BOUND = 4.0
# A day with fewer labels is carried into the next.
MIN_ROWS = 30
# δ per allowed alarm and day. Measured on shuffled days of real flights (ADR 0015): at 4 about one sixth of the allowed
# alarms happen, which leaves room for days that resemble the day before.
DELTA_PER_ALARM = 4.0
_DELTA_RANGE = (1e-6, 0.5)


def delta_of(alarms: int, period_ms: int, block_ms: int) -> float:
    """Return ADWIN's δ for a false-alarm budget.

    >>> round(delta_of(1, 90 * 86_400_000, 86_400_000), 4)
    0.0444
    """
    wanted = DELTA_PER_ALARM * alarms * block_ms / period_ms
    return min(max(wanted, _DELTA_RANGE[0]), _DELTA_RANGE[1])


class Rows(NamedTuple):
    """Champion answers in order of evaluation; all arrays have one length."""

    as_of_us: Ints
    version: Ints
    y: Floats
    p: Floats


class Block(NamedTuple):
    """One day's mean bounded loss, from the day's first evaluation on."""

    start_us: int
    rows: int
    mean: float


class Verdict(NamedTuple):
    """What one day's end led to. `cut` and the rest describe the change when `drifted`, else the clearest split."""

    drifted: bool
    armed: bool
    version: int
    blocks: int
    rows: int
    mean: float | None
    cut: Cut | None
    onset_us: int


@dataclass
class DriftWatch:
    """The state of one pipeline's loss signal."""

    version: int = 0
    # The incident that disarmed the watch, and the version that it is about.
    incident_id: str = ""
    incident_version: int = 0
    newest_as_of_us: int = 0
    # After an incident only answers asked from here on count: older versions' labels still come in.
    counts_from_us: int = 0
    # -1 before the first day.
    block_start_us: int = -1
    block_rows: int = 0
    block_loss: float = 0.0

    def __post_init__(self) -> None:
        self.blocks: deque[Block] = deque(maxlen=CAPACITY)

    def observe(self, rows: Rows) -> str:
        """Take in answers in order; returns the id of the incident that the first label of a new version closed."""
        closed = ""
        for as_of_us, version in zip(rows.as_of_us.tolist(), rows.version.tolist(), strict=True):
            if as_of_us < self.newest_as_of_us:
                continue
            self.newest_as_of_us, self.version = as_of_us, version
            if self.incident_id and version != self.incident_version:
                closed = self.rearm(as_of_us)
        counted = rows.as_of_us >= self.counts_from_us
        bounded = np.minimum(losses(rows.y[counted], rows.p[counted]), LOSS_BOUND)
        self.block_rows += len(bounded)
        self.block_loss = running_sum(self.block_loss, bounded)
        return closed

    def rearm(self, counts_from_us: int) -> str:
        """Forget what was before a change that has been dealt with; returns the incident's id."""
        closed, self.incident_id = self.incident_id, ""
        self.counts_from_us = counts_from_us
        self.blocks.clear()
        self.block_rows, self.block_loss = 0, 0.0
        return closed

    def close_block(self, end_us: int, delta: float, limit: float) -> Verdict:
        """End the day at `end_us` and judge; the caller disarms with `disarm` where it opens an incident."""
        if self.block_start_us < 0:
            self.block_start_us = end_us - DAY_US
        if self.block_rows >= MIN_ROWS:
            self.blocks.append(Block(self.block_start_us, self.block_rows, self.block_loss / self.block_rows))
            self.block_rows, self.block_loss = 0, 0.0
        if self.block_rows == 0:
            self.block_start_us = end_us
        if self.incident_id:
            return self._verdict(None, drifted=False)
        cut = self._cut(delta, limit)
        return self._verdict(cut, drifted=cut is not None)

    def _cut(self, delta: float, limit: float) -> Cut | None:
        """Return the rise that stands out, after adapting to falls."""
        while (cut := best_cut([block.mean for block in self.blocks], delta, limit)) and cut.after < cut.before:
            for _ in range(cut.before_blocks):
                self.blocks.popleft()
        return cut

    def _verdict(self, cut: Cut | None, *, drifted: bool) -> Verdict:
        after = list(self.blocks)[cut.before_blocks :] if cut else list(self.blocks)
        return Verdict(
            drifted=drifted,
            armed=not self.incident_id,
            version=self.version,
            blocks=len(self.blocks),
            rows=sum(block.rows for block in after),
            mean=self.blocks[-1].mean if self.blocks else None,
            cut=cut,
            onset_us=after[0].start_us if cut else 0,
        )

    def disarm(self, incident_id: str) -> None:
        """Raise no second alarm for the change that this incident is about."""
        self.incident_id, self.incident_version = incident_id, self.version

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {name: getattr(self, name) for name in _FIELDS} | {"blocks": [list(block) for block in self.blocks]}

    @classmethod
    def restore(cls, stored: Mapping[str, Any]) -> "DriftWatch":
        """Return what `snapshot` gave."""
        made = cls(**{name: stored[name] for name in _FIELDS})
        made.blocks.extend(Block(*block) for block in stored["blocks"])
        return made


_FIELDS = tuple(DriftWatch.__dataclass_fields__)
