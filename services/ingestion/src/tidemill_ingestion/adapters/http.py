"""CloudEvents over HTTP: one event or a batch per request, a verdict per event, errors as problem+json."""

from collections.abc import Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.reasons import Reason
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.problems import install_problems, problem

from tidemill_ingestion.adapters.publisher import OUTCOME_NAMES, Publisher
from tidemill_ingestion.http_events import BATCH, STRUCTURED, Parsed, batch, binary, media_type, structured
from tidemill_ingestion.verdicts import Refusal


def build_app(publisher: Publisher, require_definitions: Callable[[], None], max_bytes: int) -> FastAPI:
    """Return the application; it is mounted beside /live, /ready and /metrics."""
    app = FastAPI(title="Tidemill ingestion", version="1", docs_url="/docs", redoc_url=None)
    install_problems(app)

    @app.post(
        "/v1/streams/{stream}/events",
        summary="Publish CloudEvents: structured, binary or batch",
        responses={
            400: {"description": "refused, with its named reason (problem+json)"},
            429: {"description": "too much is in flight; see Retry-After"},
            503: {"description": "Kafka is away; send the same event again"},
        },
    )
    async def publish(stream: str, request: Request) -> Response:
        require_definitions()
        body = await _body(request, max_bytes)
        kind = media_type(request.headers.get("content-type", ""))
        if kind == BATCH:
            events = batch(body)
            if isinstance(events, Refusal):
                raise _poison(events)
            return _listing(await _verdicts(publisher, stream, events))
        event = structured(body) if kind == STRUCTURED else binary(request.headers, body)
        return _answer((await _verdicts(publisher, stream, [event]))[0])

    return app


async def _body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise Poison(Reason.OVERSIZED, f"the body has more than {max_bytes:,} bytes", fix="send smaller batches")
    return bytes(body)


async def _verdicts(publisher: Publisher, stream: str, events: Sequence[Parsed]) -> list[messages.Verdict]:
    """Publish what could be read and return a verdict per event, in order."""
    readable = [event for event in events if isinstance(event, messages.Event)]
    response = await publisher.publish([messages.StreamEvents(stream=stream, events=readable)])
    publisher.count_unread(stream, [event for event in events if isinstance(event, Refusal)])
    published = iter(response.verdicts)
    return [_refused(event) if isinstance(event, Refusal) else next(published) for event in events]


def _refused(refusal: Refusal) -> messages.Verdict:
    return messages.Verdict(
        outcome=messages.OUTCOME_REFUSED,
        reason=refusal.reason.value,
        field=refusal.field,
        message=refusal.message,
    )


def _poison(refusal: Refusal) -> Poison:
    return Poison(refusal.reason, refusal.message, field=refusal.field)


def _answer(verdict: messages.Verdict) -> Response:
    """Return one event's verdict: 200 where the event is in the log, else its problem."""
    if verdict.outcome == messages.OUTCOME_REFUSED:
        return problem(Poison(Reason(verdict.reason), verdict.message, field=verdict.field))
    if verdict.outcome == messages.OUTCOME_RETRY:
        return problem(Retryable(verdict.message, retry_after_s=1.0))
    return JSONResponse(_as_dict(verdict))


def _listing(verdicts: Sequence[messages.Verdict]) -> Response:
    """Return a batch's verdicts: 200 even where some were refused, since the others are in the log."""
    counts = {name: sum(one.outcome == outcome for one in verdicts) for outcome, name in OUTCOME_NAMES.items()}
    return JSONResponse({"verdicts": [_as_dict(verdict) for verdict in verdicts], **counts})


def _as_dict(verdict: messages.Verdict) -> dict[str, Any]:
    shown: dict[str, Any] = {"outcome": OUTCOME_NAMES[verdict.outcome]}
    if verdict.HasField("offset"):
        return shown | {"partition": verdict.partition, "offset": verdict.offset}
    texts = {"reason": verdict.reason, "field": verdict.field, "message": verdict.message}
    return shown | {name: text for name, text in texts.items() if text}
