"""IngestionService over gRPC."""

# ruff: noqa: N802 -- methods carry the names of the wire

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.ingestion.v1 import ingestion_pb2_grpc as services
from tidemill_runtime.actor import require_actor

from tidemill_ingestion.adapters.flows import Flows, Portion
from tidemill_ingestion.adapters.publisher import Publisher


class IngestionServicer(services.IngestionServiceServicer):
    """Answers for events one by one, in batches and in streams."""

    def __init__(self, publisher: Publisher, flows: Flows, require_definitions: Callable[[], None]) -> None:
        """Take what publishes, and what raises while the streams are not known yet."""
        self._publisher = publisher
        self._flows = flows
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
            async with aclosing(self._flows.verdicts(_portions(request_iterator))) as answered:
                async for verdicts in answered:
                    yield messages.PublishStreamResponse(first=first, verdicts=verdicts)
                    first += len(verdicts)

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
