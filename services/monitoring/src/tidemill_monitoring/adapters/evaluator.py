"""Evaluates pipelines inside the joiner's transaction: ticks, days, drift, incidents, triggers of the policy."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tidemill_contracts.causes import DRIFT as DRIFT_CAUSE
from tidemill_contracts.instants import format_us, to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_runtime.producer import Outgoing

from tidemill_monitoring import records
from tidemill_monitoring.adapters import findings, store
from tidemill_monitoring.board import Board, Due
from tidemill_monitoring.clock import DAY_US, HOUR_US
from tidemill_monitoring.evaluation import DayEnd, Evaluation, Resolved, TickEnd, Window
from tidemill_monitoring.profiles import ProfileWatch
from tidemill_monitoring.records import Change, Moment, Positions
from tidemill_monitoring.registered import Profiled, Registered
from tidemill_monitoring.sampling import champion_of, sample_of

# Outcomes of a tick under way that are held in memory.
PENDING_LIMIT = 50_000


class Spans(NamedTuple):
    """How many days things are looked at and kept."""

    window_days: int
    profile_days: int
    keep_predictions_days: int
    keep_outcomes_days: int


@dataclass
class Watched:
    """One pipeline's evaluation in memory; `last_tick_us` is the last tick that was closed.

    `pending`: what the coming ticks will fold, in no order; None where it became too much to hold and is read from the
    table instead.
    """

    last_tick_us: int
    sweep_from_us: int
    evaluation: Evaluation
    profile: ProfileWatch
    board: Board
    pending: list[Resolved] | None = field(default_factory=list)

    def expect(self, row: Resolved) -> None:
        """Hold a row for its tick."""
        if self.pending is not None and len(self.pending) < PENDING_LIMIT:
            self.pending.append(row)
        else:
            self.pending = None


@dataclass
class Told:
    """What one transaction tells the world, in order."""

    at_us: int
    positions: Positions
    out: list[Outgoing] = field(default_factory=list)
    metrics: list[monitoring.MetricRecord] = field(default_factory=list)

    def add(self, topic: str, pipeline: str, message: Any, *identity: object) -> None:
        """Queue an operators' record; its id is the same whenever the same thing is told."""
        name = records.made_id(topic, pipeline, *identity)
        self.out.append(records.outgoing(topic, pipeline, message, name))


