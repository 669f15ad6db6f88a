"""Wires the feature service: definitions from the registry, the roles that are on, then gRPC and HTTP in front."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tidemill_contracts.feature.v1.feature_pb2_grpc import add_FeatureServiceServicer_to_server
from tidemill_contracts.progress.v1.progress_pb2_grpc import add_ProgressServiceServicer_to_server
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.progress import ProgressServicer

from tidemill_feature.adapters.builds import Builds
from tidemill_feature.adapters.definition_feed import DefinitionFeed
from tidemill_feature.adapters.http import feast_app
from tidemill_feature.adapters.reads import Reads
from tidemill_feature.adapters.roles import Role, open_offline, open_online
from tidemill_feature.adapters.rpc import BuildingServicer
from tidemill_feature.registered import Definitions
from tidemill_feature.settings import Settings


@asynccontextmanager
async def open_service(settings: Settings, health: Health) -> AsyncIterator[None]:
    """Open in order; on the way out everything closes in reverse, each part drained first."""
    definitions = Definitions()
    roles: list[Role] = []

    def follow() -> None:
        for role in roles:
            role.subscribe()

    feed = DefinitionFeed(definitions, settings.kafka, follow, health)
    async with AsyncExitStack() as stack:
        online = await stack.enter_async_context(open_online(settings, health, definitions))
        if "online" in settings.roles:
            roles.append(online.role)
            await stack.enter_async_context(running(online.role.runner))
        if "offline" in settings.roles:
            offline = await stack.enter_async_context(open_offline(settings, health, definitions, feed))
            roles.append(offline)
            await stack.enter_async_context(running(offline.runner))
        await stack.enter_async_context(running(feed))
        server = GrpcServer(settings.grpc, health, hop_delay_ms=settings.test_hop_delay_ms, seed=settings.test_seed)
        reads = Reads(definitions, online.store, settings)
        builds = Builds(definitions, online.store, online.book)
        server.add(add_FeatureServiceServicer_to_server, BuildingServicer(reads, online.pipeline, builds))
        stages = {role.name: role.stage(feed) for role in roles}
        server.add(add_ProgressServiceServicer_to_server, ProgressServicer(stages))
        await stack.enter_async_context(running(server))
        await stack.enter_async_context(running(HttpServer(settings.http, health, feast_app(reads, settings))))
        yield
