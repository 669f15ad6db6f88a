"""Rollout decisions: a table of cases and laws over any evidence."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_registry.rollout import (
    DEFAULT_LIMIT,
    DEFAULT_MIN_LABELS,
    Evidence,
    Plan,
    Progress,
    Step,
    Verdict,
    decide,
    plan_of,
)

HOUR_US = 3_600_000_000
PLAN = Plan(
    steps=(Step("shadow", 0.0, 12 * HOUR_US, 200), Step("canary", 0.1, 12 * HOUR_US, 200)),
    limit=0.05,
)


def verdict(
    *,
    hours: float,
    pairs: int,
    difference: float,
    error: float = 0.01,
    step: int = 0,
    held: bool = False,
    clusters: int = 6,
    earlier_pairs: int = 0,
) -> Verdict:
    evidence = Evidence(int(hours * HOUR_US), pairs, pairs + earlier_pairs, clusters, difference, error)
    return decide(Progress(step, 0, held), evidence, PLAN).verdict


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # Within the duration nothing but harm moves the step.
        ({"hours": 1, "pairs": 5000, "difference": -0.3}, Verdict.HOLD),
        ({"hours": 11.99, "pairs": 5000, "difference": 0.0}, Verdict.HOLD),
        # Harm: beyond three standard errors, beyond the limit, on 50 pairs.
        ({"hours": 1, "pairs": 50, "difference": 0.06}, Verdict.BACK),
        ({"hours": 1, "pairs": 49, "difference": 0.9}, Verdict.HOLD),
        # Pairs of earlier steps count for harm, and pairs of few hours say little.
        ({"hours": 1, "pairs": 1, "difference": 0.9, "earlier_pairs": 49}, Verdict.BACK),
        ({"hours": 1, "pairs": 500, "difference": 0.9, "clusters": 5}, Verdict.HOLD),
        ({"hours": 1, "pairs": 5000, "difference": 0.05, "error": 0.001}, Verdict.HOLD),
        ({"hours": 1, "pairs": 5000, "difference": 0.06, "error": 0.02}, Verdict.HOLD),
        ({"hours": 40, "pairs": 60, "difference": 0.06}, Verdict.BACK),
        # At its end the step needs labels too.
        ({"hours": 12, "pairs": 199, "difference": -0.1}, Verdict.HOLD),
        ({"hours": 12, "pairs": 199, "difference": -0.1, "earlier_pairs": 500}, Verdict.HOLD),
        ({"hours": 12, "pairs": 200, "difference": -0.1}, Verdict.ADVANCE),
        ({"hours": 12, "pairs": 200, "difference": 0.0}, Verdict.ADVANCE),
        ({"hours": 12, "pairs": 200, "difference": 0.02, "error": 0.01}, Verdict.ADVANCE),
        ({"hours": 12, "pairs": 200, "difference": 0.04, "error": 0.01}, Verdict.BACK),
        ({"hours": 12, "pairs": 200, "difference": -0.1, "step": 1}, Verdict.PROMOTE),
        # Three durations without labels: said once.
        ({"hours": 35.9, "pairs": 10, "difference": 0.0}, Verdict.HOLD),
        ({"hours": 36, "pairs": 10, "difference": 0.0}, Verdict.SAY_HELD),
        ({"hours": 99, "pairs": 10, "difference": 0.0, "held": True}, Verdict.HOLD),
        ({"hours": 99, "pairs": 200, "difference": 0.0, "held": True}, Verdict.ADVANCE),
    ],
)
def test_step_moves_as_the_evidence_says(case: dict[str, Any], expected: Verdict) -> None:
    assert verdict(**case) is expected


EVIDENCE = st.builds(
    Evidence,
    at_us=st.integers(0, 100 * HOUR_US),
    pairs=st.integers(0, 10_000),
    total_pairs=st.integers(0, 10_000),
    hours=st.integers(0, 100),
    difference=st.floats(-2, 2),
    standard_error=st.floats(0, 1),
)
PROGRESS = st.builds(Progress, step=st.integers(0, 1), began_us=st.integers(0, HOUR_US), held=st.booleans())


@given(PROGRESS, EVIDENCE)
def test_a_challenger_that_is_not_worse_never_goes_back(progress: Progress, evidence: Evidence) -> None:
    if evidence.difference <= 0:
        assert decide(progress, evidence, PLAN).verdict is not Verdict.BACK


@given(PROGRESS, EVIDENCE)
def test_a_step_never_ends_well_before_its_duration_and_labels(progress: Progress, evidence: Evidence) -> None:
    if decide(progress, evidence, PLAN).verdict in {Verdict.ADVANCE, Verdict.PROMOTE}:
        step = PLAN.steps[progress.step]
        assert evidence.at_us - progress.began_us >= step.duration_us
        assert evidence.pairs >= step.min_labels


@given(PROGRESS, EVIDENCE, st.integers(1, 10 * HOUR_US))
def test_only_the_distance_from_the_beginning_counts_not_the_date(
    progress: Progress, evidence: Evidence, shift_us: int
) -> None:
    later = Progress(progress.step, progress.began_us + shift_us, progress.held)
    moved = replace(evidence, at_us=evidence.at_us + shift_us)
    assert decide(progress, evidence, PLAN) == decide(later, moved, PLAN)


def test_plan_takes_the_performance_limit_and_the_default_of_labels() -> None:
    pipeline = definition.Pipeline(
        rollout=[
            definition.RolloutStep(kind=definition.ROLLOUT_KIND_SHADOW, share=0.7, duration_ms=1000),
            definition.RolloutStep(kind=definition.ROLLOUT_KIND_CANARY, share=0.5, duration_ms=2000, min_labels=7),
        ],
        monitors=[
            definition.Monitor(performance=definition.PerformanceMonitor(metric="log_loss", limit=limit))
            for limit in (0.0, 0.03)
        ],
    )
    expected = (Step("shadow", 0.0, 1_000_000, DEFAULT_MIN_LABELS), Step("canary", 0.5, 2_000_000, 7))
    assert plan_of(pipeline) == Plan(expected, 0.03)
    assert plan_of(definition.Pipeline()) == Plan((), DEFAULT_LIMIT)