class Evaluator:
    """Carries pipelines over the ticks that their clocks have passed."""

    def __init__(self, registered: Registered, spans: Spans) -> None:
        self._registered = registered
        self._spans = spans

    def begin(self, last_tick_us: int, sweep_from_us: int, board: Board) -> Watched:
        """Return the state of a pipeline whose clock has just begun; what already waits for it is in the table."""
        evaluation = Evaluation.begin(self._spans.window_days)
        profile = ProfileWatch(self._spans.profile_days)
        return Watched(last_tick_us, sweep_from_us, evaluation, profile, board, pending=None)

    async def load(self, connection: Any, pipeline: str, row: Any, board: Board) -> Watched:
        """Build a pipeline's state again: the last midnight's snapshot and the ticks since."""
        watched = self.begin(row["last_tick_us"], row["sweep_from_us"], board)
        stored = await connection.fetchrow(
            "SELECT tick_us, state::text AS state FROM monitoring.snapshot WHERE pipeline = $1", pipeline
        )
        since_us = -(2**62)
        if stored is not None:
            state, since_us = findings.state_of(stored["state"]), stored["tick_us"]
            watched.evaluation.restore(state["evaluation"])
            watched.profile.restore(state["profile"])
        await self._replay(connection, pipeline, watched, since_us)
        return watched

    async def _replay(self, connection: Any, pipeline: str, watched: Watched, since_us: int) -> None:
        step = self._registered.step(pipeline)
        open_tick_us = since_us
        async for tick_us, part in self._stored(connection, pipeline, since_us, watched.last_tick_us):
            if tick_us > open_tick_us:
                watched.evaluation.pass_tick()
            watched.evaluation.fold(part, step)
            open_tick_us = tick_us
        watched.evaluation.pass_tick()
        watched.pending, _ = await store.resolved(connection, pipeline, 2**62, (watched.last_tick_us, 2**62, ""))
        if len(watched.pending) >= store.PAGE:
            watched.pending = None

    async def advance(self, connection: Any, pipeline: str, watched: Watched, to_tick_us: int, told: Told) -> None:
        """Close every tick up to `to_tick_us`."""
        step = self._registered.step(pipeline)
        async for tick_us, part in self._rows(connection, pipeline, watched, to_tick_us):
            await self._close(connection, pipeline, watched, tick_us - HOUR_US, told)
            watched.evaluation.fold(part, step)
        await self._close(connection, pipeline, watched, to_tick_us, told)
        await findings.add_metrics(connection, told.metrics)
        told.metrics.clear()

    async def _rows(
        self, connection: Any, pipeline: str, watched: Watched, to_tick_us: int
    ) -> AsyncIterator[tuple[int, Sequence[Resolved]]]:
        """Yield what counts up to a tick, in order and cut by tick, from memory or page by page from the table."""
        if watched.pending is not None:
            ready = sorted(row for row in watched.pending if row.tick_us <= to_tick_us)
            watched.pending = [row for row in watched.pending if row.tick_us > to_tick_us]
            for part in _by_tick(ready):
                yield part
            return
        async for one in self._stored(connection, pipeline, watched.last_tick_us, to_tick_us):
            yield one
        later, _ = await store.resolved(connection, pipeline, 2**62, (to_tick_us, 2**62, ""))
        watched.pending = later if len(later) < store.PAGE else None

    async def _stored(
        self, connection: Any, pipeline: str, after_us: int, to_tick_us: int
    ) -> AsyncIterator[tuple[int, Sequence[Resolved]]]:
        """Yield the table's rows of the ticks (after, to]; a large tick may come in several parts."""
        place, more = (after_us, 2**62, ""), True
        while more:
            rows, more = await store.resolved(connection, pipeline, to_tick_us, place)
            for tick_us, part in _by_tick(rows):
                yield tick_us, part
                place = (tick_us, part[-1].label_time_us, part[-1].prediction_id)

    async def _close(self, connection: Any, pipeline: str, watched: Watched, to_tick_us: int, told: Told) -> None:
        step, criteria = self._registered.step(pipeline), self._registered.criteria(pipeline)
        while watched.last_tick_us < to_tick_us:
            tick_us = watched.last_tick_us + HOUR_US
            incident_id = watched.evaluation.drift.incident_id if tick_us % DAY_US == 0 else ""
            settled = bool(incident_id) and await findings.is_resolved(connection, incident_id)
            end = watched.evaluation.close_tick(tick_us, step, criteria, settled=settled)
            watched.last_tick_us = tick_us
            await self._tell(connection, pipeline, watched, end, told)

    async def _tell(self, connection: Any, pipeline: str, watched: Watched, end: TickEnd, told: Told) -> None:
        at = Moment(end.tick_us, told.at_us)
        step = self._registered.step(pipeline)
        # What a person has resolved keeps their word.
        if end.closed_incident and not await findings.is_resolved(connection, end.closed_incident):
            change = Change(
                records.ACTOR, f"v{end.version} has replaced v{watched.evaluation.drift.incident_version}", "resolved"
            )
            found = await findings.revise_incident(connection, end.closed_incident, change, at.emitted_at_us)
            if found is not None:
                told.add(records.INCIDENTS, pipeline, found, found.incident_id, found.revision)
        if step is not None and end.evidence is not None:
            metric = records.rollout_metric(pipeline, step, end.evidence, at)
            told.add(records.METRICS, pipeline, metric, "rollout", step.deployment_revision, end.tick_us)
            told.metrics.append(metric)
        if end.day is not None:
            await self._end_day(connection, pipeline, watched, end.day, at, told)
        since_us = self._registered.champion_since_us.get(pipeline)
        for due in watched.board.due(end.tick_us, self._registered.rules(pipeline), since_us):
            told.add(records.TRIGGERS, pipeline, self._trigger(pipeline, due, end.version, at, told), *due, end.tick_us)

    async def _end_day(
        self, connection: Any, pipeline: str, watched: Watched, ended: DayEnd, at: Moment, told: Told
    ) -> None:
        start_us = at.event_time_us - self._spans.window_days * DAY_US
        for window in ended.windows:
            metric = records.window_metric(pipeline, window, start_us, at)
            told.add(records.METRICS, pipeline, metric, "window", window.version, at.event_time_us)
            told.metrics.append(metric)
        await self._judge_loss(connection, pipeline, watched, ended, at, told)
        await self._judge_profile(connection, pipeline, watched, at, told)
        state = {"evaluation": watched.evaluation.snapshot(), "profile": watched.profile.snapshot()}
        await findings.put_snapshot(connection, pipeline, at.event_time_us, state)
        await self._forget(connection, pipeline, at.event_time_us)

    async def _judge_loss(
        self, connection: Any, pipeline: str, watched: Watched, ended: DayEnd, at: Moment, told: Told
    ) -> None:
        criteria, verdict = self._registered.criteria(pipeline), ended.verdict
        if criteria is None or verdict is None:
            return
        drift = records.loss_drift(pipeline, verdict, criteria.limit, criteria.delta, at)
        told.add(records.DRIFT, pipeline, drift, records.LOSS, at.event_time_us)
        if not verdict.drifted or verdict.cut is None:
            return
        allowed = self._registered.allowed(pipeline)
        evidence = {
            "detector": "adwin",
            "before": verdict.cut.before,
            "after": verdict.cut.after,
            "noise": verdict.cut.epsilon,
            "limit": criteria.limit,
            "rows": verdict.rows,
            "days": verdict.blocks,
            "false_alarms_allowed": f"{allowed.count} per {allowed.period_ms / 86_400_000:g}d",
        } | _coverage(ended.windows, verdict.version)
        incident = records.incident(pipeline, verdict, evidence, at)
        watched.evaluation.drift.disarm(incident.incident_id)
        await findings.put_incident(connection, incident)
        told.add(records.INCIDENTS, pipeline, incident, incident.incident_id, 1)
        told.add(records.ALERTS, pipeline, records.incident_alert(incident), incident.incident_id)
        trigger = self._trigger(pipeline, Due(DRIFT_CAUSE, incident.incident_id), verdict.version, at, told)
        trigger.evidence.CopyFrom(incident.evidence)
        told.add(records.TRIGGERS, pipeline, trigger, incident.incident_id, at.event_time_us)

    def _trigger(self, pipeline: str, due: Due, version: int, at: Moment, told: Told) -> monitoring.PolicyTrigger:
        return monitoring.PolicyTrigger(
            pipeline=pipeline,
            cause_kind=due.cause_kind,
            cause_id=due.cause_id,
            event_time=to_timestamp(at.event_time_us),
            model_version=version,
            positions=told.positions,
            emitted_at=to_timestamp(at.emitted_at_us),
            summary=f"{pipeline}: the policy is to decide on {due.cause_kind} {due.cause_id} "
            f"at {format_us(at.event_time_us)}.",
        )

    async def _judge_profile(self, connection: Any, pipeline: str, watched: Watched, at: Moment, told: Told) -> None:
        if not self._registered.has_profiles(pipeline):
            return
        served = await findings.served(connection, pipeline, at.event_time_us - DAY_US, at.event_time_us)
        # By the day's answers: labels may come much later, or not at all.
        version = champion_of(served) or watched.profile.version
        profiled = self._registered.profile(pipeline, version)
        if profiled is None:
            return
        watched.profile.add_day(version, profiled.reference.count(sample_of(served, profiled.columns, version)))
        self._tell_profile(pipeline, watched, profiled, at, told)

    def _tell_profile(self, pipeline: str, watched: Watched, profiled: Profiled, at: Moment, told: Told) -> None:
        distances, fresh = watched.profile.judge(profiled.reference)
        version = watched.profile.version
        for found in distances:
            if self._asked_for(pipeline, found.signal):
                drift = records.profile_drift(pipeline, version, found, at)
                told.add(records.DRIFT, pipeline, drift, found.signal, at.event_time_us)
        fresh = [signal for signal in fresh if self._asked_for(pipeline, signal)]
        if fresh:
            alert = records.profile_alert(pipeline, version, fresh, at)
            told.add(records.ALERTS, pipeline, alert, "profile", at.event_time_us)

    def _asked_for(self, pipeline: str, signal: str) -> bool:
        return self._registered.compares(pipeline, "covariates" if signal.startswith("feature:") else "predictions")

    async def _forget(self, connection: Any, pipeline: str, now_us: int) -> None:
        labels_us = now_us - self._spans.keep_predictions_days * DAY_US
        predictions_us = labels_us - self._registered.waits[pipeline].us
        # Without its outcome, a prediction that is kept would be joined a second time.
        outcomes_us = min(predictions_us, now_us - self._spans.keep_outcomes_days * DAY_US)
        before = findings.Retention(predictions_us, labels_us, outcomes_us)
        await findings.forget(connection, pipeline, before)


def _coverage(windows: Sequence[Window], version: int) -> dict[str, float]:
    found = {window.version: window.values for window in windows}.get(version, {})
    return {"coverage": found["coverage"]} if "coverage" in found else {}


def _by_tick(rows: Sequence[Resolved]) -> list[tuple[int, Sequence[Resolved]]]:
    parts: list[tuple[int, list[Resolved]]] = []
    for row in rows:
        if not parts or parts[-1][0] != row.tick_us:
            parts.append((row.tick_us, []))
        parts[-1][1].append(row)
    return [(tick_us, part) for tick_us, part in parts]
