"""What operators read: metrics, drift, incidents, alerts and requests as records, each with a sentence to act on."""

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.causes import cause_key
from tidemill_contracts.cloudevents import Attributes, to_headers
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as records
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_runtime.outgoing import Outgoing

from tidemill_monitoring.drift import Verdict
from tidemill_monitoring.evaluation import Window
from tidemill_monitoring.gaps import Lost
from tidemill_monitoring.pairs import Evidence, RolloutStep
from tidemill_monitoring.policy import ALERT, DEFERRED, RETRAIN, Decision
from tidemill_monitoring.profiles import PSI_LIMIT, Distance

METRICS = "monitoring.metrics.v1"
DRIFT = "monitoring.drift.v1"
INCIDENTS = "monitoring.incidents.v1"
ALERTS = "monitoring.alerts.v1"
TRIGGERS = "monitoring.policy-triggers.v1"
REQUESTS = "monitoring.retrain-requests.v1"
CLOCK = "monitoring.clock.v1"
OUTCOMES = "monitoring.outcomes.v1"

SOURCE = "tidemill/monitoring"
ACTOR = "service/monitoring"
LOSS = "log_loss"
# One namespace for all ids made here, so that the same cause makes the same id in every run.
_NAMESPACE = uuid.UUID("6f0d2d1e-6d0b-5a53-9a1c-0d4d6c1f7c55")

Positions = Sequence[progress.TopicPartitionOffset]


class Moment(NamedTuple):
    """Event time of what is told, and the wall clock beside it."""

    event_time_us: int
    emitted_at_us: int


def made_id(*parts: object) -> str:
    """Return the id that the same parts always give."""
    return str(uuid.uuid5(_NAMESPACE, "/".join(map(str, parts))))


def outgoing(topic: str, pipeline: str, message: Message, identity: str) -> Outgoing:
    """Return an operators' record ready to be written; `identity` is equal when the same thing is told again."""
    kind = f"tidemill.{topic}"
    headers = to_headers(Attributes(id=identity, source=SOURCE, type=kind, time_us=None, subject=pipeline))
    return Outgoing(topic, to_json(message), pipeline.encode(), headers)


def struct(values: Mapping[str, Any]) -> Struct:
    """Return a JSON object as a message."""
    made = Struct()
    made.update(values)
    return made


def day(instant_us: int) -> str:
    """Return a date as people write it.

    >>> day(1_370_304_000_000_000)
    '4 June 2013'
    """
    moment = datetime.fromtimestamp(instant_us / 1e6, UTC)
    return f"{moment.day} {moment:%B %Y}"


def window_metric(pipeline: str, window: Window, start_us: int, at: Moment) -> records.MetricRecord:
    """Return one version's rolling metrics."""
    told = {name: f"{window.values[name]:.3f}" for name in ("log_loss", "roc_auc") if name in window.values}
    figures = ", ".join(f"{name} {value}" for name, value in told.items()) or "no labels yet"
    return records.MetricRecord(
        pipeline=pipeline,
        model_version=window.version,
        kind="window",
        window_start=to_timestamp(start_us),
        window_end=to_timestamp(at.event_time_us),
        rows=window.rows,
        values=dict(window.values),
        emitted_at=to_timestamp(at.emitted_at_us),
        role=window.role,
        summary=f"{pipeline} v{window.version} ({window.role}): {figures} over {window.rows:,} labelled predictions "
        f"up to {day(at.event_time_us)}.",
    )


def rollout_metric(pipeline: str, step: RolloutStep, found: Evidence, at: Moment) -> records.MetricRecord:
    """Return the paired evidence of the rollout step under way."""
    return records.MetricRecord(
        pipeline=pipeline,
        model_version=step.challenger,
        kind="rollout",
        window_start=to_timestamp(step.began_us),
        window_end=to_timestamp(at.event_time_us),
        rows=found.pairs,
        paired=records.PairedEvidence(
            deployment_revision=step.deployment_revision,
            champion_version=step.champion,
            challenger_version=step.challenger,
            step=step.step,
            pairs=found.pairs,
            champion_log_loss=found.champion_loss,
            challenger_log_loss=found.challenger_loss,
            difference=found.difference,
            standard_error=found.standard_error,
            total_pairs=found.total_pairs,
            hours=found.hours,
        ),
        emitted_at=to_timestamp(at.emitted_at_us),
        role="challenger",
        summary=f"{pipeline} v{step.challenger} against v{step.champion}: log loss {found.difference:+.4f} "
        f"± {found.standard_error:.4f} over {found.total_pairs:,} pairs.",
    )


