"""Wires the registry: PostgreSQL and outbox, the books, the evidence stream, then gRPC and HTTP in front."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import time_ns

from tidemill_contracts.progress.v1.progress_pb2_grpc import add_ProgressServiceServicer_to_server
from tidemill_contracts.registry.v1.registry_pb2_grpc import add_RegistryServiceServicer_to_server
from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.outbox import OutboxRelay, OutboxTable
from tidemill_runtime.positions import Offsets
from tidemill_runtime.postgres import open_pool
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import ProgressServicer, Reached
from tidemill_runtime.stream import StreamRunner

from tidemill_registry.adapters import evidence_stream
from tidemill_registry.adapters.audit_book import AuditBook
from tidemill_registry.adapters.definition_book import DefinitionBook
from tidemill_registry.adapters.http import build_app
from tidemill_registry.adapters.ledger import Ledgers
from tidemill_registry.adapters.model_book import ModelBook
from tidemill_registry.adapters.postgres import SCHEMA, migrate
from tidemill_registry.adapters.rpc import RegistryServicer
from tidemill_registry.adapters.run_book import RunBook
from tidemill_registry.adapters.topics import Topics
from tidemill_registry.settings import Settings


@asynccontextmanager
async def open_service(settings: Settings, health: Health) -> AsyncIterator[None]:
    """Open the registry; leaving closes it in reverse, so that nothing is accepted that cannot be written."""
    async with AsyncExitStack() as stack:
        outbox = OutboxTable(SCHEMA)
        pool = await stack.enter_async_context(open_pool(settings.postgres, SCHEMA, lambda one: migrate(one, outbox)))
        topics = await stack.enter_async_context(running(Topics(settings.kafka, settings.topic_replicas, health)))
        producer = await stack.enter_async_context(Producer(settings.kafka))
        health.require_ready("producer", producer.fault)
        relay = await stack.enter_async_context(running(OutboxRelay(pool, producer, outbox, health=health)))

        ledgers = Ledgers(pool, outbox, clock=lambda: time_ns() // 1000, wake=relay.wake)
        definitions = DefinitionBook(ledgers, topics.ensure_streams)
        runs, models, audit = RunBook(ledgers), ModelBook(ledgers), AuditBook(ledgers)

        evidence = StreamRunner(
            evidence_stream.EvidenceStream(models),
            settings.kafka,
            StreamOptions(
                group=evidence_stream.GROUP,
                stall_s=settings.stall_s,
                hop_delay_ms=settings.test_hop_delay_ms,
                seed=settings.test_seed,
            ),
            topics=[evidence_stream.TOPIC],
            dead_letters=DeadLetters(producer, settings.kafka, evidence_stream.GROUP),
            health=health,
        )
        await stack.enter_async_context(running(evidence))

        async def outbox_stage(offsets: Offsets, event_time_us: int) -> Reached:
            await evidence.reached(offsets)
            await relay.drained()
            return Reached(producer.written)

        server = GrpcServer(settings.grpc, health, hop_delay_ms=settings.test_hop_delay_ms, seed=settings.test_seed)
        server.add(add_RegistryServiceServicer_to_server, RegistryServicer(definitions, runs, models, audit))
        server.add(add_ProgressServiceServicer_to_server, ProgressServicer({"outbox": outbox_stage}))
        await stack.enter_async_context(running(server))
        await stack.enter_async_context(
            running(HttpServer(settings.http, health, build_app(definitions, runs, models, audit)))
        )
        yield
