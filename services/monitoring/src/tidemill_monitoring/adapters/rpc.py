"""MonitoringService over gRPC: what was measured, what changed, and the operators' three verbs."""

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tidemill_contracts.canonical import from_json
from tidemill_contracts.instants import EARLIEST_US, LATEST_US, format_us, from_timestamp, to_timestamp
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as messages
from tidemill_contracts.monitoring.v1 import monitoring_pb2_grpc as services
from tidemill_contracts.monitoring.v1 import records_pb2 as records
from tidemill_contracts.reasons import Reason
from tidemill_runtime.actor import require_actor
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.positions import Partition
from tidemill_runtime.postgres import PASSING

from tidemill_monitoring.adapters import findings
from tidemill_monitoring.adapters.joiner import Joiner
from tidemill_monitoring.adapters.policy import Policy
from tidemill_monitoring.adapters.stage import JoinStage
from tidemill_monitoring.adapters.wall import now_us
from tidemill_monitoring.clock import DAY_US
from tidemill_monitoring.records import Change
from tidemill_monitoring.registered import Registered

_DEFAULT_LIMIT = 100
_MAX_LIMIT = 10_000
_MAX_TEXT = 500
_MAX_NAMED = 5
STATUSES = ("open", "acknowledged", "resolved")

_METRICS = """
SELECT record FROM monitoring.metric WHERE pipeline = $1 AND ($2 = 0 OR model_version = $2)
ORDER BY window_end_us DESC, kind, model_version LIMIT $3
"""
_INCIDENTS = """
SELECT record FROM monitoring.incident WHERE ($1 = '' OR pipeline = $1) AND ($2 = '' OR status = $2)
ORDER BY detected_us DESC, incident_id LIMIT $3
"""
_STATS = "SELECT predictions, joined, never, corrected FROM monitoring.pipeline WHERE pipeline = $1"
_ORPHANS = """
SELECT count(*) FROM monitoring.label l WHERE l.pipeline = $1 AND NOT EXISTS (
    SELECT FROM monitoring.prediction p WHERE p.pipeline = l.pipeline AND p.join_key = l.join_key
        AND p.as_of_us BETWEEN l.earliest_us AND l.label_time_us)
"""

Context = grpc.aio.ServicerContext[Any, Any]


