"""Errors as HTTP answers: problem+json (RFC 9457) with the same reasons as gRPC; for a service's FastAPI app."""

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from tidemill_contracts.reasons import Reason

from tidemill_runtime import metrics
from tidemill_runtime.errors import Fatal, Poison, Retryable, TidemillError
from tidemill_runtime.rpc_errors import reason_of

_STATUS = {
    Reason.UNKNOWN_STREAM: 404,
    Reason.UNKNOWN_PIPELINE: 404,
    Reason.UNKNOWN_VIEW: 404,
    Reason.UNKNOWN_ENTITY: 404,
    Reason.UNKNOWN_VERSION: 404,
    Reason.DUPLICATE: 409,
    Reason.CONFLICT: 409,
    Reason.BREAKING_CHANGE: 409,
    Reason.NO_MODEL: 409,
    Reason.OVERSIZED: 413,
    Reason.UNSUPPORTED: 501,
    Reason.PAUSED: 503,
    Reason.OVERLOADED: 429,
    Reason.UNAVAILABLE: 503,
    Reason.DEADLINE_EXCEEDED: 504,
    Reason.HANDLER: 500,
}
_BAD_REQUEST = 400
# What FastAPI's own validation calls a fault; anything else is a value of the wrong type.
_FAULTS = {
    "missing": Reason.MISSING_FIELD,
    "extra_forbidden": Reason.UNKNOWN_FIELD,
    "json_invalid": Reason.UNDECODABLE,
    "string_unicode": Reason.BAD_UTF8,
    "finite_number": Reason.NON_FINITE,
    "string_too_long": Reason.OVERSIZED,
    "greater_than": Reason.OUT_OF_RANGE,
    "greater_than_equal": Reason.OUT_OF_RANGE,
    "less_than": Reason.OUT_OF_RANGE,
    "less_than_equal": Reason.OUT_OF_RANGE,
    "int_parsing_size": Reason.OUT_OF_RANGE,
    "literal_error": Reason.OUT_OF_RANGE,
    "enum": Reason.OUT_OF_RANGE,
}

log = structlog.get_logger(__name__)


def status_of(reason: Reason) -> int:
    """Return the HTTP status of a reason; what is wrong in the request itself is 400."""
    return _STATUS.get(reason, 400)


def problem(error: TidemillError) -> JSONResponse:
    """Return an error as an application/problem+json answer."""
    reason = reason_of(error)
    metrics.http_refused.labels(reason).inc()
    body: dict[str, Any] = {
        "type": f"urn:tidemill:reason:{reason}",
        "title": reason.value.replace("_", " "),
        "status": status_of(reason),
        "reason": reason.value,
        "detail": "the service failed; its log says why" if reason is Reason.HANDLER else str(error),
    }
    headers = {}
    if isinstance(error, Poison):
        body |= {name: text for name, text in (("field", error.field), ("fix", error.fix)) if text}
    if isinstance(error, Retryable):
        headers["Retry-After"] = str(max(1, round(error.retry_after_s or 1)))
    return JSONResponse(body, body["status"], headers, media_type="application/problem+json")


def install_problems(app: FastAPI) -> None:
    """Answer every error as problem+json: `TidemillError`, FastAPI's own validation, bodies that cannot be read."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TidemillError)
        if reason_of(error) is Reason.HANDLER:
            log.error("http_failed", path=request.url.path, error=repr(error))
        return problem(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        # Of a union's alternatives each has a fault of its own; one with a name says more than a mismatch.
        found = error.errors()
        first = next((one for one in found if one["type"] in _FAULTS), found[0])
        field = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing" and field == "body":
            return problem(Poison(Reason.EMPTY, "the request has no body"))
        return problem(Poison(_FAULTS.get(first["type"], Reason.WRONG_TYPE), first["msg"], field=field))

    async def unread(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code != _BAD_REQUEST:
            return await http_exception_handler(request, error)
        # What FastAPI says of a body that it could not parse; the cause is Python's word for it.
        bad_utf8 = isinstance(error.__cause__, UnicodeDecodeError)
        return problem(Poison(Reason.BAD_UTF8 if bad_utf8 else Reason.UNDECODABLE, f"the body: {error.__cause__}"))

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        log.error("http_failed", path=request.url.path, error=repr(error))
        return problem(Fatal(str(error)))

    app.add_exception_handler(TidemillError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unread)
    app.add_exception_handler(Exception, unexpected)