def loss_drift(pipeline: str, verdict: Verdict, limit: float, delta: float, at: Moment) -> records.DriftRecord:
    """Return the state of the loss signal at the end of a day."""
    cut = verdict.cut
    moved = cut.after - cut.before if cut else 0.0
    evidence: dict[str, Any] = {"delta": delta, "days": verdict.blocks, "armed": verdict.armed}
    if verdict.mean is not None:
        evidence["last_day"] = verdict.mean
    if cut:
        evidence |= {"before": cut.before, "after": cut.after, "noise": cut.epsilon}
    if verdict.drifted:
        state = f"rose by {moved:.3f}, beyond noise and the limit {limit:g}"
    else:
        state = "is within noise or the limit" if verdict.armed else "waits for the first label of a new version"
    return records.DriftRecord(
        pipeline=pipeline,
        model_version=verdict.version,
        signal=LOSS,
        detector="adwin",
        drifted=verdict.drifted,
        statistic=moved,
        practical_limit=limit,
        evaluated_at=to_timestamp(at.event_time_us),
        emitted_at=to_timestamp(at.emitted_at_us),
        evidence=struct(evidence),
        summary=f"{pipeline} v{verdict.version}: log loss {state} ({verdict.blocks} days seen).",
    )


def profile_drift(pipeline: str, version: int, found: Distance, at: Moment) -> records.DriftRecord:
    """Return the state of one feature's, or of the predictions', histogram."""
    name = found.signal.removeprefix("feature:")
    state = "differs from" if found.moved else "looks like"
    return records.DriftRecord(
        pipeline=pipeline,
        model_version=version,
        signal=found.signal,
        detector="psi",
        drifted=found.moved,
        statistic=found.psi,
        practical_limit=PSI_LIMIT,
        evaluated_at=to_timestamp(at.event_time_us),
        emitted_at=to_timestamp(at.emitted_at_us),
        evidence=struct({"noise": found.noise, "rows": found.rows}),
        summary=f"{pipeline} v{version}: {name} {state} the training rows (PSI {found.psi:.2f}, {found.rows:,} rows).",
    )


def profile_alert(pipeline: str, version: int, signals: Sequence[str], at: Moment) -> records.AlertRecord:
    """Return one alert for everything that has newly moved away from the reference; it never retrains by itself."""
    names = ", ".join(signal.removeprefix("feature:") for signal in signals)
    return records.AlertRecord(
        alert_id=made_id(pipeline, version, "profile", at.event_time_us),
        pipeline=pipeline,
        severity="low",
        raised_at=to_timestamp(at.event_time_us),
        emitted_at=to_timestamp(at.emitted_at_us),
        summary=f"{pipeline} v{version} now sees other values of {names} than it was trained on; "
        "watch its log loss, nothing is retrained for this alone.",
    )


def lost_alert(lost: Lost, now_us: int) -> records.AlertRecord:
    """Return the alert of predictions that were answered and never logged; they belong to no one pipeline."""
    count = f"{lost.records:,} {'prediction' if lost.records == 1 else 'predictions'}"
    return records.AlertRecord(
        alert_id=made_id(lost.process_id, "lost", now_us),
        severity="medium",
        raised_at=to_timestamp(now_us),
        emitted_at=to_timestamp(now_us),
        summary=f"Serving process {lost.process_id} answered {count} whose log record never came: they are neither "
        "joined nor trained on. Look at its dropped records, or ask for DURABLE logging.",
    )


