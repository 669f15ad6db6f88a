"""Paired evidence: sums that do not depend on how hours are cut into calls, and an error that knows of hours."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tidemill_monitoring.pairs import Pairs, RolloutStep
from tidemill_monitoring.windows import losses

SHADOW = RolloutStep(deployment_revision=3, champion=1, challenger=2, step=0, began_us=10)
CANARY = RolloutStep(deployment_revision=4, champion=1, challenger=2, step=1, began_us=20)
PROBABILITY = st.floats(0.01, 0.99)
HOURS = st.lists(
    st.lists(st.tuples(st.booleans(), PROBABILITY, PROBABILITY), min_size=1, max_size=8), min_size=1, max_size=8
)


def add(pairs: Pairs, rows: list[tuple[bool, float, float]]) -> None:
    y, champion, challenger = (np.array(column, float) for column in zip(*rows, strict=True))
    pairs.add(y, champion, challenger)


@given(HOURS)
def test_evidence_is_the_cluster_robust_mean(hours: list[list[tuple[bool, float, float]]]) -> None:
    pairs = Pairs()
    pairs.follow(SHADOW)
    groups = []
    for rows in hours:
        add(pairs, rows)
        pairs.close_hour()
        y, champion, challenger = (np.array(column, float) for column in zip(*rows, strict=True))
        groups.append(losses(y, challenger) - losses(y, champion))
    every = np.concatenate(groups)
    found = pairs.evidence()
    assert found.total_pairs == found.pairs == len(every)
    assert np.isclose(found.difference, every.mean(), atol=1e-12)
    if len(groups) > 1:
        residuals = np.array([(group - every.mean()).sum() for group in groups])
        expected = np.sqrt((residuals**2).sum() * len(groups) / (len(groups) - 1)) / len(every)
        assert np.isclose(found.standard_error, expected, rtol=1e-6, atol=1e-7)


@given(HOURS, st.data())
def test_an_hour_in_several_calls_and_a_restart_change_nothing(
    hours: list[list[tuple[bool, float, float]]], data: st.DataObject
) -> None:
    whole, cut = Pairs(), Pairs()
    for pairs in (whole, cut):
        pairs.follow(SHADOW)
    for rows in hours:
        add(whole, rows)
        place = data.draw(st.integers(0, len(rows)))
        for part in (rows[:place], rows[place:]):
            if part:
                add(cut, part)
        whole.close_hour()
        cut.close_hour()
        cut = Pairs.restore(json.loads(json.dumps(cut.snapshot())))
    assert cut.evidence() == whole.evidence()


def test_a_step_counts_anew_and_keeps_the_evidence_of_the_rollout() -> None:
    pairs = Pairs()
    pairs.follow(SHADOW)
    add(pairs, [(True, 0.5, 0.9)])
    pairs.close_hour()
    pairs.follow(CANARY)
    found = pairs.evidence()
    assert (found.pairs, found.total_pairs, found.hours) == (0, 1, 1)
    assert found.difference < 0


def test_another_challenger_begins_with_nothing() -> None:
    pairs = Pairs()
    pairs.follow(SHADOW)
    add(pairs, [(True, 0.5, 0.9)])
    pairs.close_hour()
    pairs.follow(SHADOW._replace(challenger=3, began_us=30))
    assert pairs.evidence().total_pairs == 0
    pairs.follow(None)
    assert pairs == Pairs()
