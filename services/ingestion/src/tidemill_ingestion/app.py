"""Wires ingestion: the streams' definitions, the producer, then gRPC and HTTP in front."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time_ns
from uuid import uuid4

from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import add_IngestionServiceServicer_to_server
from tidemill_contracts.progress.v1.progress_pb2_grpc import add_ProgressServiceServicer_to_server
from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Record
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.positions import Offsets
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import ProgressServicer, Reached

from tidemill_ingestion.adapters.http import build_app
from tidemill_ingestion.adapters.publisher import Publisher
from tidemill_ingestion.adapters.rpc import IngestionServicer
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.settings import Settings

DEFINITIONS = "registry.pipelines.v1"


@asynccontextmanager
async def open_service(settings: Settings, health: Health) -> AsyncIterator[None]:
    """Open ingestion; leaving stops the doors first, so that every event taken in gets its verdict."""
    gates = Gates(settings.remembered_ids)

    def fold(record: Record) -> None:
        try:
            gates.fold(record.value)
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, str(error)) from error

    producer = Producer(settings.kafka, ack_timeout_s=settings.publish_timeout_s)
    follower = TopicFollower(settings.kafka, DEFINITIONS, fold, health=health)
    publisher = Publisher(
        gates, producer, settings, clock=lambda: time_ns() // 1000, new_id=lambda: str(uuid4())
    )
    health.require_ready("producer", producer.fault)

    def require_definitions() -> None:
        if not follower.caught_up.is_set():
            raise Retryable("the registered streams are not read yet", retry_after_s=1.0)

    async def publish_stage(offsets: Offsets, event_time_us: int) -> Reached:
        await follower.reached(offsets)
        await publisher.idle()
        return Reached(producer.written)

    server = GrpcServer(settings.grpc, health, hop_delay_ms=settings.test_hop_delay_ms, seed=settings.test_seed)
    server.add(add_IngestionServiceServicer_to_server, IngestionServicer(publisher, require_definitions))
    server.add(add_ProgressServiceServicer_to_server, ProgressServicer({"publish": publish_stage}))
    app = build_app(publisher, require_definitions, settings.max_http_bytes)
    async with (
        producer,
        running(follower),
        running(server),
        running(HttpServer(settings.http, health, app)),
    ):
        yield
