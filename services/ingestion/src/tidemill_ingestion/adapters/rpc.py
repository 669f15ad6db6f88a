"""IngestionService over gRPC."""

# ruff: noqa: N802 -- methods carry the names of the wire

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import Any

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.ingestion.v1 import ingestion_pb2_grpc as services
from tidemill_runtime.actor import require_actor
from tidemill_runtime.bodies import IdleError
from tidemill_runtime.rpc_errors import DETAILS_KEY, to_status

from tidemill_ingestion.adapters.flows import Flows, Portion
from tidemill_ingestion.adapters.publisher import Publisher
from tidemill_ingestion.settings import Settings

# To hand gRPC the end of a call that it cannot deliver yet.
_ABORT_S = 1.0


class IngestionServicer(services.IngestionServiceServicer):
    """Answers for events one by one, in batches and in streams."""

    def __init__(
        self, publisher: Publisher, flows: Flows, settings: Settings, require_definitions: Callable[[], None]
    ) -> None:
        """Take what publishes, and what raises while the streams are not known yet."""
        self._publisher = publisher
        self._flows = flows
        self._idle_s = settings.stream_idle_s
        self._require_definitions = require_definitions

    async def Publish(self, request: messages.PublishRequest, context: Any) -> messages.PublishResponse:
        self._require_definitions()
        batch = messages.StreamEvents(stream=request.stream, events=[request.event])
        response = await self._publisher.publish([batch])
        return messages.PublishResponse(verdict=response.verdicts[0])

    async def PublishBatch(self, request: messages.PublishBatchRequest, context: Any) -> messages.PublishBatchResponse:
        self._require_definitions()
        watermark = request.watermark if request.HasField("watermark") else None
        return await self._publisher.publish(request.batches, watermark)

    async def PublishStream(
        self, request_iterator: AsyncIterator[messages.PublishStreamRequest], context: Any
    ) -> AsyncIterator[messages.PublishStreamResponse]:
        self._require_definitions()
        first = 0
        with self._flows.one():
            # Only a call whose metadata is sent can be ended while its first response is under way.
            await context.send_initial_metadata(())
            async with aclosing(self._flows.verdicts(_portions(request_iterator))) as answered:
                async for verdicts in answered:
                    await self._give(messages.PublishStreamResponse(first=first, verdicts=verdicts), context)
                    first += len(verdicts)
        if False:
            # Responses are written, since nothing bounds the wait for one that is yielded.
            yield

    async def _give(self, response: messages.PublishStreamResponse, context: Any) -> None:
        """Write a response, or end the call where its caller takes none for too long."""
        try:
            async with asyncio.timeout(self._idle_s):
                await context.write(response)
        except TimeoutError:
            error = IdleError(
                f"no verdict was read for {self._idle_s:.0f} s: begin a new request, and read while sending"
            )
            code, status = to_status(error)
            # The status stands behind what the caller does not read; it would be waited for as long as that.
            with suppress(TimeoutError):
                async with asyncio.timeout(_ABORT_S):
                    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))
            raise asyncio.CancelledError from None

    async def CheckEvents(self, request: messages.CheckEventsRequest, context: Any) -> messages.CheckEventsResponse:
        self._require_definitions()
        return self._publisher.check_events(request)

    async def GetStreamState(
        self, request: messages.GetStreamStateRequest, context: Any
    ) -> messages.GetStreamStateResponse:
        self._require_definitions()
        return messages.GetStreamStateResponse(state=self._publisher.state(request.stream))

    async def ResumeStream(self, request: messages.ResumeStreamRequest, context: Any) -> messages.ResumeStreamResponse:
        actor = require_actor(context)
        self._require_definitions()
        state = self._publisher.resume(request.stream, actor, request.reason)
        return messages.ResumeStreamResponse(state=state)


async def _portions(requests: AsyncIterator[messages.PublishStreamRequest]) -> AsyncIterator[Portion]:
    """Yield what each message holds; stream and source stay those of the message before where it names none."""
    stream = source = ""
    async for request in requests:
        stream, source = request.stream or stream, request.source or source
        if request.events:
            yield Portion(stream, source, request.events, sum(len(event.data) for event in request.events))
