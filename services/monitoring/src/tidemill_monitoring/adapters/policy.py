"""The policy as a Faust agent, and the operators' door beside it: each cause is decided once, in one transaction.

The agent hears only of what is due: the evaluation writes a trigger when an incident opens, when a schedule slot
comes, and when what was deferred may be decided again.
"""

import uuid
from collections.abc import Callable
from typing import Any

import structlog
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.causes import DRIFT, OPERATOR, cause_key
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Record
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.faust_app import Agent, FaustApp, FaustOptions
from tidemill_runtime.health import Health
from tidemill_runtime.outbox import OutboxRelay
from tidemill_runtime.postgres import PASSING
from tidemill_runtime.producer import Producer

from tidemill_monitoring import decode, metrics, records
from tidemill_monitoring.adapters import findings
from tidemill_monitoring.adapters.schema import OUTBOX
from tidemill_monitoring.adapters.wall import now_us
from tidemill_monitoring.board import Board, Decided
from tidemill_monitoring.policy import DEFERRED, RETRAIN, Cause, Decision, Ledger, decide
from tidemill_monitoring.records import Asked, Moment, Positions
from tidemill_monitoring.registered import Registered
from tidemill_monitoring.settings import Settings

_DECIDED = """
INSERT INTO monitoring.decision
    (cause_key, pipeline, cause_kind, cause_id, outcome, event_time_us, due_us, reason, record)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (cause_key) DO UPDATE SET outcome = excluded.outcome, event_time_us = excluded.event_time_us,
    due_us = excluded.due_us, reason = excluded.reason, record = excluded.record
"""
# Decisions about one pipeline are made one after the other, by whichever door they come.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"

log = structlog.get_logger(__name__)


def policy_app(settings: Settings, policy: "Policy", producer: Producer, health: Health) -> FaustApp:
    """Return the Faust application whose agent decides triggers; what it refuses `producer` writes to dead letters."""
    group = f"{settings.group}-policy"
    return FaustApp(
        settings.kafka,
        FaustOptions(group, settings.datadir, stall_s=settings.stall_s),
        [Agent("policy", [records.TRIGGERS], policy.decide)],
        dead_letters=DeadLetters(producer, settings.kafka, group),
        health=health,
    )


