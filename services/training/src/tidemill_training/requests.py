"""What a retrain request must say before a run is started for it; pure."""

from tidemill_contracts.canonical import from_json
from tidemill_contracts.causes import OPERATOR, cause_key
from tidemill_contracts.instants import format_us, from_timestamp, to_timestamp
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.reasons import Reason
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_runtime.errors import Poison

TOPIC = "monitoring.retrain-requests.v1"
_MAX_TEXT = 500


def decode_request(value: bytes | None) -> monitoring.RetrainRequest:
    """Return the request of one record. Raises `Poison` with the field at fault."""
    if not value:
        raise Poison(Reason.EMPTY, "a retrain request has a value")
    try:
        request = from_json(value, monitoring.RetrainRequest())
    except ValueError as error:
        raise Poison(Reason.UNDECODABLE, f"no RetrainRequest in JSON: {error}") from error
    for field in ("pipeline", "cause_key", "cause_kind"):
        text = getattr(request, field)
        if not text:
            raise Poison(Reason.MISSING_FIELD, f"a retrain request names its {field}", field=field)
        if len(text) > _MAX_TEXT:
            raise Poison(Reason.OVERSIZED, f"{field} has more than {_MAX_TEXT} characters", field=field)
    if not request.HasField("event_time"):
        raise Poison(Reason.MISSING_FIELD, "a retrain request says up to which event time", field="event_time")
    return request


def operator_request(asked: training.SubmitRunRequest, *, key: str, actor: str) -> monitoring.RetrainRequest:
    """Return the request that an operator's call puts on the topic; `key` is what makes it one cause.

    Raises `Poison` where the call does not say why or for which pipeline.
    """
    for field in ("pipeline", "reason"):
        if not getattr(asked, field).strip():
            raise Poison(Reason.MISSING_FIELD, f"say the {field}", field=field, fix=f"fill in {field}")
    if len(asked.reason) > _MAX_TEXT or len(key) > _MAX_TEXT:
        raise Poison(Reason.OVERSIZED, f"reason and key have at most {_MAX_TEXT} characters", field="reason")
    cause = cause_key(asked.pipeline, OPERATOR, key)
    return monitoring.RetrainRequest(
        request_id=cause.removeprefix("sha256:")[:32],
        pipeline=asked.pipeline,
        cause_key=cause,
        cause_kind=OPERATOR,
        cause_id=key,
        event_time=asked.event_time if asked.HasField("event_time") else None,
        actor=actor,
        reason=asked.reason,
    )


def timed(
    request: monitoring.RetrainRequest, clock: monitoring.ClockRecord | None, now_us: int
) -> monitoring.RetrainRequest:
    """Return the request with its event time and positions: the pipeline clock's, where the operator named no time.

    Raises `Poison` where neither is known.
    """
    complete = monitoring.RetrainRequest()
    complete.CopyFrom(request)
    if not request.HasField("event_time"):
        if clock is None or not clock.HasField("event_time"):
            raise Poison(
                Reason.MISSING_FIELD,
                f"pipeline {request.pipeline!r} has no clock yet",
                field="event_time",
                fix="name the event time up to which rows are taken",
            )
        complete.event_time.CopyFrom(clock.event_time)
    if clock is not None:
        complete.positions.extend(clock.positions)
    complete.emitted_at.CopyFrom(to_timestamp(now_us))
    at = format_us(from_timestamp(complete.event_time))
    complete.summary = (
        f"{request.pipeline}: retraining on data up to {at} asked for by {request.actor}: {request.reason}"
    )
    return complete
