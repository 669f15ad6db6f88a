"""CloudEvents and NDJSON over HTTP: a verdict per event, errors as problem+json."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_runtime.actor import ACTOR_KEY, check_actor
from tidemill_runtime.bodies import read_body
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.problems import install_problems, problem

from tidemill_ingestion.adapters.flows import Flows
from tidemill_ingestion.adapters.http_streams import VerdictLines
from tidemill_ingestion.adapters.publisher import OUTCOME_NAMES, Publisher, StreamPausedError, as_dict
from tidemill_ingestion.http_events import (
    BATCH,
    STRUCTURED,
    Parsed,
    attribute,
    batch,
    binary,
    media_type,
    structured,
)
from tidemill_ingestion.ndjson import CLOUDEVENTS_NDJSON, NDJSON
from tidemill_ingestion.settings import Settings
from tidemill_ingestion.verdicts import Refusal

SHOWN = ("all", "refused")
T = TypeVar("T")


def build_app(
    publisher: Publisher, flows: Flows, settings: Settings, require_definitions: Callable[[], None]
) -> FastAPI:
    """Return the application; it is mounted beside /live, /ready and /metrics."""
    app = FastAPI(title="Tidemill ingestion", version="1", docs_url="/docs", redoc_url=None)
    install_problems(app)
    app.add_exception_handler(ClientDisconnect, _gone)

    @app.post(
        "/v1/streams/{stream}/events",
        summary="Publish events: CloudEvents structured, binary or batch; NDJSON of any length",
        responses={
            400: {"description": "refused, with its named reason (problem+json)"},
            429: {"description": "too much is in flight; see Retry-After"},
            503: {"description": "Kafka is away, or the stream is paused; send the same event again"},
        },
    )
    async def publish(stream: str, request: Request, verdicts: str = "all") -> Response:
        require_definitions()
        kind = media_type(request.headers.get("content-type", ""))
        if kind in NDJSON or kind == CLOUDEVENTS_NDJSON:
            if verdicts not in SHOWN:
                found = f"verdicts is {verdicts[:40]!r}"
                raise Poison(Reason.OUT_OF_RANGE, found, field="verdicts", fix="ask for `all` or `refused`")
            publisher.state(stream)
            source = _taken(attribute(request.headers, "source"))
            return VerdictLines(stream, source, request, flows, settings, all_shown=verdicts == "all")
        answered = await publisher.publish_parsed([(stream, "", await events_of(request, kind))])
        return _listing(answered) if kind == BATCH else _answer(answered[0], publisher.retry_after_s(stream))

    async def events_of(request: Request, kind: str) -> Sequence[Parsed]:
        with publisher.room.hold() as hold:
            idle_s = settings.stream_idle_s
            body = await read_body(request.receive, hold, max_bytes=settings.max_http_bytes, idle_s=idle_s)
            if kind == BATCH:
                return _taken(batch(body))
            return [structured(body) if kind == STRUCTURED else binary(request.headers, body)]

    @app.get("/v1/streams/{stream}", summary="Whether the stream takes events now")
    async def state(stream: str) -> dict[str, Any]:
        require_definitions()
        return to_dict(publisher.state(stream))

    @app.post("/v1/streams/{stream}/resume", summary="End a pause at once")
    async def resume(stream: str, request: Request, reason: str = "") -> dict[str, Any]:
        require_definitions()
        actor = check_actor(request.headers.get(ACTOR_KEY, ""))
        return to_dict(publisher.resume(stream, actor, reason))

    return app


async def _gone(request: Request, error: Exception) -> Response:
    """Answer nobody: a body that breaks off is its client's affair, and no failure here."""
    return Response(status_code=400)


def _taken(found: T | Refusal) -> T:
    """Return what was read of a request. Raises `Poison` where the whole of it is refused."""
    if isinstance(found, Refusal):
        raise Poison(found.reason, found.message, field=found.field)
    return found


def _answer(verdict: messages.Verdict, retry_after_s: float) -> Response:
    """Return one event's verdict: 200 where the event is in the log, else its problem."""
    if verdict.outcome == messages.OUTCOME_REFUSED:
        return problem(Poison(Reason(verdict.reason), verdict.message, field=verdict.field))
    if verdict.outcome == messages.OUTCOME_RETRY:
        again = StreamPausedError if verdict.reason == Reason.PAUSED else Retryable
        return problem(again(verdict.message, retry_after_s=retry_after_s))
    return JSONResponse(as_dict(verdict))


def _listing(verdicts: Sequence[messages.Verdict]) -> Response:
    """Return a batch's verdicts: 200 even where some were refused, since the others are in the log."""
    counts = {name: sum(one.outcome == outcome for one in verdicts) for outcome, name in OUTCOME_NAMES.items()}
    return JSONResponse({"verdicts": [as_dict(verdict) for verdict in verdicts], **counts})
