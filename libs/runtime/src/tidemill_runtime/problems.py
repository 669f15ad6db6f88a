"""Errors as HTTP answers: problem+json (RFC 9457) with the same reasons as gRPC; for a service's FastAPI app."""

from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from tidemill_contracts.reasons import Reason

from tidemill_runtime.errors import Poison, Retryable, TidemillError
from tidemill_runtime.rpc_errors import reason_of

_STATUS = {
    Reason.UNKNOWN_STREAM: 404,
    Reason.UNKNOWN_PIPELINE: 404,
    Reason.UNKNOWN_VIEW: 404,
    Reason.UNKNOWN_ENTITY: 404,
    Reason.UNKNOWN_VERSION: 404,
    Reason.DUPLICATE: 409,
    Reason.CONFLICT: 409,
    Reason.NO_MODEL: 409,
    Reason.OVERSIZED: 413,
    Reason.UNSUPPORTED: 501,
    Reason.OVERLOADED: 429,
    Reason.UNAVAILABLE: 503,
    Reason.DEADLINE_EXCEEDED: 504,
    Reason.HANDLER: 500,
}

log = structlog.get_logger(__name__)


def status_of(reason: Reason) -> int:
    """Return the HTTP status of a reason; what is wrong in the request itself is 400."""
    return _STATUS.get(reason, 400)


def problem(error: TidemillError) -> JSONResponse:
    """Return an error as an application/problem+json answer."""
    reason = reason_of(error)
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
    """Answer every `TidemillError`, and FastAPI's own validation errors, as problem+json."""

    async def ours(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TidemillError)
        if reason_of(error) is Reason.HANDLER:
            log.error("http_failed", path=request.url.path, error=repr(error))
        return problem(error)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        reason = Reason.MISSING_FIELD if first["type"] == "missing" else Reason.WRONG_TYPE
        return problem(Poison(reason, first["msg"], field=field))

    app.add_exception_handler(TidemillError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
