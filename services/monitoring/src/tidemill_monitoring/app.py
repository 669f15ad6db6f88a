"""Opens monitoring: what is opened last closes first."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
from tidemill_contracts.monitoring.v1.monitoring_pb2_grpc import add_MonitoringServiceServicer_to_server
from tidemill_contracts.progress.v1.progress_pb2_grpc import add_ProgressServiceServicer_to_server
from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.dead_letters import DeadLetters
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.outbox import OutboxRelay
from tidemill_runtime.producer import Producer
from tidemill_runtime.progress import ProgressServicer
from tidemill_runtime.stream import StreamRunner
from tidemill_runtime.topic_ids import TopicLook

from tidemill_monitoring.adapters.evaluator import Evaluator, Spans
from tidemill_monitoring.adapters.following import Following
from tidemill_monitoring.adapters.joiner import Joiner
from tidemill_monitoring.adapters.journal import ACK_TIMEOUT_S, Journal
from tidemill_monitoring.adapters.leadership import Leadership
from tidemill_monitoring.adapters.policy import Policy, policy_app
from tidemill_monitoring.adapters.rpc import MonitoringServicer
from tidemill_monitoring.adapters.schema import OUTBOX
from tidemill_monitoring.adapters.stage import JoinStage
from tidemill_monitoring.registered import Registered
from tidemill_monitoring.settings import Settings


@asynccontextmanager
async def open_service(settings: Settings, health: Health) -> AsyncIterator[None]:
    """Stand by until this replica leads; then follow the registry, join, decide and answer."""
    registered = Registered()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        await enter(running(HttpServer(settings.http, health)))
        leadership = await enter(Leadership(settings.postgres, health))
        pool = await enter(asyncpg.create_pool(**settings.postgres.pool_kwargs()))
        told = await enter(Producer(settings.kafka, ack_timeout_s=ACK_TIMEOUT_S))
        decided = await enter(Producer(settings.kafka))
        relay = await enter(running(OutboxRelay(pool, decided, OUTBOX, health=health)))
        following = Following(settings.kafka, registered, health)
        for follower in following.followers:
            await enter(running(follower))
        await following.caught_up()

        journal = await enter(Journal(told, settings.kafka))
        evaluator = Evaluator(registered, Spans(**settings.model_dump(include=set(Spans._fields))))
        waits = {"idle_us": int(settings.idle_timeout_s * 1e6), "lost_after_us": int(settings.lost_after_s * 1e6)}
        look = TopicLook(settings.kafka)
        stack.push_async_callback(look.close)
        joiner = Joiner(leadership, journal, registered, evaluator, look, **waits)
        policy = Policy(pool, registered, relay, joiner.board)
        letters = DeadLetters(decided, settings.kafka, settings.group)
        options = StreamOptions(
            settings.group,
            max_records=settings.max_batch,
            # Positions are kept in PostgreSQL; the group's own are for people who look at its lag.
            commit_every_ms=2_000,
            stall_s=settings.stall_s,
            hop_delay_ms=settings.test_hop_delay_ms,
            seed=settings.test_seed,
        )
        runner = StreamRunner(
            joiner, settings.kafka, options, topics=registered.topics(), dead_letters=letters, health=health
        )
        following.on_change(lambda: runner.subscribe(registered.topics()))
        await enter(running(runner))
        faust = policy_app(settings, policy, decided, health)
        await enter(running(faust))
        stage = JoinStage(following, runner, journal, faust, policy, [told, decided])
        server = GrpcServer(settings.grpc, health, hop_delay_ms=settings.test_hop_delay_ms, seed=settings.test_seed)
        server.add(add_MonitoringServiceServicer_to_server, MonitoringServicer(pool, registered, joiner, policy, stage))
        server.add(add_ProgressServiceServicer_to_server, ProgressServicer({"join": stage.reached}))
        await enter(running(server))
        yield
