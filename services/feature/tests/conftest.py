"""Payments on the real Kafka and Redis, the feature service as a process, and brute force to compare with."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import Attributes, to_headers, watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.feature.v1.feature_pb2_grpc import FeatureServiceStub, add_FeatureServiceServicer_to_server
from tidemill_contracts.instants import format_us
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_feature.adapters.builds import Builds
from tidemill_feature.adapters.http import feast_app
from tidemill_feature.adapters.reads import Reads
from tidemill_feature.adapters.redis_store import RedisStore
from tidemill_feature.adapters.rpc import BuildingServicer
from tidemill_feature.adapters.view_book import ViewBook
from tidemill_feature.book import Book
from tidemill_feature.registered import Definitions
from tidemill_feature.settings import Settings
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.http_server import HttpServer
from tidemill_runtime.lifecycle import running
from tidemill_runtime.outgoing import Outgoing
from tidemill_runtime.producer import Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit import fraud_world
from tidemill_testkit.brute_force import Logged
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.nursery import Nursery
from tidemill_testkit.paid_world import BUSY, NARROW, NOON_US, PAID, PARTITIONS, PAYER, SECOND, SHARP, STATUSES, Log
from tidemill_testkit.ports import free_address
from tidemill_testkit.topic_deletion import delete_topics
from tidemill_testkit.topic_records import topic_records

_NOTHING_FOLDED: Any = SimpleNamespace(views={}, streams={})


class World:
    """One project of its own on the shared servers."""

    payer, sharp, narrow, busy, stream, noon_us, second_us = PAYER, SHARP, NARROW, BUSY, PAID, NOON_US, SECOND

    def __init__(self, kafka: KafkaSettings, redis_url: str, project: str, folder: Path, nursery: Nursery) -> None:
        self.kafka = kafka
        self.nursery = nursery
        self.redis_url = redis_url
        self.project = project
        self.folder = folder
        self.log = Log()
        self.processes: list[Feature] = []
        self._producer: Producer | None = None
        self._admin: Any = None

    async def open(self) -> None:
        self._admin = AIOKafkaAdminClient(**self.kafka.client_kwargs())
        await self._admin.start()
        await self.create("registry.pipelines.v1", 1)
        await self.create("monitoring.clock.v1", 1)
        await self.create("registry.models.v1", 1)
        self._producer = Producer(self.kafka)
        await self._producer.__aenter__()

    async def close(self) -> None:
        for process in self.processes:
            await process.stop(signal.SIGKILL)
        assert self._producer is not None
        await self._producer.__aexit__(None, None, None)
        topics = [name for name in await self._admin.list_topics() if name.startswith(self.kafka.topic_prefix)]
        await self._admin.delete_topics(topics)
        await self._admin.close()

    async def create(self, topic: str, partitions: int) -> None:
        await self._admin.create_topics([NewTopic(self.kafka.physical(topic), partitions, 1)])

    async def recreate(self, topic: str, partitions: int) -> None:
        await delete_topics(self.kafka.client_kwargs(), [self.kafka.physical(topic)])
        await self.create(topic, partitions)

    async def drop_before(self, topic: str, offset: int) -> None:
        """Do what retention does: drop the records before an offset of each partition."""
        places = {
            TopicPartition(self.kafka.physical(topic), number): RecordsToDelete(before_offset=offset)
            for number in range(PARTITIONS)
        }
        await self._admin.delete_records(places)

    async def add_partitions(self, topic: str, total: int) -> None:
        await self._admin.create_partitions({self.kafka.physical(topic): NewPartitions(total_count=total)})

        async def there() -> bool:
            found = await self._admin.describe_topics([self.kafka.physical(topic)])
            return len(found[0]["partitions"]) == total

        await aeventually(there)
        # A producer of our own learns of them at its next look otherwise.
        assert self._producer is not None
        await self._producer.__aexit__(None, None, None)
        self._producer = Producer(self.kafka)
        await self._producer.__aenter__()

    async def register(self, *views: definition.View, stream: definition.Stream = PAID) -> None:
        """Register the stream and its views."""
        if self.kafka.physical("events.paid") not in await self._admin.list_topics():
            await self.create("events.paid", PARTITIONS)
            await self.create("events.paid.dlq", 1)
        for view in views:
            closure = definition.Definition(streams=[stream], views=[view])
            record = definition.DefinitionRecord(kind="view", name=view.name, revision=1, definition=closure)
            await self.send(Outgoing("registry.pipelines.v1", to_json(record), key=f"view/{view.name}".encode()))

    async def retire(self, ended: definition.View | definition.Stream) -> None:
        """Let a view or a stream end."""
        kind = "view" if isinstance(ended, definition.View) else "stream"
        record = definition.DefinitionRecord(kind=kind, name=ended.name, revision=2, retired=True)
        await self.send(Outgoing("registry.pipelines.v1", to_json(record), key=f"{kind}/{ended.name}".encode()))

    async def send(self, *records: Outgoing) -> Any:
        assert self._producer is not None
        return await self._producer.send_all(list(records))

    async def pay(self, payments: Iterable[Mapping[str, Any]]) -> None:
        """Send payments: `at_us`, `partition`, `id`, and the fields."""
        chosen = list(payments)
        records = [
            Outgoing(
                "events.paid",
                json.dumps({**payment["fields"], "at": format_us(payment["at_us"])}).encode(),
                key=b"k",
                headers=to_headers(Attributes(payment["id"], "test", "tidemill.event.v1", payment["at_us"])),
                partition=payment["partition"],
            )
            for payment in chosen
        ]
        for payment, placed in zip(chosen, await self.send(*records), strict=True):
            self.log.records.append(
                Logged(placed.partition, placed.offset, payment["at_us"], payment["id"], payment["fields"])
            )

    async def watermark(self, at_us: int) -> None:
        await self.send(
            *(Outgoing("events.paid", b"", headers=watermark("paid", at_us), partition=p) for p in range(PARTITIONS))
        )

    async def ends(self, topic: str = "events.paid") -> list[progress.TopicPartitionOffset]:
        """Return the log's end, as a barrier is asked for."""
        consumer = AIOKafkaConsumer(**self.kafka.client_kwargs())
        await consumer.start()
        try:
            places = [TopicPartition(self.kafka.physical(topic), p) for p in range(PARTITIONS)]
            ends = await consumer.end_offsets(places)
        finally:
            await consumer.stop()
        return [
            progress.TopicPartitionOffset(topic=topic, partition=place.partition, next_offset=end)
            for place, end in ends.items()
        ]

    async def read(self, topic: str) -> list[Any]:
        """Return every record of partition 0."""
        return await topic_records(self.kafka.client_kwargs(), self.kafka.physical(topic), [0])

    async def start(self, **environment: str) -> "Feature":
        """Start the service as a process; returns when it answers."""
        process = self.launch(**environment)
        await process.ready()
        return process

    def launch(self, **environment: str) -> "Feature":
        """Start the service as a process."""
        process = Feature(self, environment)
        self.processes.append(process)
        return process


