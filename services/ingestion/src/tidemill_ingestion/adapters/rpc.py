"""IngestionService over gRPC."""

# ruff: noqa: N802 -- methods carry the names of the wire

from collections.abc import Callable
from typing import Any

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.ingestion.v1 import ingestion_pb2_grpc as services

from tidemill_ingestion.adapters.publisher import Publisher


class IngestionServicer(services.IngestionServiceServicer):
    """Answers Publish and PublishBatch."""

    def __init__(self, publisher: Publisher, require_definitions: Callable[[], None]) -> None:
        """Take what publishes, and what raises while the streams are not known yet."""
        self._publisher = publisher
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
