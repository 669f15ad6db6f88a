"""The retraining policy as tables of cases; all times in days."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.causes import DRIFT, OPERATOR, SCHEDULE
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us
from tidemill_monitoring.board import Board, Decided, Due
from tidemill_monitoring.clock import DAY_US, HOUR_US
from tidemill_monitoring.policy import (
    ALERT,
    DEFERRED,
    RETRAIN,
    SUPERSEDED,
    Cause,
    Ledger,
    Rules,
    decide,
    rules_of,
    schedule_due,
)

RULES = Rules(True, 28 * DAY_US, 3 * DAY_US, 3, 90 * DAY_US)


def ledger(*days: float, champion: float | None = 0) -> Ledger:
    return Ledger([int(one * DAY_US) for one in days], None if champion is None else int(champion * DAY_US))


@pytest.mark.parametrize(
    ("rules", "before", "outcome", "due"),
    [
        (RULES, ledger(), RETRAIN, 0),
        (RULES, ledger(90), RETRAIN, 0),
        (RULES, ledger(98), DEFERRED, 101),
        (RULES, ledger(97), RETRAIN, 0),
        (RULES, ledger(20, 50, 80), DEFERRED, 110),
        (RULES, ledger(9, 50, 80), RETRAIN, 0),
        (RULES, ledger(10, 50, 80), RETRAIN, 0),
        (RULES, ledger(10.5, 50, 80), DEFERRED, 100.5),
        (RULES._replace(on_drift=False), ledger(), ALERT, 0),
        (RULES._replace(budget_count=0), ledger(20, 50, 80), RETRAIN, 0),
        (RULES._replace(cooldown_us=0), ledger(100), RETRAIN, 0),
    ],
)
def test_a_drift_on_day_100(rules: Rules, before: Ledger, outcome: str, due: float) -> None:
    decision = decide(Cause(DRIFT, "incident", 100 * DAY_US), rules, before)
    assert decision.outcome == outcome
    assert decision.due_us == due * DAY_US
    assert decision.reason


@pytest.mark.parametrize(
    ("before", "due"),
    [
        (ledger(champion=None), None),
        (ledger(10, champion=None), None),
        (ledger(champion=5), 33),
        (ledger(5, champion=6), 34),
        (ledger(5, 20, champion=6), 48),
    ],
)
def test_the_schedule_counts_from_the_last_retraining_or_the_first_champion(before: Ledger, due: float | None) -> None:
    assert schedule_due(RULES, before) == (None if due is None else due * DAY_US)


def test_without_a_period_nothing_is_scheduled() -> None:
    assert schedule_due(RULES._replace(period_us=None), ledger()) is None


def test_a_slot_that_another_retraining_has_moved_on_is_superseded() -> None:
    slot = Cause(SCHEDULE, format_us(28 * DAY_US), 30 * DAY_US)
    assert decide(slot, RULES, ledger(20)).outcome == SUPERSEDED
    assert decide(slot, RULES, ledger()).outcome == RETRAIN


def test_an_incident_that_was_resolved_meanwhile_is_not_retrained() -> None:
    cause = Cause(DRIFT, "incident", 100 * DAY_US, open=False)
    assert decide(cause, RULES, ledger()).outcome == SUPERSEDED


@given(st.lists(st.floats(0, 400), max_size=60))
def test_cooldown_and_budget_hold_whatever_asks_and_when(days: list[float]) -> None:
    done: list[int] = []
    for number, at in enumerate(sorted(int(one * DAY_US) for one in days)):
        if decide(Cause(DRIFT, str(number), at), RULES, Ledger(done, 0)).outcome == RETRAIN:
            done.append(at)
    assert all(later - earlier >= RULES.cooldown_us for earlier, later in pairwise(done))
    for at in done:
        assert sum(at - RULES.budget_period_us < one <= at for one in done) <= RULES.budget_count


def test_a_board_asks_for_a_due_slot_once_and_again_only_after_a_restart() -> None:
    board = Board()
    assert board.due(27 * DAY_US, RULES, 0) == []
    slot = Due(SCHEDULE, format_us(28 * DAY_US))
    assert board.due(28 * DAY_US, RULES, 0) == [slot]
    assert board.due(28 * DAY_US + HOUR_US, RULES, 0) == []
    assert Board().due(28 * DAY_US + HOUR_US, RULES, 0) == [slot]
    board.note(Decided(*slot, RETRAIN, 28 * DAY_US, 0))
    assert board.due(55 * DAY_US, RULES, 0) == []
    assert board.due(56 * DAY_US, RULES, 0) == [Due(SCHEDULE, format_us(56 * DAY_US))]


def test_the_schedule_of_a_board_counts_from_the_newest_retraining_in_whatever_order_they_are_told() -> None:
    board = Board([Decided(OPERATOR, str(at), RETRAIN, at * DAY_US, 0) for at in (20, 10)])
    assert board.due(47 * DAY_US, RULES, 0) == []
    assert board.due(48 * DAY_US, RULES, 0) == [Due(SCHEDULE, format_us(48 * DAY_US))]


def test_of_several_periods_the_shortest_counts() -> None:
    every = [definition.ScheduleTrigger(period_ms=days * DAY_US // 1_000) for days in (28, 7, 14)]
    triggers = [definition.RetrainTrigger(every=one) for one in every]
    rules = rules_of(definition.Pipeline(retrain=definition.RetrainPolicy(on=triggers)))
    assert (rules.period_us, rules.on_drift) == (7 * DAY_US, False)


def test_a_board_asks_again_for_what_was_deferred_when_its_time_comes() -> None:
    board = Board([Decided(DRIFT, "incident", DEFERRED, 10 * DAY_US, 12 * DAY_US)])
    assert board.due(11 * DAY_US, RULES, None) == []
    assert board.due(12 * DAY_US, RULES, None) == [Due(DRIFT, "incident")]
    board.note(Decided(DRIFT, "incident", RETRAIN, 12 * DAY_US, 0))
    assert board.due(13 * DAY_US, RULES, None) == []


def test_a_slot_deferred_and_then_overtaken_moves_the_schedule_on() -> None:
    board = Board()
    (slot,) = board.due(28 * DAY_US, RULES, 0)
    board.note(Decided(*slot, DEFERRED, 28 * DAY_US, 30 * DAY_US))
    assert board.due(29 * DAY_US, RULES, 0) == []
    board.note(Decided(DRIFT, "incident", RETRAIN, 29 * DAY_US, 0))
    assert board.due(30 * DAY_US, RULES, 0) == [slot]
    board.note(Decided(*slot, SUPERSEDED, 30 * DAY_US, 0))
    assert board.due(31 * DAY_US, RULES, 0) == []
    assert board.due(57 * DAY_US, RULES, 0) == [Due(SCHEDULE, format_us(57 * DAY_US))]