class Feature:
    """The feature service, online role, as a process of its own."""

    def __init__(self, world: World, environment: Mapping[str, str]) -> None:
        self.address, self.http = free_address(), free_address()
        settings = {
            "KAFKA__BOOTSTRAP": world.kafka.bootstrap,
            "KAFKA__TOPIC_PREFIX": world.kafka.topic_prefix,
            "REDIS__URL": world.redis_url,
            "PROJECT": world.project,
            "ROLES": "online",
            # The least that Kafka allows: tests wait it out wherever they kill a worker.
            "SESSION_MS": "6000",
            "GRPC__LISTEN": self.address,
            "HTTP__LISTEN": self.http,
            **environment,
        }
        # In a file, since a pipe that nobody reads would stop the process; kept by pytest for a failed test.
        self.output = world.folder / f"feature-{self.address.rpartition(':')[2]}.log"
        named = {f"TIDEMILL_FEATURE_{name}": value for name, value in settings.items()}
        self.process = world.nursery.start({**os.environ, **named}, self.output)
        self.channel = grpc.aio.insecure_channel(self.address)
        self.features: Any = FeatureServiceStub(self.channel)
        self.progress: Any = ProgressServiceStub(self.channel)

    async def ready(self) -> None:
        async def answers() -> bool:
            if self.process.poll() is not None:
                raise RuntimeError(f"the feature service ended: {self.output.read_text()}")
            try:
                await self.features.GetStats(messages.GetStatsRequest(), timeout=1)
            except grpc.aio.AioRpcError:
                return False
            return True

        await aeventually(answers, claim="the feature service answers")

    async def live(self) -> bool:
        """Say whether the service calls itself live and ready."""
        async with httpx.AsyncClient(base_url=f"http://{self.http}", timeout=60) as http:
            return all([(await http.get(path)).status_code == 200 for path in ("/live", "/ready")])

    async def reached(self, offsets: Sequence[progress.TopicPartitionOffset], timeout_s: float = 60) -> Any:
        request = progress.WaitProgressRequest(stage="online", offsets=offsets)
        return await self.progress.WaitProgress(request, timeout=timeout_s)

    async def get(self, view: str, keys: Sequence[Any], as_of_us: int) -> list[list[tuple[str, Any]]]:
        """Return (status, value) by key and feature."""
        scalars = [
            messages.Scalar(**{"string_value" if isinstance(key, str) else "int64_value": key})
            if key is not None
            else messages.Scalar()
            for key in keys
        ]
        asked = messages.ViewKeys(view=view, keys=[messages.EntityKey(values=[scalar]) for scalar in scalars])
        request = messages.GetFeaturesRequest(views=[asked], as_of_us=as_of_us)
        response = await self.features.GetFeatures(request, timeout=60)
        return [[_pair(value) for value in row.values] for row in response.views[0].rows]

    async def stop(self, number: int = signal.SIGTERM) -> int:
        await self.channel.close()
        self.process.send_signal(number)
        return await asyncio.to_thread(self.process.wait, 60)