class MonitoringServicer(services.MonitoringServiceServicer):
    """Answers from PostgreSQL; changes go through the policy's transaction and outbox."""

    def __init__(self, pool: Any, registered: Registered, joiner: Joiner, policy: Policy, stage: JoinStage) -> None:
        self._pool = pool
        self._registered = registered
        self._joiner = joiner
        self._policy = policy
        self._stage = stage

    async def GetMetrics(  # noqa: N802 -- the wire's name
        self, request: messages.GetMetricsRequest, context: Context
    ) -> messages.GetMetricsResponse:
        self._known(request.pipeline)
        rows = await self._fetch(_METRICS, request.pipeline, request.model_version, _limit(request.limit))
        return messages.GetMetricsResponse(metrics=[from_json(row[0], records.MetricRecord()) for row in rows])

    async def ListIncidents(  # noqa: N802 -- the wire's name
        self, request: messages.ListIncidentsRequest, context: Context
    ) -> messages.ListIncidentsResponse:
        if request.pipeline:
            self._known(request.pipeline)
        if request.status and request.status not in STATUSES:
            raise Poison(
                Reason.OUT_OF_RANGE,
                f"no status {request.status!r}",
                field="status",
                fix=f"use one of: {', '.join(STATUSES)}",
            )
        rows = await self._fetch(_INCIDENTS, request.pipeline, request.status, _limit(request.limit))
        return messages.ListIncidentsResponse(incidents=[from_json(row[0], records.IncidentRecord()) for row in rows])

    async def AcknowledgeIncident(  # noqa: N802 -- the wire's name
        self, request: messages.AcknowledgeIncidentRequest, context: Context
    ) -> messages.AcknowledgeIncidentResponse:
        actor = require_actor(context)
        _check_texts(request)
        found = await self._change(request.incident_id, actor, "acknowledged", request.note)
        return messages.AcknowledgeIncidentResponse(incident=found)

    async def ResolveIncident(  # noqa: N802 -- the wire's name
        self, request: messages.ResolveIncidentRequest, context: Context
    ) -> messages.ResolveIncidentResponse:
        actor = require_actor(context)
        _check_texts(request)
        found = await self._change(request.incident_id, actor, "resolved", request.note)
        return messages.ResolveIncidentResponse(incident=found)

    async def RequestRetraining(  # noqa: N802 -- the wire's name
        self, request: messages.RequestRetrainingRequest, context: Context
    ) -> messages.RequestRetrainingResponse:
        actor = require_actor(context)
        _check_texts(request)
        self._check_joined(request.pipeline)
        if not request.reason.strip():
            raise Poison(Reason.MISSING_FIELD, "a retraining has a reason", field="reason", fix="say why")
        made = await self._policy.request(
            request.pipeline,
            request.reason,
            actor,
            request.idempotency_key,
            (await self._event_time(request), self._joiner.positions(request.pipeline)),
        )
        return messages.RequestRetrainingResponse(request=made)

    async def GetJoinStats(  # noqa: N802 -- the wire's name
        self, request: messages.GetJoinStatsRequest, context: Context
    ) -> messages.GetJoinStatsResponse:
        self._known(request.pipeline)
        rows = await self._fetch(_STATS, request.pipeline)
        predictions, joined, never, corrected = rows[0] if rows else (0, 0, 0, 0)
        orphans = await self._fetch(_ORPHANS, request.pipeline)
        return messages.GetJoinStatsResponse(
            predictions=predictions,
            joined=joined,
            pending=predictions - joined - never,
            never=never,
            corrected=corrected,
            labels_without_prediction=orphans[0][0],
            clock=_timestamp(self._clock_us(request.pipeline)),
            **self._standing(request.pipeline),
        )

    def _standing(self, pipeline: str) -> dict[str, Any]:
        """Return how far a pipeline's streams are, and what its clock waits for; nothing where none is read."""
        times = self._joiner.times
        if times is None or pipeline not in self._registered.pipelines():
            return {}
        partitions = self._registered.partitions(pipeline)
        newest = {one: times.newest(one) for one in partitions}
        held_by = [
            messages.PartitionTime(topic=one.topic, partition=one.number, newest=_timestamp(newest[one]))
            for one in times.holding(partitions, now_us())
        ]
        known = [time for time in newest.values() if time is not None]
        return {"newest": _timestamp(max(known, default=None)), "held_by": held_by}

    def _clock_us(self, pipeline: str) -> int | None:
        """Return a pipeline's clock, also where no batch has come since it was registered."""
        clock_us, times = self._joiner.clocks.get(pipeline), self._joiner.times
        if clock_us is None and times is not None and pipeline in self._registered.pipelines():
            return times.clock(self._registered.partitions(pipeline), now_us())
        return clock_us

    async def _event_time(self, request: messages.RequestRetrainingRequest) -> int:
        pipeline, partitions = request.pipeline, self._registered.partitions(request.pipeline)
        if request.HasField("event_time"):
            asked_us = from_timestamp(request.event_time)
            _check_instant(asked_us)
            if asked_us > self._newest_us(partitions) + DAY_US:
                await self._stage.caught_up(partitions)
                self._check_reached(asked_us, pipeline, partitions)
            return asked_us
        # Who has just sent events and asks for a model means a model of these.
        await self._stage.caught_up(partitions)
        clock_us = self._clock_us(pipeline)
        if clock_us is None:
            raise self._without_clock(pipeline, partitions)
        return clock_us

    def _newest_us(self, partitions: Sequence[Partition]) -> int:
        """Return the newest event time that these partitions carry; now, where they carry none."""
        times = self._joiner.times
        newest = [times.newest(partition) for partition in partitions] if times is not None else []
        return max((one for one in newest if one is not None), default=now_us())

    def _check_reached(self, asked_us: int, pipeline: str, partitions: Sequence[Partition]) -> None:
        """Refuse a slip of the pen, from which the schedule would count for years. Raises `Poison`."""
        newest_us = self._newest_us(partitions)
        if asked_us > newest_us + DAY_US:
            raise Poison(
                Reason.OUT_OF_RANGE,
                f"{format_us(asked_us)} lies more than a day beyond the newest event of {pipeline}'s streams, "
                f"{format_us(newest_us)}",
                field="event_time",
                fix="leave it out: rows are then taken up to the pipeline's clock",
            )

    def _without_clock(self, pipeline: str, partitions: Sequence[Partition]) -> Poison | Retryable:
        silent = self._joiner.times.silent(partitions) if self._joiner.times is not None else []
        if not silent:
            return Retryable(f"what was written before the start is not read yet: {pipeline} has no clock so far")
        named = ", ".join(f"{one.topic}[{one.number}]" for one in silent[:_MAX_NAMED])
        others = f" and {len(silent) - _MAX_NAMED} more" if len(silent) > _MAX_NAMED else ""
        return Poison(
            Reason.MISSING_FIELD,
            f"{pipeline} has no clock yet: no event has come on {named}{others}",
            field="event_time",
            fix="name the event time up to which rows are to be taken",
        )

    async def _change(self, incident_id: str, actor: str, status: str, note: str) -> records.IncidentRecord:
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                stored = await connection.fetchval(
                    "SELECT record FROM monitoring.incident WHERE incident_id = $1 FOR UPDATE", incident_id
                )
                if stored is None:
                    raise Poison(Reason.UNKNOWN_ENTITY, f"no incident {incident_id!r}", field="incident_id")
                before = from_json(stored, records.IncidentRecord())
                if before.status in (status, "resolved"):
                    return before
                change = Change(actor, f"{status} by {actor}" + (f": {note}" if note else ""), status)
                found = await findings.revise_incident(connection, incident_id, change, now_us())
                assert found is not None
                await self._policy.tell(connection, found)
        except PASSING as error:
            raise Retryable(f"PostgreSQL: {error!r}") from error
        self._policy.enqueued()
        return found

    def _known(self, pipeline: str) -> None:
        if self._registered.definition(pipeline) is None:
            known = ", ".join(self._registered.pipelines()) or "none"
            raise Poison(
                Reason.UNKNOWN_PIPELINE, f"no pipeline {pipeline!r}", field="pipeline", fix=f"registered: {known}"
            )

    def _check_joined(self, pipeline: str) -> None:
        self._known(pipeline)
        if fault := self._registered.faults.get(pipeline):
            raise Poison(Reason.UNSUPPORTED, f"pipeline {pipeline!r} cannot be joined: {fault}", field="pipeline")

    async def _fetch(self, query: str, *arguments: object) -> Sequence[Any]:
        try:
            found: Sequence[Any] = await self._pool.fetch(query, *arguments)
        except PASSING as error:
            raise Retryable(f"PostgreSQL: {error!r}") from error
        return found


def _check_texts(request: Message) -> None:
    """Refuse texts that are longer or stranger than PostgreSQL takes. Raises `Poison`."""
    for field, value in request.ListFields():
        if isinstance(value, str) and "\0" in value:
            raise Poison(Reason.BAD_UTF8, f"{field.name} holds a NUL character", field=field.name)
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            raise Poison(Reason.OVERSIZED, f"{field.name} has more than {_MAX_TEXT} characters", field=field.name)


def _check_instant(instant_us: int) -> None:
    if not EARLIEST_US <= instant_us < LATEST_US:
        bounds = f"{format_us(EARLIEST_US)} to {format_us(LATEST_US)}"
        raise Poison(Reason.OUT_OF_RANGE, f"it lies outside {bounds}", field="event_time")


def _timestamp(time_us: int | None) -> Timestamp | None:
    return None if time_us is None else to_timestamp(time_us)


def _limit(asked: int) -> int:
    if not 0 <= asked <= _MAX_LIMIT:
        raise Poison(Reason.OUT_OF_RANGE, f"limit must be 0 to {_MAX_LIMIT}", field="limit")
    return asked or _DEFAULT_LIMIT
