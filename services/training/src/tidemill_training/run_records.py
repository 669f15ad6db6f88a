"""What training says on training.runs.v1: one record per step of a run, each with a sentence; pure."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct
from tidemill_contracts.instants import format_us, from_timestamp, to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.training.v1 import training_pb2 as training

from tidemill_training.spec import Done, Progress

TOPIC = "training.runs.v1"
STARTED = "started"
PROGRESS = "progress"
SUCCEEDED = "succeeded"
FAILED = "failed"
CANCELLED = "cancelled"
ENDINGS = (SUCCEEDED, FAILED, CANCELLED)


def started(run: registry.Run, request: monitoring.RetrainRequest, now_us: int) -> training.RunRecord:
    """Say that an attempt begins."""
    record = _record(run.run_id, request, STARTED, now_us)
    attempt = f", attempt {run.attempts}" if run.attempts > 1 else ""
    why = f": {request.reason}" if request.reason else ""
    at = format_us(from_timestamp(request.event_time))
    record.summary = f"{request.pipeline}: training on data up to {at} began{attempt} ({request.cause_kind}{why})."
    return record


def progressed(run_id: str, request: monitoring.RetrainRequest, progress: Progress, now_us: int) -> training.RunRecord:
    """Say how far an attempt is."""
    record = _record(run_id, request, PROGRESS, now_us)
    record.phase, record.progress = progress.phase, progress.progress
    record.summary = f"{request.pipeline}: {progress.phase}, {progress.progress:.0%}."
    return record


def succeeded(
    run_id: str, request: monitoring.RetrainRequest, version: records.VersionRecord, details: Struct, now_us: int
) -> training.RunRecord:
    """Say that a version was registered, whether its gates let it on or not."""
    record = _record(run_id, request, SUCCEEDED, now_us)
    record.version, record.progress = version.version, 1.0
    record.metrics.update(version.metrics)
    record.details.CopyFrom(details)
    closed = [gate for gate in version.gates if not gate.passed]
    loss = f"log loss {version.metrics['log_loss']:.4f}" if "log_loss" in version.metrics else "no log loss"
    verdict = f"refused by {closed[0].gate}: {closed[0].reason}" if closed else "every gate passed."
    record.summary = (
        f"{request.pipeline} v{version.version} trained on {version.lineage.rows:,} rows, "
        f"{loss} on the newest rows; {verdict}"
    )
    return record


def ended(run_id: str, request: monitoring.RetrainRequest, status: str, reason: str, now_us: int) -> training.RunRecord:
    """Say that a run failed or was cancelled, and why."""
    record = _record(run_id, request, status, now_us)
    record.reason = reason
    record.summary = f"{request.pipeline}: training {status}: {reason.rstrip('.')}."
    return record


def details_of(done: Done) -> Struct:
    """Return the figures of a finished run as the wire carries them."""
    return ParseDict(_plain(done.details), Struct())


def _record(run_id: str, request: monitoring.RetrainRequest, status: str, now_us: int) -> training.RunRecord:
    return training.RunRecord(
        run_id=run_id,
        pipeline=request.pipeline,
        status=status,
        request_id=request.request_id,
        cause_kind=request.cause_kind,
        requested_at=request.event_time,
        emitted_at=to_timestamp(now_us),
    )


def _plain(details: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in details.items() if value is not None}
