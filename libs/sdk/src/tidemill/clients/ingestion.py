"""Ingestion: events in, a verdict for each."""

from collections.abc import Sequence

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub

from tidemill.clients.calls import Connection


class IngestionClient:
    """Calls of `IngestionService`; every one raises `CallError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = IngestionServiceStub(connection.channel)

    def publish(self, stream: str, source: str, events: Sequence[ingestion.Event]) -> ingestion.PublishBatchResponse:
        """Send events of one stream; accepted ones are durable when this returns."""
        batch = ingestion.StreamEvents(stream=stream, source=source, events=events)
        return self._connection.call(self._stub.PublishBatch, ingestion.PublishBatchRequest(batches=[batch]))

    def check(self, stream: str, events: Sequence[ingestion.Event]) -> Sequence[ingestion.Verdict]:
        """Return what would become of events, judged as readers of the stream do; nothing is written."""
        request = ingestion.CheckEventsRequest(stream=stream, events=events, ignore_unknown_fields=True)
        return self._connection.call(self._stub.CheckEvents, request).verdicts
