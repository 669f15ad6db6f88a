"""When to retrain: on drift, on schedule, within cooldown and budget; every duration is event time.

The schedule counts from the last retraining, whatever its cause, or from the first champion; without a champion there
is none. What cooldown or budget forbid now is deferred, not forgotten: it is decided again when they allow it, if it
still matters then. An operator's request is never held back, but counts like any other.
"""

from collections.abc import Sequence
from typing import NamedTuple

from tidemill_contracts.causes import DRIFT, SCHEDULE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us

RETRAIN = "retrain"
DEFERRED = "deferred"
ALERT = "alert"
SUPERSEDED = "superseded"


class Rules(NamedTuple):
    """A pipeline's retraining policy, in microseconds; 0 or None means that there is no such limit."""

    on_drift: bool
    period_us: int | None
    cooldown_us: int
    budget_count: int
    budget_period_us: int


class Ledger(NamedTuple):
    """What has happened: event times of the retrainings asked for, ascending, and since when there is a champion."""

    retrained_us: Sequence[int]
    champion_since_us: int | None


class Cause(NamedTuple):
    """What asks for a retraining; `open` is false where its incident has been resolved meanwhile."""

    kind: str
    cause_id: str
    event_time_us: int
    open: bool = True


class Decision(NamedTuple):
    """What to do; `due_us` is when a deferred cause is decided again."""

    outcome: str
    reason: str
    due_us: int = 0


def rules_of(pipeline: definition.Pipeline) -> Rules:
    """Return the rules of a definition."""
    policy = pipeline.retrain
    periods = [trigger.every.period_ms * 1000 for trigger in policy.on if trigger.HasField("every")]
    return Rules(
        on_drift=any(trigger.HasField("drift") for trigger in policy.on),
        period_us=min(periods) if periods else None,
        cooldown_us=policy.cooldown_ms * 1000,
        budget_count=policy.budget.count,
        budget_period_us=policy.budget.period_ms * 1000,
    )


def schedule_due(rules: Rules, ledger: Ledger) -> int | None:
    """Return when the next scheduled retraining is due; None where nothing is scheduled."""
    if rules.period_us is None or ledger.champion_since_us is None:
        return None
    return max([ledger.champion_since_us, *ledger.retrained_us[-1:]]) + rules.period_us


def decide(cause: Cause, rules: Rules, ledger: Ledger) -> Decision:
    """Return what a drift or a schedule slot leads to."""
    if cause.kind == DRIFT and not rules.on_drift:
        return Decision(ALERT, "the policy does not retrain on drift")
    if cause.kind == DRIFT and not cause.open:
        return Decision(SUPERSEDED, "the incident has been resolved")
    if cause.kind == SCHEDULE:
        due_us = schedule_due(rules, ledger)
        if due_us is None or due_us > cause.event_time_us:
            return Decision(SUPERSEDED, "another retraining has moved the schedule on")
    held = _held(cause.event_time_us, rules, ledger)
    return held or Decision(RETRAIN, _reason(cause))


def _reason(cause: Cause) -> str:
    if cause.kind == SCHEDULE:
        return f"scheduled for {cause.cause_id}"
    return "performance beyond the practical limit"


def _held(now_us: int, rules: Rules, ledger: Ledger) -> Decision | None:
    last_us = ledger.retrained_us[-1] if ledger.retrained_us else None
    if last_us is not None and now_us < last_us + rules.cooldown_us:
        due_us = last_us + rules.cooldown_us
        return Decision(DEFERRED, f"cooldown until {format_us(due_us)}", due_us)
    if not rules.budget_count:
        return None
    spent = [at for at in ledger.retrained_us if at > now_us - rules.budget_period_us]
    if len(spent) < rules.budget_count:
        return None
    due_us = spent[-rules.budget_count] + rules.budget_period_us
    days = rules.budget_period_us / 86_400_000_000
    return Decision(
        DEFERRED, f"budget of {rules.budget_count} per {days:g} d is spent until {format_us(due_us)}", due_us
    )
