"""What the policy has decided so far, and what is therefore due: in memory, from the decisions table."""

from bisect import insort
from collections.abc import Iterable
from typing import NamedTuple

from tidemill_contracts.causes import SCHEDULE
from tidemill_contracts.instants import format_us

from tidemill_monitoring.policy import DEFERRED, RETRAIN, Ledger, Rules, schedule_due


class Decided(NamedTuple):
    """One cause's newest decision."""

    cause_kind: str
    cause_id: str
    outcome: str
    event_time_us: int
    due_us: int


class Due(NamedTuple):
    """A cause that the policy should decide now."""

    cause_kind: str
    cause_id: str


class Board:
    """Decisions of one pipeline; changed by the policy, asked by the evaluation at every tick."""

    def __init__(self, decided: Iterable[Decided] = ()) -> None:
        self._retrained_us: list[int] = []
        self._deferred: dict[tuple[str, str], int] = {}
        self._known: set[tuple[str, str]] = set()
        # Handed to the policy and not decided yet.
        self._asked: set[tuple[str, str]] = set()
        for one in decided:
            self.note(one)

    def note(self, decided: Decided) -> None:
        """Take in a decision."""
        key = (decided.cause_kind, decided.cause_id)
        self._asked.discard(key)
        self._deferred.pop(key, None)
        self._known.add(key)
        if decided.outcome == RETRAIN and decided.event_time_us not in self._retrained_us:
            insort(self._retrained_us, decided.event_time_us)
        elif decided.outcome == DEFERRED:
            self._deferred[key] = decided.due_us

    def ledger(self, champion_since_us: int | None) -> Ledger:
        """Return what the policy decides by."""
        return Ledger(tuple(self._retrained_us), champion_since_us)

    def due(self, tick_us: int, rules: Rules, champion_since_us: int | None) -> list[Due]:
        """Return what has become due by this tick; each cause once until it is decided."""
        found = [Due(*key) for key, due_us in sorted(self._deferred.items()) if due_us <= tick_us]
        slot_us = schedule_due(rules, self.ledger(champion_since_us))
        if slot_us is not None and slot_us <= tick_us:
            slot = Due(SCHEDULE, format_us(slot_us))
            if tuple(slot) not in self._known:
                found.append(slot)
        fresh = [one for one in found if tuple(one) not in self._asked]
        self._asked.update((one.cause_kind, one.cause_id) for one in fresh)
        return fresh