def incident(pipeline: str, verdict: Verdict, evidence: Mapping[str, Any], at: Moment) -> records.IncidentRecord:
    """Return a new incident; the policy's decision follows as its next revision."""
    assert verdict.cut is not None
    rise, limit = verdict.cut.after - verdict.cut.before, float(evidence["limit"])
    return records.IncidentRecord(
        incident_id=made_id(pipeline, LOSS, verdict.version, at.event_time_us),
        pipeline=pipeline,
        model_version=verdict.version,
        signal=LOSS,
        status="open",
        severity="high" if rise >= 1.5 * limit else "medium",
        changed_at=to_timestamp(verdict.onset_us),
        detected_at=to_timestamp(at.event_time_us),
        evidence=struct(evidence),
        action=records.IncidentAction(kind="none", reason="the policy has not decided yet"),
        emitted_at=to_timestamp(at.emitted_at_us),
        actor=ACTOR,
        summary=_incident_summary(pipeline, verdict, evidence) + ".",
        revision=1,
    )


def _incident_summary(pipeline: str, verdict: Verdict, evidence: Mapping[str, Any]) -> str:
    assert verdict.cut is not None
    covered = f", {evidence['coverage']:.0%} covered".replace("%", " %") if "coverage" in evidence else ""
    return (
        f"{pipeline} v{verdict.version} lost {verdict.cut.after - verdict.cut.before:.2f} log loss since "
        f"{day(verdict.onset_us)} ({verdict.rows:,} labelled predictions{covered})"
    )


def incident_alert(found: records.IncidentRecord) -> records.AlertRecord:
    """Return the alert that goes with an opened incident."""
    return records.AlertRecord(
        alert_id=made_id(found.incident_id, "alert"),
        pipeline=found.pipeline,
        incident_id=found.incident_id,
        severity=found.severity,
        raised_at=found.detected_at,
        emitted_at=found.emitted_at,
        summary=found.summary,
    )


class Change(NamedTuple):
    """The next revision of an incident: what differs, who changed it, and the end of the sentence."""

    actor: str
    words: str
    status: str = ""
    action: records.IncidentAction | None = None


def revised(raw: bytes, change: Change, emitted_at_us: int) -> records.IncidentRecord:
    """Return the next revision of a stored incident."""
    found = from_json(raw, records.IncidentRecord())
    found.revision += 1
    found.actor = change.actor
    found.emitted_at.CopyFrom(to_timestamp(emitted_at_us))
    if change.status:
        found.status = change.status
    if change.action is not None:
        found.action.CopyFrom(change.action)
    found.summary = found.summary.partition(";")[0].rstrip(".") + f"; {change.words}."
    return found


def decided(decision: Decision, request_id: str) -> Change:
    """Return what the policy's decision makes of an incident."""
    kind = {RETRAIN: "retrain", ALERT: "alert"}.get(decision.outcome, "none")
    words = {RETRAIN: "retraining requested", DEFERRED: f"retraining waits, {decision.reason}"}
    return Change(
        ACTOR,
        words.get(decision.outcome, f"not retrained, {decision.reason}"),
        action=records.IncidentAction(
            kind=kind, request_id=request_id if kind == "retrain" else "", reason=decision.reason
        ),
    )


class Asked(NamedTuple):
    """Everything that a retrain request says of its cause."""

    pipeline: str
    kind: str
    cause_id: str
    reason: str
    actor: str
    window_us: int


def request(asked: Asked, evidence: Struct | None, positions: Positions, at: Moment) -> records.RetrainRequest:
    """Return the request; the same cause always gives the same id and key."""
    why = {"drift": f"its incident {asked.cause_id}", "schedule": f"its schedule ({asked.cause_id})"}
    return records.RetrainRequest(
        request_id=made_id("request", asked.pipeline, asked.kind, asked.cause_id),
        pipeline=asked.pipeline,
        cause_key=cause_key(asked.pipeline, asked.kind, asked.cause_id),
        cause_kind=asked.kind,
        cause_id=asked.cause_id,
        event_time=to_timestamp(at.event_time_us),
        window_start=to_timestamp(at.event_time_us - asked.window_us),
        evidence=evidence,
        actor=asked.actor,
        reason=asked.reason,
        emitted_at=to_timestamp(at.emitted_at_us),
        summary=f"{asked.pipeline} is to be retrained on the rows up to {day(at.event_time_us)} because of "
        f"{why.get(asked.kind, f'{asked.actor}: {asked.reason}')}.",
        positions=positions,
    )
