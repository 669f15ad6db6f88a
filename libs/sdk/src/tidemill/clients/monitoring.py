"""Monitoring: metrics, incidents and retraining on request."""

from collections.abc import Sequence

from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.monitoring.v1 import monitoring_pb2 as monitoring
from tidemill_contracts.monitoring.v1 import records_pb2 as records
from tidemill_contracts.monitoring.v1.monitoring_pb2_grpc import MonitoringServiceStub

from tidemill.clients.calls import Connection


class MonitoringClient:
    """Calls of `MonitoringService`; every one raises `CallError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = MonitoringServiceStub(connection.channel)

    def incidents(self, pipeline: str, status: str, limit: int) -> Sequence[records.IncidentRecord]:
        """Return incidents, newest first; empty texts ask for all."""
        request = monitoring.ListIncidentsRequest(pipeline=pipeline, status=status, limit=limit)
        return self._connection.call(self._stub.ListIncidents, request).incidents

    def metrics(self, pipeline: str, limit: int) -> Sequence[records.MetricRecord]:
        """Return a pipeline's metrics, newest first."""
        request = monitoring.GetMetricsRequest(pipeline=pipeline, limit=limit)
        return self._connection.call(self._stub.GetMetrics, request).metrics

    def join_stats(self, pipeline: str) -> monitoring.GetJoinStatsResponse:
        """Return what became of a pipeline's predictions, and how far its clock is."""
        return self._connection.call(self._stub.GetJoinStats, monitoring.GetJoinStatsRequest(pipeline=pipeline))

    def acknowledge(self, incident_id: str, note: str, by: str) -> records.IncidentRecord:
        """Say that somebody looks after an incident."""
        request = monitoring.AcknowledgeIncidentRequest(incident_id=incident_id, note=note)
        return self._connection.call(self._stub.AcknowledgeIncident, request, by=by).incident

    def resolve(self, incident_id: str, note: str, by: str) -> records.IncidentRecord:
        """Close an incident."""
        request = monitoring.ResolveIncidentRequest(incident_id=incident_id, note=note)
        return self._connection.call(self._stub.ResolveIncident, request, by=by).incident

    def retrain(
        self, pipeline: str, reason: str, key: str, by: str, *, at_us: int | None = None
    ) -> records.RetrainRequest:
        """Ask for a training run; the same key asks for the same one."""
        request = monitoring.RequestRetrainingRequest(pipeline=pipeline, reason=reason, idempotency_key=key)
        if at_us is not None:
            request.event_time.CopyFrom(to_timestamp(at_us))
        return self._connection.call(self._stub.RequestRetraining, request, by=by).request
