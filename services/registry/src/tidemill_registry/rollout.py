"""Whether a rollout step holds, moves on or goes back, decided from paired evidence alone.

Time here is the event time of the evidence: the same evidence decides the same, however late it is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tidemill_contracts.definition.v1 import definition_pb2 as definition

# A mean over fewer pairs, or pairs of fewer hours, says nothing of its own standard error.
MIN_PAIRS_TO_GO_BACK = 50
MIN_HOURS_TO_GO_BACK = 6
# One false alarm in about 740 looks at a challenger that equals its champion.
NOISE_STANDARD_ERRORS = 3.0
DEFAULT_MIN_LABELS = 200
# Log loss that matters where the pipeline names no limit.
DEFAULT_LIMIT = 0.01
# Durations without enough labels after which the step says that it waits.
PATIENCE_DURATIONS = 3


class Verdict(Enum):
    """What becomes of the step."""

    HOLD = "hold"
    # Too few labels for too long: the step goes on waiting, and says so once.
    SAY_HELD = "held"
    ADVANCE = "advance"
    PROMOTE = "promote"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a rollout as planned."""

    # "shadow" or "canary".
    kind: str
    # Share of requests that the challenger answers.
    share: float
    duration_us: int
    min_labels: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The steps of a rollout, and the difference in log loss that matters in practice."""

    steps: tuple[Step, ...]
    limit: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a rollout stands."""

    step: int
    began_us: int
    # The step has said already that it waits for labels.
    held: bool


@dataclass(frozen=True, slots=True)
class Evidence:
    """Champion and challenger on the same labelled requests.

    `pairs`: since the step began; the other figures since the rollout began.
    """

    at_us: int
    pairs: int
    total_pairs: int
    hours: int
    # Mean of challenger loss − champion loss, and its standard error.
    difference: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and the sentence that gives its grounds."""

    verdict: Verdict
    why: str


def plan_of(pipeline: definition.Pipeline) -> Plan:
    """Return the rollout that a pipeline declares."""
    return Plan(
        steps=tuple(_step(step) for step in pipeline.rollout),
        limit=next(
            (
                monitor.performance.limit
                for monitor in pipeline.monitors
                if monitor.HasField("performance") and monitor.performance.limit > 0
            ),
            DEFAULT_LIMIT,
        ),
    )


def _step(step: definition.RolloutStep) -> Step:
    canary = step.kind == definition.ROLLOUT_KIND_CANARY
    return Step(
        kind="canary" if canary else "shadow",
        share=step.share if canary else 0.0,
        duration_us=step.duration_ms * 1000,
        min_labels=step.min_labels or DEFAULT_MIN_LABELS,
    )


def decide(progress: Progress, evidence: Evidence, plan: Plan) -> Decision:
    """Return what the evidence makes of the step.

    Worse beyond noise *and* beyond the practical limit goes back at once. A step ends after its duration and enough
    labels; then worse beyond noise goes back, however little, and anything else moves on.
    """
    step = plan.steps[progress.step]
    noise = NOISE_STANDARD_ERRORS * evidence.standard_error
    figures = describe(evidence)
    known = evidence.total_pairs >= MIN_PAIRS_TO_GO_BACK and evidence.hours >= MIN_HOURS_TO_GO_BACK
    worse = known and evidence.difference > noise
    if worse and evidence.difference > plan.limit:
        return Decision(Verdict.BACK, f"{figures}, beyond noise and the practical limit {plan.limit:g}")
    elapsed_us = evidence.at_us - progress.began_us
    if elapsed_us < step.duration_us:
        return Decision(Verdict.HOLD, "the step's duration is not over")
    if evidence.pairs < step.min_labels:
        if elapsed_us >= PATIENCE_DURATIONS * step.duration_us and not progress.held:
            return Decision(
                Verdict.SAY_HELD,
                f"{evidence.pairs} of {step.min_labels} labels after {PATIENCE_DURATIONS} times the step's duration",
            )
        return Decision(Verdict.HOLD, f"{evidence.pairs} of {step.min_labels} labels")
    if worse:
        return Decision(Verdict.BACK, f"{figures}, beyond noise at the step's end")
    last = progress.step + 1 == len(plan.steps)
    return Decision(Verdict.PROMOTE if last else Verdict.ADVANCE, figures)


def describe(evidence: Evidence) -> str:
    """Return the evidence as part of a sentence.

    >>> describe(Evidence(0, 300, 1412, 20, -0.0123, 0.004))
    'log loss 0.0123 lower (± 0.0040) on 1,412 pairs'
    """
    word = "higher" if evidence.difference > 0 else "lower"
    return (
        f"log loss {abs(evidence.difference):.4f} {word} (± {evidence.standard_error:.4f}) "
        f"on {evidence.total_pairs:,} pairs"
    )


def is_sound(values: Sequence[float], pairs: int) -> bool:
    """Return whether figures can be decided on: finite, and counted from at least no pairs."""
    return pairs >= 0 and all(math.isfinite(value) for value in values)
