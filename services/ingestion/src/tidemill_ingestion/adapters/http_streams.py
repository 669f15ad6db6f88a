"""An NDJSON body of any length, answered line by line while it comes."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any

import orjson
import structlog
from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_runtime.errors import TidemillError
from tidemill_runtime.rpc_errors import reason_of

from tidemill_ingestion.adapters.flows import Flows, Portion
from tidemill_ingestion.adapters.publisher import OUTCOME_NAMES, as_dict
from tidemill_ingestion.http_events import media_type
from tidemill_ingestion.ndjson import CLOUDEVENTS_NDJSON, Line, Lines, event_of
from tidemill_ingestion.settings import Settings

_SILENT = {messages.OUTCOME_ACCEPTED, messages.OUTCOME_DUPLICATE}

log = structlog.get_logger(__name__)


class VerdictLines(Response):
    """Reads the request's body and answers with a line per event, then one that says how it ended.

    Starlette's own streaming response would read the body too, to hear of a client that goes.
    """

    media_type = "application/x-ndjson"

    def __init__(
        self, stream: str, source: str, request: Request, flows: Flows, settings: Settings, *, all_shown: bool
    ) -> None:
        """Take the source of lines that name none; show the verdict on every event, or only where it is not written."""
        super().__init__()
        self._stream = stream
        self._source = source
        self._request = request
        self._flows = flows
        self._settings = settings
        self._all_shown = all_shown
        self._numbers: deque[int] = deque()
        self._counts: Counter[str] = Counter()
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; an error before the first verdict is an answer of its own, a later one stands in the last line."""
        failure: TidemillError | None = None
        try:
            with self._flows.one():
                async with aclosing(self._flows.verdicts(self._portions())) as answered:
                    async for verdicts in answered:
                        await self._write(send, self._lines(verdicts))
        except TidemillError as error:
            if not self._started:
                raise
            failure = error
        except (ClientDisconnect, TimeoutError) as error:
            # Everything that was read is published; there is nobody to tell.
            log.info("ndjson_client_gone", stream=self._stream, error=repr(error), **self._counts)
            return
        await self._write(send, orjson.dumps(self._last(failure)) + b"\n", more=False)

    async def _portions(self) -> AsyncIterator[Portion]:
        """Yield the lines of the body as they come; one that breaks off leaves its unfinished line unread."""
        lines = Lines(self._settings.max_line_bytes)
        async for piece in self._request.stream():
            if found := list(lines.feed(piece)):
                yield self._portion(found)
        if last := list(lines.end()):
            yield self._portion(last)

    def _portion(self, lines: Sequence[Line]) -> Portion:
        envelope = media_type(self._request.headers.get("content-type", "")) == CLOUDEVENTS_NDJSON
        self._numbers.extend(line.number for line in lines)
        events = [event_of(line, self._settings.max_line_bytes, envelope=envelope) for line in lines]
        size = sum(len(line.content or b"") for line in lines)
        return Portion(self._stream, self._source, events, size)

    def _lines(self, verdicts: Sequence[messages.Verdict]) -> bytes:
        answer = bytearray()
        for verdict in verdicts:
            number = self._numbers.popleft()
            self._counts[OUTCOME_NAMES[verdict.outcome]] += 1
            if self._all_shown or verdict.outcome not in _SILENT:
                answer += orjson.dumps({"line": number} | as_dict(verdict)) + b"\n"
        return bytes(answer)

    def _last(self, failure: TidemillError | None) -> dict[str, Any]:
        counts = {name: self._counts[name] for name in OUTCOME_NAMES.values()}
        if failure is None:
            return {"done": True, **counts}
        return {"done": False, **counts, "reason": reason_of(failure).value, "message": str(failure)}

    async def _write(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Send a part of the answer. Raises `TimeoutError` where the client takes none of it for too long."""
        async with asyncio.timeout(self._settings.stream_idle_s):
            if not self._started:
                self._started = True
                headers = [(b"content-type", b"application/x-ndjson")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            if body or not more:
                await send({"type": "http.response.body", "body": body, "more_body": more})
