"""Ingestion: events in, a verdict for each; streams that it has paused."""

from collections.abc import Sequence

from tidemill_contracts.ingestion.v1 import ingestion_pb2 as ingestion
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub

from tidemill.clients.calls import AsyncConnection, Connection
from tidemill.clients.publishing import AsyncEventStream, EventStream, Flight, OnVerdict


class IngestionClient:
    """Calls of `IngestionService`; every one raises `CallError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = IngestionServiceStub(connection.channel)

    def publish(self, stream: str, source: str, events: Sequence[ingestion.Event]) -> ingestion.PublishBatchResponse:
        """Send events of one stream; accepted ones are durable when this returns."""
        batch = ingestion.StreamEvents(stream=stream, source=source, events=events)
        return self._connection.call(self._stub.PublishBatch, ingestion.PublishBatchRequest(batches=[batch]))

    def stream(self, stream: str, source: str, tell: OnVerdict) -> EventStream:
        """Return a call that takes events as they come and tells the verdict of each; for many of them."""
        return EventStream(self._connection, Flight(stream, source, tell))

    def state(self, stream: str) -> ingestion.StreamState:
        """Return whether a stream takes events now, as the replica that answers sees it."""
        return self._connection.call(self._stub.GetStreamState, ingestion.GetStreamStateRequest(stream=stream)).state

    def resume(self, stream: str, reason: str, by: str) -> ingestion.StreamState:
        """End a stream's pause at the replica that answers."""
        request = ingestion.ResumeStreamRequest(stream=stream, reason=reason)
        return self._connection.call(self._stub.ResumeStream, request, by=by).state

    def check(
        self, stream: str, events: Sequence[ingestion.Event], *, strictly: bool = False
    ) -> Sequence[ingestion.Verdict]:
        """Return what would become of events; nothing is written.

        They are judged as readers of the stream do, or `strictly` as the doors and bridges.
        """
        request = ingestion.CheckEventsRequest(stream=stream, events=events, ignore_unknown_fields=not strictly)
        return self._connection.call(self._stub.CheckEvents, request).verdicts


class AsyncIngestionClient:
    """The same for asyncio, as far as programs need it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def stream(self, stream: str, source: str, tell: OnVerdict) -> AsyncEventStream:
        """Return a call that takes events as they come and tells the verdict of each; for many of them."""
        return AsyncEventStream(self._connection, Flight(stream, source, tell))