def _pair(value: messages.FeatureValue) -> tuple[str, Any]:
    which = value.value.WhichOneof("value")
    return STATUSES[value.status], None if which is None else getattr(value.value, which)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery("tidemill_feature", "tidemill_feature.adapters.archive")
    yield nursery
    nursery.close()


@pytest.fixture
async def world(
    servers: Any, topic_prefix: str, redis_namespace: str, tmp_path: Path, nursery: Nursery
) -> AsyncIterator[World]:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    world = World(kafka, servers.redis, redis_namespace, tmp_path, nursery)
    await world.open()
    yield world
    await world.close()


@dataclass
class Door:
    """The doors of a service that runs in this process, over the rings of the fraud world."""

    stub: Any
    http: httpx.AsyncClient
    hashes: dict[str, str]
    known: Definitions

    async def get(self, *views: messages.ViewKeys, **options: Any) -> messages.GetFeaturesResponse:
        options = {"as_of_us": fraud_world.NOON_US, **options}
        found: messages.GetFeaturesResponse = await self.stub.GetFeatures(
            messages.GetFeaturesRequest(views=views, **options), timeout=60
        )
        return found

    async def feast(self, **body: Any) -> dict[str, Any]:
        response = await self.http.post("/get-online-features", json=body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def redefine(self, view: definition.View) -> str:
        """Register a view anew, whose former version answers until its rings are built; return its hash."""
        versions = self.known.closures(since_us=1)
        closure = definition.Definition(streams=[fraud_world.STREAM], views=[view])
        record = definition.DefinitionRecord(kind="view", name=view.name, revision=2, definition=closure)
        self.known.fold(to_json(record))
        self.known.take(Book(versions=versions))
        return self.known.plans[view.name].hash


@pytest.fixture
async def door(servers: Any, redis_namespace: str) -> AsyncIterator[Door]:
    settings, health, known = Settings(project=redis_namespace), Health(), Definitions()
    known.fold(to_json(fraud_world.definition_record()))
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(Redis.from_url(servers.redis))
        stored = fraud_world.rings(known.plans.values(), redis_namespace)
        await redis.mset(stored)
        stack.push_async_callback(redis.delete, *stored)
        store = RedisStore(redis, redis_namespace, settings.group)
        reads = Reads(known, store, settings)
        rpc = GrpcServer(settings.grpc, health)
        builds = Builds(known, store, ViewBook(redis, redis_namespace, settings.group))
        rpc.add(add_FeatureServiceServicer_to_server, BuildingServicer(reads, _NOTHING_FOLDED, builds))
        await stack.enter_async_context(running(rpc))
        web = HttpServer(settings.http, health, feast_app(reads, settings))
        await stack.enter_async_context(running(web))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{rpc.port}"))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{web.port}", timeout=60))
        hashes = {name: plan.hash for name, plan in known.plans.items()}
        yield Door(FeatureServiceStub(channel), http, hashes, known)