class Policy:
    """Decides triggers and operators' requests; `enqueued` rises with everything that the outbox has to send."""

    def __init__(self, pool: Any, registered: Registered, relay: OutboxRelay, board: Callable[[str], Board]) -> None:
        self._pool = pool
        self._registered = registered
        self._relay = relay
        self._board = board
        self._enqueued = 0
        self._drained = -1

    async def settled(self) -> None:
        """Return once everything decided so far is in Kafka; costs nothing where nothing was decided."""
        mark = self._enqueued
        if mark != self._drained:
            await self._relay.drained()
            self._drained = mark

    def enqueued(self) -> None:
        """Say that a transaction with outbox rows has committed."""
        self._enqueued += 1
        self._relay.wake()

    async def decide(self, record: Record) -> None:
        """Decide one trigger; one that comes again changes nothing. Raises `Retryable` or `Poison`."""
        trigger = decode.trigger(record)
        if self._registered.definition(trigger.pipeline) is None:
            raise Poison(Reason.UNKNOWN_PIPELINE, f"no pipeline {trigger.pipeline!r}", field="pipeline")
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                decided = await self._decide(connection, trigger)
        except PASSING as error:
            raise Retryable(f"PostgreSQL: {error!r}") from error
        if decided is not None:
            self._note(trigger.pipeline, decided)

    def _note(self, pipeline: str, decided: Decided) -> None:
        self._board(pipeline).note(decided)
        self.enqueued()
        metrics.decisions.labels(decided.cause_kind, decided.outcome).inc()
        log.info("decided", pipeline=pipeline, cause=decided.cause_kind, id=decided.cause_id, outcome=decided.outcome)

    async def _decide(self, connection: Any, trigger: monitoring.PolicyTrigger) -> Decided | None:
        pipeline, key = trigger.pipeline, cause_key(trigger.pipeline, trigger.cause_kind, trigger.cause_id)
        await connection.execute(_LOCK, f"monitoring.policy/{pipeline}")
        event_time_us = from_timestamp(trigger.event_time)
        before = await connection.fetchrow(
            "SELECT outcome, event_time_us FROM monitoring.decision WHERE cause_key = $1", key
        )
        # What was deferred is decided again later, and not because its trigger comes twice.
        if before is not None and (before["outcome"] != DEFERRED or event_time_us <= before["event_time_us"]):
            return None
        is_open = trigger.cause_kind != DRIFT or not await findings.is_resolved(connection, trigger.cause_id)
        cause = Cause(trigger.cause_kind, trigger.cause_id, event_time_us, is_open)
        decision = decide(cause, self._registered.rules(pipeline), await self._ledger(connection, pipeline))
        asked = self._asked(pipeline, cause.kind, cause.cause_id, decision.reason, records.ACTOR)
        request = records.request(asked, trigger.evidence, trigger.positions, Moment(event_time_us, now_us()))
        decided = await self._write(connection, request, decision)
        if cause.kind == DRIFT and is_open:
            await self._tell_incident(connection, cause.cause_id, decision, request.request_id)
        return decided

    async def _ledger(self, connection: Any, pipeline: str) -> Ledger:
        rows = await connection.fetch(
            "SELECT event_time_us FROM monitoring.decision WHERE pipeline = $1 AND outcome = $2 ORDER BY event_time_us",
            pipeline,
            RETRAIN,
        )
        return Ledger([row[0] for row in rows], self._registered.champion_since_us.get(pipeline))

    def _asked(self, pipeline: str, kind: str, cause_id: str, reason: str, actor: str) -> Asked:
        definition = self._registered.definition(pipeline)
        assert definition is not None
        return Asked(pipeline, kind, cause_id, reason, actor, definition.train.window_ms * 1000)

    async def _write(self, connection: Any, request: monitoring.RetrainRequest, decision: Decision) -> Decided:
        at_us, retrain = from_timestamp(request.event_time), decision.outcome == RETRAIN
        decided = Decided(request.cause_kind, request.cause_id, decision.outcome, at_us, decision.due_us)
        await connection.execute(
            _DECIDED,
            request.cause_key,
            request.pipeline,
            *decided,
            decision.reason,
            to_json(request) if retrain else None,
        )
        if retrain:
            sent = records.outgoing(records.REQUESTS, request.pipeline, request, request.request_id)
            await OUTBOX.enqueue(connection, [sent])
        return decided

    async def _tell_incident(self, connection: Any, incident_id: str, decision: Decision, request_id: str) -> None:
        change = records.decided(decision, request_id)
        found = await findings.revise_incident(connection, incident_id, change, now_us())
        if found is not None:
            await self.tell(connection, found)

    async def tell(self, connection: Any, incident: monitoring.IncidentRecord) -> None:
        """Queue an incident's new revision in the caller's transaction."""
        identity = records.made_id(incident.incident_id, incident.revision)
        await OUTBOX.enqueue(connection, [records.outgoing(records.INCIDENTS, incident.pipeline, incident, identity)])

    async def request(
        self, pipeline: str, reason: str, actor: str, key: str, at: tuple[int, Positions]
    ) -> monitoring.RetrainRequest:
        """Ask for a retraining on an operator's word; the same key returns the first request. Raises `Retryable`."""
        event_time_us, positions = at
        asked = self._asked(pipeline, OPERATOR, key or str(uuid.uuid4()), reason, actor)
        made = records.request(asked, None, positions, Moment(event_time_us, now_us()))
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(_LOCK, f"monitoring.policy/{pipeline}")
                known = await connection.fetchval(
                    "SELECT record FROM monitoring.decision WHERE cause_key = $1", made.cause_key
                )
                if known is not None:
                    return from_json(known, monitoring.RetrainRequest())
                decided = await self._write(connection, made, Decision(RETRAIN, reason))
        except PASSING as error:
            raise Retryable(f"PostgreSQL: {error!r}") from error
        self._note(pipeline, decided)
        return made
