"""One pipeline's evaluation: outcomes folded tick by tick, in one order, whatever batches they came in.

A tick is an hour of event time. The outcomes that became known within it are folded by (label time, prediction id)
once the clock has passed it; then the tick is closed, and every 24th, at midnight UTC, ends a day: windows roll and
drift is judged. What a crash loses of a day is folded again from the outcomes table, on top of the last midnight's
snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tidemill_monitoring.clock import DAY_US
from tidemill_monitoring.drift import DriftWatch, Rows, Verdict
from tidemill_monitoring.join import NEVER
from tidemill_monitoring.pairs import Evidence, Pairs, RolloutStep
from tidemill_monitoring.scores import CHALLENGER, CHAMPION, ROLE_NAMES, Scores, unpack
from tidemill_monitoring.windows import Sums, Windows


class Resolved(NamedTuple):
    """A prediction's revision 1, as the outcomes table holds it; `scores` is packed."""

    tick_us: int
    label_time_us: int
    prediction_id: str
    state: int
    label: float | None
    scores: bytes


class Criteria(NamedTuple):
    """When a change of the loss counts: from the pipeline's definition; None where performance is not monitored."""

    limit: float
    delta: float


class Window(NamedTuple):
    """One version's rolling metrics at the end of a day."""

    version: int
    role: str
    rows: int
    values: Mapping[str, float]


class DayEnd(NamedTuple):
    """What midnight brought."""

    windows: Sequence[Window]
    verdict: Verdict | None


class TickEnd(NamedTuple):
    """What the end of a tick brought; `closed_incident` is the one that a new version's first label ended."""

    tick_us: int
    closed_incident: str
    version: int
    evidence: Evidence | None
    day: DayEnd | None


@dataclass
class Evaluation:
    """The state of one pipeline; `close_tick` follows the `fold` of everything that belongs to the tick."""

    windows: Windows
    drift: DriftWatch
    pairs: Pairs
    closed_incident: str = ""

    @classmethod
    def begin(cls, window_days: int) -> "Evaluation":
        """Return the state before the first outcome."""
        return cls(Windows(window_days), DriftWatch(), Pairs())

    def fold(self, rows: Sequence[Resolved], step: RolloutStep | None) -> None:
        """Take in outcomes of one tick, in order; a large tick may come in several calls."""
        self.pairs.follow(step)
        labelled = [(row.label, unpack(row.scores)) for row in rows if row.label is not None]
        for row in rows:
            if row.state == NEVER:
                self._count_never(unpack(row.scores))
        self._fold_windows(labelled)
        self._fold_champion(labelled)
        if step is not None:
            self._fold_pairs(labelled, step)

    def _count_never(self, scores: Scores) -> None:
        for score in scores.by_version:
            self._version(score.version, score.role).never += 1

    def _version(self, version: int, role: int) -> Sums:
        sums = self.windows.version(version)
        sums.role = ROLE_NAMES.get(role, sums.role)
        return sums

    def _fold_windows(self, labelled: Sequence[tuple[float, Scores]]) -> None:
        columns: dict[int, tuple[list[float], list[float]]] = {}
        roles: dict[int, int] = {}
        for label, scores in labelled:
            for score in scores.by_version:
                y, p = columns.setdefault(score.version, ([], []))
                y.append(label)
                p.append(score.probability)
                roles[score.version] = score.role
        for version, (y, p) in columns.items():
            self._version(version, roles[version]).add(np.array(y), np.array(p))

    def _fold_champion(self, labelled: Sequence[tuple[float, Scores]]) -> None:
        found = [
            (scores.as_of_us, score.version, label, score.probability)
            for label, scores in labelled
            if (score := scores.of_role(CHAMPION)) is not None
        ]
        if not found:
            return
        as_of, version, y, p = zip(*found, strict=True)
        rows = Rows(np.array(as_of, np.int64), np.array(version, np.int64), np.array(y), np.array(p))
        self.closed_incident = self.drift.observe(rows) or self.closed_incident

    def _fold_pairs(self, labelled: Sequence[tuple[float, Scores]], step: RolloutStep) -> None:
        # Which pairs count does not depend on the step, so that a day folded again after a restart gives the same.
        found = [
            (label, champion.probability, challenger.probability, scores.as_of_us < step.began_us)
            for label, scores in labelled
            if (champion := scores.of_role(CHAMPION)) is not None
            and (challenger := scores.of_role(CHALLENGER)) is not None
            and (champion.version, challenger.version) == (step.champion, step.challenger)
        ]
        if found:
            y, champion_p, challenger_p, before = zip(*found, strict=True)
            self.pairs.add(np.array(y), np.array(champion_p), np.array(challenger_p), before_step=sum(before))

    def close_tick(
        self, tick_us: int, step: RolloutStep | None, criteria: Criteria | None, *, settled: bool = False
    ) -> TickEnd:
        """End a tick; at midnight UTC the day ends with it.

        `settled`: a person has resolved the open incident, so that the watch may look for the next change.
        """
        self.pairs.follow(step)
        self.pairs.close_hour()
        if settled:
            self.drift.rearm(tick_us)
        closed, self.closed_incident = self.closed_incident, ""
        return TickEnd(
            tick_us,
            closed,
            self.drift.version,
            self.pairs.evidence() if step else None,
            self._close_day(tick_us, criteria) if tick_us % DAY_US == 0 else None,
        )

    def _close_day(self, tick_us: int, criteria: Criteria | None) -> DayEnd:
        merged = self.windows.close_day()
        found = [Window(version, sums.role, sums.rows, sums.values()) for version, sums in merged.items()]
        verdict = self.drift.close_block(tick_us, criteria.delta, criteria.limit) if criteria else None
        return DayEnd([window for window in found if window.values], verdict)

    def pass_tick(self) -> None:
        """End a tick that was closed before a restart; what it led to was told then."""
        self.pairs.close_hour()
        self.closed_incident = ""

    def snapshot(self) -> dict[str, Any]:
        """Return the state at midnight as JSON values."""
        return {
            "windows": self.windows.snapshot(),
            "drift": self.drift.snapshot(),
            "pairs": self.pairs.snapshot(),
        }

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Take back what `snapshot` gave."""
        self.windows.restore(stored["windows"])
        self.drift = DriftWatch.restore(stored["drift"])
        self.pairs = Pairs.restore(stored["pairs"])
        self.closed_incident = ""
