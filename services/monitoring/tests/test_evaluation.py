"""Evaluation: one order, one result, however the log was cut and wherever the process died."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_monitoring.clock import DAY_US, HOUR_US
from tidemill_monitoring.evaluation import Criteria, Evaluation, Resolved, TickEnd
from tidemill_monitoring.join import LABELLED, NEVER
from tidemill_monitoring.pairs import RolloutStep
from tidemill_monitoring.scores import pack, unpack

CRITERIA = Criteria(0.05, 0.0444)
DAYS = 24
STEP = RolloutStep(7, 1, 2, 0, 3 * DAY_US)


def scores(as_of_us: int, champion: float, challenger: float | None) -> bytes:
    record = serving.PredictionRecord(
        as_of_us=as_of_us,
        deployment_revision=7,
        scores=[serving.Score(model_version=1, probability=champion, role=serving.ROLE_CHAMPION)],
    )
    if challenger is not None:
        record.scores.add(model_version=2, probability=challenger, role=serving.ROLE_CHALLENGER)
    record.scores.add(model_version=9, probability=0.4, role=serving.ROLE_BASELINE)
    return pack(record)


def history(seed: int = 0) -> list[Resolved]:
    """Return outcomes of some weeks, in order; the last third costs more."""
    rng, rows = np.random.default_rng(seed), []
    for hour in range(DAYS * 24):
        for number in range(3):
            at = hour * HOUR_US + int(rng.integers(0, HOUR_US))
            wrong = hour > DAYS * 16 and rng.random() < 0.6
            label = float(rng.random() < 0.3)
            p = 0.8 if (label == 1.0) != wrong else 0.2
            lost = rng.random() < 0.05
            # Some hours before the step begins.
            challenger = 0.5 if hour > 60 else None
            rows.append(
                Resolved(
                    (hour + 1) * HOUR_US,
                    at,
                    f"{hour}-{number}",
                    NEVER if lost else LABELLED,
                    None if lost else label,
                    scores(at - 2 * HOUR_US, p, challenger),
                )
            )
    return sorted(rows)


def live(evaluation: Evaluation, rows: Sequence[Resolved], first: int, last: int, page: int = 10**9) -> list[TickEnd]:
    """Close the ticks (first, last], folding at most `page` rows at a time."""
    ends = []
    for tick in range(first + 1, last + 1):
        part = [row for row in rows if row.tick_us == tick * HOUR_US]
        for start in range(0, len(part), page):
            evaluation.fold(part[start : start + page], STEP)
        ends.append(evaluation.close_tick(tick * HOUR_US, STEP, CRITERIA))
        day = ends[-1].day
        if day is not None and day.verdict is not None and day.verdict.drifted:
            evaluation.drift.disarm(f"incident-{tick}")
    return ends


def test_the_result_does_not_depend_on_how_a_tick_is_paged() -> None:
    rows = history()
    whole, paged = Evaluation.begin(7), Evaluation.begin(7)
    assert live(whole, rows, 0, DAYS * 24) == live(paged, rows, 0, DAYS * 24, page=1)
    assert whole.snapshot() == paged.snapshot()


@pytest.mark.parametrize("killed_at_hour", [24, 25, 100, 300, DAYS * 24 - 1])
def test_a_process_that_died_goes_on_as_if_it_had_not(killed_at_hour: int) -> None:
    rows = history()
    steady, snapshots = Evaluation.begin(7), {0: Evaluation.begin(7).snapshot()}
    expected = []
    for hour in range(DAYS * 24):
        expected += live(steady, rows, hour, hour + 1)
        if (hour + 1) % 24 == 0:
            snapshots[hour + 1] = steady.snapshot()
    midnight = killed_at_hour // 24 * 24
    again = Evaluation.begin(7)
    again.restore(snapshots[midnight])
    for tick in range(midnight + 1, killed_at_hour + 1):
        again.fold([row for row in rows if row.tick_us == tick * HOUR_US], STEP)
        again.pass_tick()
    assert live(again, rows, killed_at_hour, DAYS * 24) == expected[killed_at_hour:]


def test_a_rise_of_the_champions_loss_is_one_incident_with_its_onset() -> None:
    ends = live(Evaluation.begin(7), history(), 0, DAYS * 24)
    verdicts = [end.day.verdict for end in ends if end.day is not None and end.day.verdict is not None]
    drifted = [verdict for verdict in verdicts if verdict.drifted]
    assert len(drifted) == 1
    assert drifted[0].version == 1
    assert abs(drifted[0].onset_us - 16 * DAY_US) <= DAY_US


def test_a_midnight_tells_every_version_with_its_role_and_coverage() -> None:
    ends = live(Evaluation.begin(7), history(), 0, 6 * 24)
    day = ends[-1].day
    assert day is not None
    assert [(window.version, window.role) for window in day.windows] == [
        (1, "champion"),
        (2, "challenger"),
        (9, "baseline"),
    ]
    assert all(0.9 < window.values["coverage"] < 1 for window in day.windows)


def test_pairs_count_only_requests_of_the_present_step_scored_by_both() -> None:
    rows = history()
    ends = live(Evaluation.begin(7), rows, 0, 120)
    evidence = ends[-1].evidence
    assert evidence is not None
    expected = [
        row
        for row in rows
        if row.tick_us <= 120 * HOUR_US
        and row.state == LABELLED
        and unpack(row.scores).as_of_us >= STEP.began_us
        and len(unpack(row.scores).by_version) == 3
    ]
    assert evidence.pairs == len(expected)
    assert evidence.total_pairs > evidence.pairs
    assert evidence.difference == pytest.approx(evidence.challenger_loss - evidence.champion_loss)


def test_pairs_of_another_challenger_do_not_count() -> None:
    evaluation, step = Evaluation.begin(7), STEP._replace(challenger=3)
    evaluation.fold([Resolved(HOUR_US, 1, "x", LABELLED, 1.0, scores(STEP.began_us, 0.5, 0.6))], step)
    evidence = evaluation.close_tick(HOUR_US, step, CRITERIA).evidence
    assert evidence is not None
    assert (evidence.pairs, evidence.total_pairs) == (0, 0)


@pytest.mark.parametrize("passed", [False, True])
def test_an_incident_is_closed_once_by_a_new_versions_label_whatever_page_it_is_on(passed: bool) -> None:
    evaluation = Evaluation.begin(7)
    evaluation.drift.disarm("incident")
    for place in range(2):
        evaluation.fold([Resolved(HOUR_US, place, str(place), LABELLED, 1.0, scores(place, 0.5, None))], None)
    # Told before a restart, it is not told again.
    if passed:
        evaluation.pass_tick()
    assert evaluation.close_tick(HOUR_US, None, CRITERIA).closed_incident == ("" if passed else "incident")
    assert evaluation.close_tick(2 * HOUR_US, None, CRITERIA).closed_incident == ""


def test_another_step_counts_its_pairs_from_nothing_but_a_hold_does_not() -> None:
    evaluation = Evaluation.begin(7)
    live(evaluation, history(), 0, 120)
    held = evaluation.close_tick(121 * HOUR_US, STEP._replace(deployment_revision=8), CRITERIA)
    assert held.evidence is not None
    assert held.evidence.pairs > 0
    advanced = evaluation.close_tick(122 * HOUR_US, STEP._replace(step=1, began_us=122 * HOUR_US), CRITERIA)
    assert advanced.evidence is not None
    assert advanced.evidence.pairs == 0


def test_a_person_who_resolves_an_incident_lets_the_watch_look_again() -> None:
    evaluation = Evaluation.begin(7)
    live(evaluation, history(), 0, DAYS * 24)
    assert evaluation.drift.incident_id
    end = evaluation.close_tick((DAYS + 1) * DAY_US, STEP, CRITERIA, settled=True)
    assert end.day is not None
    assert end.day.verdict is not None
    assert end.day.verdict.armed


def test_packed_scores_come_back_as_they_were() -> None:
    record = serving.PredictionRecord(as_of_us=-5, deployment_revision=3, model_version=4, probability=0.25)
    assert unpack(pack(record)) == (-5, 3, ((4, serving.ROLE_CHAMPION, 0.25),))
    found: Any = unpack(scores(8, 0.1, 0.2))
    assert [score.role for score in found.by_version] == [1, 2, 3]
