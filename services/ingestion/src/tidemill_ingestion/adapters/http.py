"""CloudEvents and NDJSON over HTTP: a verdict per event, errors as problem+json."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from tidemill_contracts.canonical import to_dict
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_runtime.actor import ACTOR_KEY, check_actor
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.problems import install_problems, problem

from tidemill_ingestion.adapters.flows import Flows
from tidemill_ingestion.adapters.http_streams import VerdictLines
from tidemill_ingestion.adapters.publisher import OUTCOME_NAMES, Publisher, StreamPausedError, as_dict
from tidemill_ingestion.http_events import BATCH, STRUCTURED, batch, binary, media_type, structured
from tidemill_ingestion.ndjson import CLOUDEVENTS_NDJSON, NDJSON
from tidemill_ingestion.settings import Settings
from tidemill_ingestion.verdicts import Refusal

SHOWN = ("all", "refused")


def build_app(
    publisher: Publisher, flows: Flows, settings: Settings, require_definitions: Callable[[], None]
) -> FastAPI:
    """Return the application; it is mounted beside /live, /ready and /metrics."""
    app = FastAPI(title="Tidemill ingestion", version="1", docs_url="/docs", redoc_url=None)
    install_problems(app)

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
            return VerdictLines(stream, request, flows, settings, all_shown=verdicts == "all")
        body = await _body(request, settings.max_http_bytes)
        if kind == BATCH:
            events = batch(body)
            if isinstance(events, Refusal):
                raise Poison(events.reason, events.message, field=events.field)
            return _listing(await publisher.publish_parsed([(stream, "", events)]))
        event = structured(body) if kind == STRUCTURED else binary(request.headers, body)
        (verdict,) = await publisher.publish_parsed([(stream, "", [event])])
        return _answer(verdict, publisher.retry_after_s(stream))

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


async def _body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise Poison(Reason.OVERSIZED, f"the body has more than {max_bytes:,} bytes", fix="send smaller batches")
    return bytes(body)


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
