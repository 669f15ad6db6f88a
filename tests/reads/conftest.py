"""The feature service's two doors for reads, over the rings of the small flight pipeline in the real Redis."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.feature.v1.feature_pb2_grpc import add_FeatureServiceServicer_to_server
from tidemill_feature.adapters.builds import Builds
from tidemill_feature.adapters.http import feast_app
from tidemill_feature.adapters.reads import Reads
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.rpc import BuildingServicer
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.registered import Definitions
from tidemill_feature.settings import Settings
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.settings import GrpcSettings
from tidemill_testkit.flight_world import definition_record, rings

FLIGHTS = 600
NOTHING_FOLDED: Any = SimpleNamespace(views={}, streams={})


@dataclass(frozen=True)
class Doors:
    """Where the service answers."""

    grpc: str
    http: str


class Service:
    """Reads for one project; opens as often as a test starts it."""

    def __init__(self, redis: Any, project: str) -> None:
        self.definitions = Definitions()
        self.definitions.fold(to_json(definition_record()))
        self.settings = Settings(project=project)
        self.store = RedisStore(redis, project, self.settings.group)
        self.book = ViewBook(redis, project, self.settings.group)

    async def open(self, stack: AsyncExitStack, listen: str = "127.0.0.1:0") -> Doors:
        reads = Reads(self.definitions, self.store, self.settings)
        rpc = GrpcServer(GrpcSettings(listen=listen), Health())
        builds = Builds(self.definitions, self.store, self.book)
        rpc.add(add_FeatureServiceServicer_to_server, BuildingServicer(reads, NOTHING_FOLDED, builds))
        await stack.enter_async_context(running(rpc))
        web = HttpServer(self.settings.http, Health(), feast_app(reads, self.settings))
        await stack.enter_async_context(running(web))
        return Doors(f"127.0.0.1:{rpc.port}", f"http://127.0.0.1:{web.port}")


@pytest.fixture
async def service(servers: Any, redis_namespace: str) -> AsyncIterator[Service]:
    async with Redis.from_url(servers.redis) as redis:
        stored = rings(range(FLIGHTS), project=redis_namespace)
        await redis.mset(stored)
        yield Service(redis, redis_namespace)
        await redis.delete(*stored)


@pytest.fixture
async def doors(service: Service) -> AsyncIterator[Doors]:
    async with AsyncExitStack() as stack:
        yield await service.open(stack)
