"""A serving service in this process, on the real Kafka and Redis, with a flight pipeline to serve."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis
from tidemill_contracts.canonical import to_json
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_contracts.serving.v1.serving_pb2_grpc import PredictionServiceStub
from tidemill_contracts.topics import fixed_topics
from tidemill_models.store import LocalStore
from tidemill_runtime.health import Health
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import GrpcSettings, HttpSettings, KafkaSettings, RedisSettings
from tidemill_serving.app import open_service
from tidemill_serving.settings import ServingSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.flight_world import PIPELINE, Versions, definition_record, rings
from tidemill_testkit.plugin import Servers
from tidemill_testkit.ports import free_address

TOPICS = ("registry.pipelines.v1", "registry.deployments.v1", "serving.predictions.v1")


@dataclass
class Serving:
    """A running service and the ways into it."""

    predictions: Any
    progress: Any
    health: Health
    http: str

    async def settled(self, *places: progress.TopicPartitionOffset) -> None:
        """Return once these positions are followed and served."""
        await self.progress.WaitProgress(
            progress.WaitProgressRequest(stage="deployments", offsets=places), timeout=60, wait_for_ready=True
        )


@dataclass
class Stage:
    """Topics, rings, bundles and keys of one test, and services that use them."""

    kafka: KafkaSettings
    redis_url: str
    project: str
    folder: Path
    versions: Versions
    producer: Producer | None = None
    stored: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    async def publish(self, topic: str, key: str, value: bytes | None) -> progress.TopicPartitionOffset:
        """Write one record and return the position after it."""
        assert self.producer is not None
        placed = await self.producer.send(Outgoing(topic, value, key=key.encode()))
        return progress.TopicPartitionOffset(topic=topic, partition=placed.partition, next_offset=placed.offset + 1)

    async def define(self) -> progress.TopicPartitionOffset:
        """Register the pipeline."""
        return await self.publish("registry.pipelines.v1", f"pipeline/{PIPELINE}", to_json(definition_record()))

    async def deploy(self, record: registry.DeploymentRecord) -> progress.TopicPartitionOffset:
        """Publish a deployment."""
        return await self.publish("registry.deployments.v1", PIPELINE, to_json(record))

    def settings(self, **changes: Any) -> ServingSettings:
        """Return the settings of one service on free ports."""
        fields: dict[str, Any] = {
            "kafka": self.kafka,
            "redis": RedisSettings(url=self.redis_url),
            "grpc": GrpcSettings(listen=free_address()),
            "http": HttpSettings(listen=free_address()),
            "artifacts": str(self.artifacts),
            "verify_key_file": self.folder / "verify.pem",
            "cache": self.folder / "cache",
            "project": self.project,
            "durable_timeout_s": 6.0,
            "drain_s": 4.0,
            **changes,
        }
        return ServingSettings(**fields)

    @asynccontextmanager
    async def running(self, **changes: Any) -> AsyncIterator[Serving]:
        """Run a service until the block ends."""
        settings, health = self.settings(**changes), Health()
        async with open_service(settings, health), grpc.aio.insecure_channel(settings.grpc.listen) as channel:
            health.opened = True
            yield Serving(
                PredictionServiceStub(channel), ProgressServiceStub(channel), health, f"http://{settings.http.listen}"
            )

    def serving(self, **changes: Any) -> AbstractAsyncContextManager[Serving]:
        """Run a service whose state is ready to answer."""
        return self._ready(changes)

    @asynccontextmanager
    async def _ready(self, changes: dict[str, Any]) -> AsyncIterator[Serving]:
        async with self.running(**changes) as service:
            await aeventually(lambda: not service.health.ready(), claim="the service is ready")
            yield service

    def forget_artifacts(self) -> None:
        """Lose the artifact store."""
        shutil.rmtree(self.artifacts)


@pytest.fixture
def bundles(tmp_path: Path) -> Versions:
    """Versions published to this test's artifact store, signed by its key."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "verify.pem").write_bytes(public)
    return Versions(key, LocalStore(tmp_path / "artifacts").publish)


@pytest_asyncio.fixture
async def stage(
    servers: Servers, topic_prefix: str, redis_namespace: str, tmp_path: Path, bundles: Versions
) -> AsyncIterator[Stage]:
    """Fresh topics and rings of 400 flights; nothing is registered yet."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    topics = [topic for topic in fixed_topics() if topic.name in TOPICS]
    await create_topics(kafka.client_kwargs(), topics, topic_prefix)
    one = Stage(kafka, servers.redis, redis_namespace, tmp_path, bundles)
    one.stored = rings(range(400), project=redis_namespace)
    async with Redis.from_url(servers.redis) as redis, Producer(kafka) as producer:
        one.producer = producer
        await redis.mset(one.stored)
        yield one
    # A connection of its own: the test may have stopped Redis in between.
    async with Redis.from_url(servers.redis) as redis:
        await redis.delete(*one.stored)


async def logged(kafka: KafkaSettings, count: int, sequences: int = 0) -> list[records.PredictionRecord]:
    """Return the prediction records in the topic, once there are this many, and ASYNC ones with so many numbers."""
    found: list[records.PredictionRecord] = []
    consumer = AIOKafkaConsumer(
        kafka.physical("serving.predictions.v1"), auto_offset_reset="earliest", **kafka.client_kwargs()
    )
    await consumer.start()
    try:

        async def enough() -> bool:
            for batch in (await consumer.getmany(timeout_ms=100)).values():
                found.extend(records.PredictionRecord.FromString(record.value) for record in batch)
            numbers = {record.sequence for record in found if record.sequence}
            return len(found) >= count and len(numbers) >= sequences

        await aeventually(enough, claim=f"{count} predictions are logged")
    finally:
        await consumer.stop()
    return found


@pytest.fixture
def read_log() -> Any:
    """The reader of the predictions topic."""
    return logged
