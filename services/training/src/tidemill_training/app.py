"""Wires training: ledger and claims, peers, executor, the Faust agent that takes requests in, then gRPC and HTTP."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import time_ns

from tidemill_contracts.progress.v1.progress_pb2_grpc import add_ProgressServiceServicer_to_server
from tidemill_contracts.training.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.faust_app import Agent, FaustApp, FaustOptions
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.postgres import open_pool
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import ProgressServicer

from tidemill_training import requests
from tidemill_training.adapters.catalogue import Catalogue
from tidemill_training.adapters.claims import open_claims
from tidemill_training.adapters.executor import Executor, Parts
from tidemill_training.adapters.intake import Intake
from tidemill_training.adapters.ledger import Ledger
from tidemill_training.adapters.peers import open_peers
from tidemill_training.adapters.postgres import SCHEMA, create_tables
from tidemill_training.adapters.processes import StartProcess, open_process
from tidemill_training.adapters.rpc import TrainingServicer
from tidemill_training.adapters.run_feed import RunFeed
from tidemill_training.adapters.stage import RunsStage
from tidemill_training.settings import TrainingSettings


@asynccontextmanager
async def open_service(
    settings: TrainingSettings, health: Health, start: StartProcess = open_process
) -> AsyncIterator[None]:
    """Open in order; on the way out intake stops first, runs in work are left to the next process."""
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Producer(settings.kafka))
        pool = await stack.enter_async_context(open_pool(settings.postgres, SCHEMA, create_tables))
        claims = await stack.enter_async_context(open_claims(pool))
        registry, feature = await stack.enter_async_context(
            open_peers(settings.registry, settings.feature, settings.grpc)
        )
        ledger, feed = Ledger(pool), RunFeed(producer)
        parts = Parts(settings, ledger, claims, Catalogue(pool), registry, feature, feed, _now_us, start)
        executor = await stack.enter_async_context(running(Executor(parts)))
        agents = FaustApp(
            settings.kafka,
            FaustOptions(settings.group, settings.datadir, stall_s=settings.stall_s),
            [Agent("retrain-requests", [requests.TOPIC], Intake(ledger, executor.wake).decide)],
            dead_letters=DeadLetters(producer, settings.kafka, settings.group),
            health=health,
        )
        await stack.enter_async_context(running(agents))
        health.require_ready("producer", producer.fault)

        server = GrpcServer(settings.grpc, health, hop_delay_ms=settings.test_hop_delay_ms, seed=settings.test_seed)
        servicer = TrainingServicer(parts, producer)
        server.add(add_TrainingServiceServicer_to_server, servicer)
        stage = RunsStage(agents, ledger, feed, producer)
        server.add(add_ProgressServiceServicer_to_server, ProgressServicer({"runs": stage}))
        await stack.enter_async_context(running(server))
        await stack.enter_async_context(running(HttpServer(settings.http, health)))
        yield


def _now_us() -> int:
    return time_ns() // 1000
