"""Reads monitoring's paired evidence and finds the decision that it leads to; pure."""

from dataclasses import dataclass

from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.canonical import from_json, to_dict
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring

from tidemill_registry.lifecycle import Change, Order, State, advance, hold, promote, take_back
from tidemill_registry.rollout import Evidence, Verdict, decide, is_sound

ACTOR = "registry/rollout"


class UnsoundEvidenceError(ValueError):
    """A record of the metrics topic that nothing can be decided on."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Evidence with the rollout that it speaks of."""

    pipeline: str
    figures: monitoring.PairedEvidence
    at_us: int


def read_evidence(value: bytes | None) -> Paired | None:
    """Return the paired evidence in a record of monitoring.metrics.v1; None for other metrics.

    Raises `UnsoundEvidenceError` where the bytes are no MetricRecord or its figures are not finite.
    """
    if not value:
        raise UnsoundEvidenceError("a metric record without a value")
    try:
        record = from_json(value, monitoring.MetricRecord())
    except ValueError as error:
        raise UnsoundEvidenceError(str(error)) from error
    if record.kind != "rollout":
        return None
    paired = record.paired
    if not record.HasField("window_end") or not is_sound((paired.difference, paired.standard_error), paired.pairs):
        raise UnsoundEvidenceError("rollout evidence needs window_end, finite figures and a count of pairs")
    return Paired(record.pipeline, paired, from_timestamp(record.window_end))


def speaks_of(paired: Paired, state: State) -> bool:
    """Return whether the evidence is about the rollout step under way; what came before it decides nothing."""
    figures = paired.figures
    return (
        state.deployment is not None
        and state.rollout is not None
        and figures.champion_version == state.champion
        and figures.challenger_version == state.challenger
        and figures.step == state.rollout.progress.step
        and state.rollout.since_revision <= figures.deployment_revision <= state.deployment.revision
    )


def weigh(paired: Paired, state: State) -> Change | None:
    """Return the change that the evidence calls for; None when the step goes on, or the evidence is of another one."""
    if not speaks_of(paired, state):
        return None
    assert state.rollout is not None
    figures = paired.figures
    evidence = Evidence(
        paired.at_us, figures.pairs, figures.total_pairs, figures.hours, figures.difference, figures.standard_error
    )
    decision = decide(state.rollout.progress, evidence, state.rollout.plan)
    act = {
        Verdict.HOLD: None,
        Verdict.SAY_HELD: hold,
        Verdict.ADVANCE: advance,
        Verdict.PROMOTE: promote,
        Verdict.BACK: take_back,
    }[decision.verdict]
    if act is None:
        return None
    kept = Struct()
    kept.update(to_dict(figures))
    return act(state, Order(ACTOR, paired.at_us, decision.why), kept)
