"""Errors as gRPC answers and back: `google.rpc.Status` with details that name the reason, the field and the fix."""

from collections.abc import Iterable

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Overloaded, Poison, Retryable, TidemillError

DOMAIN = "tidemill"
DETAILS_KEY = "grpc-status-details-bin"
# Clients drop an answer with more than 8 KiB of metadata and see RESOURCE_EXHAUSTED instead. The message goes twice: by
# itself with what is not printable ASCII as %XX, and in the status, which some clients count in base64.
_MESSAGE_BYTES = 1_800
_STATUS_BYTES = 4_096
_FIX_BYTES = 500
_FIELD_BYTES = 200
_VIOLATION_BYTES = 1_000
# What protobuf puts before a violation.
_FRAME_BYTES = 4

_CODES = {
    Reason.UNKNOWN_STREAM: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_PIPELINE: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_VIEW: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_ENTITY: grpc.StatusCode.NOT_FOUND,
    Reason.UNKNOWN_VERSION: grpc.StatusCode.NOT_FOUND,
    Reason.DUPLICATE: grpc.StatusCode.ALREADY_EXISTS,
    Reason.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.BREAKING_CHANGE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.NO_MODEL: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.PAUSED: grpc.StatusCode.UNAVAILABLE,
    Reason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.HANDLER: grpc.StatusCode.INTERNAL,
}


def code_of(reason: Reason) -> grpc.StatusCode:
    """Return the status code of a reason; what is wrong in the request itself is INVALID_ARGUMENT."""
    return _CODES.get(reason, grpc.StatusCode.INVALID_ARGUMENT)


def reason_of(error: TidemillError) -> Reason:
    """Return the named reason of an error; what is not meant for callers is `handler`."""
    return error.reason if isinstance(error, Poison | Retryable) else Reason.HANDLER


def to_status(error: TidemillError) -> tuple[grpc.StatusCode, status_pb2.Status]:
    """Return the code and the rich status of an error, cut to what gRPC carries."""
    reason = reason_of(error)
    code = code_of(reason)
    message = "the service failed; its log says why" if reason is Reason.HANDLER else _cut(_text(error), _MESSAGE_BYTES)
    status = status_pb2.Status(code=code.value[0], message=message)
    metadata = {"fix": _cut(error.fix, _FIX_BYTES)} if isinstance(error, Poison) and error.fix else {}
    _pack(status, details.ErrorInfo(reason=reason.value.upper(), domain=DOMAIN, metadata=metadata))
    if isinstance(error, Poison) and error.field:
        named = error.violations or [(error.field, _text(error))]
        found = _violations(named, _STATUS_BYTES - status.ByteSize())
        _pack(status, details.BadRequest(field_violations=found))
        if len(found) < len(named):
            status.message += f" (the first {len(found)} of {len(named)} are named)"
    if isinstance(error, Retryable):
        retry = details.RetryInfo()
        retry.retry_delay.FromMilliseconds(int((error.retry_after_s or 0.1) * 1000))
        _pack(status, retry)
    return code, status


def from_rpc(error: grpc.aio.AioRpcError) -> TidemillError:
    """Return a failed call as an instruction to the caller's runtime; the peer's reason and field are kept."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status.ParseFromString(value)
    info = details.ErrorInfo()
    bad = details.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(bad)
    message = error.details() or error.code().name
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and _known(info.reason) is Reason.OVERLOADED:
        return Overloaded(message, retry_after_s=_retry_after_s(status.details))
    if error.code() in _RETRYABLE:
        return Retryable(message, retry_after_s=_retry_after_s(status.details))
    field = bad.field_violations[0].field if bad.field_violations else ""
    return Poison(_known(info.reason) or Reason.HANDLER, message, field=field, fix=info.metadata.get("fix", ""))


_RETRYABLE = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


def _known(name: str) -> Reason | None:
    return Reason(name.lower()) if name.lower() in set(Reason) else None


def _retry_after_s(found: Iterable[AnyMessage]) -> float | None:
    retry = details.RetryInfo()
    return next((retry.retry_delay.ToMilliseconds() / 1000 for detail in found if detail.Unpack(retry)), None)


def _text(error: TidemillError) -> str:
    fix = error.fix if isinstance(error, Poison) else ""
    return f"{error}; {fix}" if fix else str(error)


def _violations(named: Iterable[tuple[str, str]], room: int) -> list[details.BadRequest.FieldViolation]:
    """Return as many violations as fit, and the first whatever the room: the bounds of its texts leave some."""
    found: list[details.BadRequest.FieldViolation] = []
    for field, text in named:
        one = details.BadRequest.FieldViolation(
            field=_cut(field, _FIELD_BYTES), description=_cut(text, _VIOLATION_BYTES)
        )
        room -= one.ByteSize() + _FRAME_BYTES
        if found and room < 0:
            break
        found.append(one)
    return found


def _cut(text: str, room: int) -> str:
    """Return a text that takes at most about `room` bytes where gRPC writes what is not printable ASCII as %XX."""
    for place, character in enumerate(text):
        room -= 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
        if room < 0:
            return text[:place] + "…"
    return text


def _pack(status: status_pb2.Status, detail: object) -> None:
    packed = AnyMessage()
    packed.Pack(detail)  # type: ignore[arg-type]
    status.details.append(packed)
