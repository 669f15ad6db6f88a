"""What an evaluation leaves in PostgreSQL: metrics, incidents, snapshots; and what may be forgotten."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tidemill_contracts.canonical import to_json
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as records
from tidemill_contracts.serving.v1 import records_pb2 as serving

from tidemill_monitoring.records import Change, revised

# Enough rows for histograms of any feature.
PROFILE_ROWS = 20_000

_METRIC = """
INSERT INTO monitoring.metric (pipeline, model_version, kind, window_end_us, record)
SELECT * FROM unnest($1::text[], $2::int[], $3::text[], $4::bigint[], $5::bytea[])
ON CONFLICT (pipeline, window_end_us, kind, model_version) DO UPDATE SET record = excluded.record
"""
_INCIDENT = """
INSERT INTO monitoring.incident (incident_id, pipeline, status, detected_us, record) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (incident_id) DO UPDATE SET status = excluded.status, record = excluded.record
"""
_SNAPSHOT = """
INSERT INTO monitoring.snapshot (pipeline, tick_us, state) VALUES ($1, $2, $3::jsonb)
ON CONFLICT (pipeline) DO UPDATE SET tick_us = excluded.tick_us, state = excluded.state
"""
# By a hash: ids are the caller's and may rise with time, so that the first of them would be one part of the day.
_SERVED = """
SELECT record FROM monitoring.prediction WHERE pipeline || '' = $1 AND as_of_us >= $2 AND as_of_us < $3
ORDER BY hashtextextended(prediction_id, 0), prediction_id LIMIT $4
"""
_RETENTION = """
INSERT INTO monitoring.retention (pipeline, predictions_us, labels_us, outcomes_us) VALUES ($1, $2, $3, $4)
ON CONFLICT (pipeline) DO UPDATE SET predictions_us = excluded.predictions_us, labels_us = excluded.labels_us,
    outcomes_us = excluded.outcomes_us
"""
_FORGET_METRICS = "DELETE FROM monitoring.metric WHERE pipeline = $1 AND window_end_us < $2"


class Retention(NamedTuple):
    """Event times before which predictions, labels and outcomes are forgotten; metrics go with the outcomes."""

    predictions_us: int
    labels_us: int
    outcomes_us: int


async def add_metrics(connection: Any, found: Sequence[records.MetricRecord]) -> None:
    """Keep metrics for `GetMetrics`."""
    if not found:
        return
    await connection.execute(
        _METRIC,
        [one.pipeline for one in found],
        [one.model_version for one in found],
        [one.kind for one in found],
        [from_timestamp(one.window_end) for one in found],
        [to_json(one) for one in found],
    )


async def put_incident(connection: Any, found: records.IncidentRecord) -> None:
    """Write an incident's newest revision."""
    await connection.execute(
        _INCIDENT,
        found.incident_id,
        found.pipeline,
        found.status,
        from_timestamp(found.detected_at),
        to_json(found),
    )


async def revise_incident(
    connection: Any, incident_id: str, change: Change, emitted_at_us: int
) -> records.IncidentRecord | None:
    """Lock an incident, write its next revision and return it; None where there is no such incident."""
    raw = await connection.fetchval(
        "SELECT record FROM monitoring.incident WHERE incident_id = $1 FOR UPDATE", incident_id
    )
    if raw is None:
        return None
    found = revised(raw, change, emitted_at_us)
    await put_incident(connection, found)
    return found


async def is_resolved(connection: Any, incident_id: str) -> bool:
    """Return whether an incident has been resolved."""
    status = await connection.fetchval("SELECT status FROM monitoring.incident WHERE incident_id = $1", incident_id)
    return bool(status == "resolved")


async def put_snapshot(connection: Any, pipeline: str, tick_us: int, state: Mapping[str, Any]) -> None:
    """Keep a pipeline's state at midnight."""
    await connection.execute(_SNAPSHOT, pipeline, tick_us, json.dumps(state))


async def served(connection: Any, pipeline: str, from_us: int, to_us: int) -> list[serving.PredictionRecord]:
    """Return predictions asked in [from_us, to_us), a sample of them where there are very many."""
    rows = await connection.fetch(_SERVED, pipeline, from_us, to_us, PROFILE_ROWS)
    return [serving.PredictionRecord.FromString(row[0]) for row in rows]


async def forget(connection: Any, pipeline: str, before: Retention) -> None:
    """Let go of what is too old to matter: `forgetting` deletes it in pages, once this is committed."""
    await connection.execute(_RETENTION, pipeline, *before)
    # Few: some for each day and hour.
    await connection.execute(_FORGET_METRICS, pipeline, before.outcomes_us)


def state_of(text: str) -> dict[str, Any]:
    """Return what `put_snapshot` kept."""
    found: dict[str, Any] = json.loads(text)
    return found
