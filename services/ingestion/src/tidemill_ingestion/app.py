"""Wires ingestion: the streams' definitions, the producer, the bridges, then gRPC and HTTP in front."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import time_ns
from uuid import uuid4

from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import add_IngestionServiceServicer_to_server
from tidemill_contracts.progress.v1.progress_pb2_grpc import add_ProgressServiceServicer_to_server
from tidemill_contracts.reasons import Reason
from tidemill_runtime.batches import Record
from tidemill_runtime.errors import Poison
from tidemill_runtime.follow import TopicFollower
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import ProgressServicer

from tidemill_ingestion.adapters.bridge import open_bridges
from tidemill_ingestion.adapters.doors import Doors
from tidemill_ingestion.adapters.reporter import Reporter
from tidemill_ingestion.adapters.topic_watch import TopicWatch
from tidemill_ingestion.gates import Gates
from tidemill_ingestion.settings import Settings

DEFINITIONS = "registry.pipelines.v1"


def _clock_us() -> int:
    return time_ns() // 1000


@asynccontextmanager
async def open_service(settings: Settings, health: Health) -> AsyncIterator[None]:
    """Open ingestion; leaving stops the doors first, so that every event taken in gets its verdict."""
    gates = Gates(settings.remembered_ids, settings.limit_of, settings.quality_fields)
    producer = Producer(settings.kafka, ack_timeout_s=settings.publish_timeout_s)
    bridges = open_bridges(settings, gates, producer, _clock_us, health)

    def fold(record: Record) -> None:
        try:
            gates.fold(record.value)
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, str(error)) from error
        for bridge in bridges:
            bridge.follow()

    follower = TopicFollower(settings.kafka, DEFINITIONS, fold, health=health)
    doors = Doors(gates, producer, follower, settings, clock=_clock_us, new_id=lambda: str(uuid4()))
    health.require_ready("producer", producer.fault)
    replica = settings.kafka.instance or f"{socket.gethostname()}-{os.getpid()}"
    reporter = Reporter(gates, producer, hop_s=settings.quality_hop_s, replica=replica, clock=_clock_us)
    server = GrpcServer(settings.grpc, health, hop_delay_ms=settings.test_hop_delay_ms, seed=settings.test_seed)
    if "door" in settings.roles:
        server.add(add_IngestionServiceServicer_to_server, doors.servicer())
    server.add(add_ProgressServiceServicer_to_server, ProgressServicer(doors.stages(bridges)))
    app = doors.http() if "door" in settings.roles else None
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(producer)
        await stack.enter_async_context(running(follower))
        await stack.enter_async_context(running(reporter))
        await stack.enter_async_context(running(TopicWatch(gates, settings.kafka)))
        for bridge in bridges:
            await stack.enter_async_context(running(bridge))
        await stack.enter_async_context(running(server))
        await stack.enter_async_context(running(HttpServer(settings.http, health, app)))
        await stack.enter_async_context(doors.flows)
        yield
