"""Ingestion on the real servers, the stream that its tests publish to, and a reader of the log."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from tidemill_contracts.canonical import to_json
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.ingestion.v1 import ingestion_pb2_grpc as services
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2, progress_pb2_grpc
from tidemill_contracts.topics import fixed_topics, stream_topics
from tidemill_ingestion.app import open_service
from tidemill_ingestion.settings import Settings
from tidemill_runtime.health import Health
from tidemill_runtime.settings import GrpcSettings, HttpSettings, KafkaSettings
from tidemill_testkit.ports import free_address
from tidemill_testkit.topic_records import topic_records

PARTITIONS = 3
STREAM = definition.Stream(
    name="rides",
    fields=[
        definition.Field(name="ride_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="fare", type=definition.FIELD_TYPE_FLOAT64),
        definition.Field(name="seats", type=definition.FIELD_TYPE_INT64, nullable=True),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="ride_id",
    time_field="at",
    partitions=PARTITIONS,
    dedup_window_ms=3_600_000,
    max_future_ms=600_000,
    max_event_bytes=4_000,
)


BAD = [
    ("empty", b"", 400),
    ("bad_utf8", b"\xff{}", 400),
    ("undecodable", b'{"ride_id":', 400),
    ("undecodable", b"[]", 400),
    ("oversized", b'{"ride_id": "' + b"x" * 5000 + b'"}', 413),
    ("unknown_field", b'{"ride_id":"r","fare":1,"at":"2013-06-04T10:00:00Z","tip":1}', 400),
    ("missing_field", b'{"ride_id":"r","at":"2013-06-04T10:00:00Z"}', 400),
    ("wrong_type", b'{"ride_id":"r","fare":"1","at":"2013-06-04T10:00:00Z"}', 400),
    ("null_key", b'{"ride_id":null,"fare":1,"at":"2013-06-04T10:00:00Z"}', 400),
    ("non_finite", b'{"ride_id":"r","fare":NaN,"at":"2013-06-04T10:00:00Z"}', 400),
    ("out_of_range", b'{"ride_id":"r","fare":1,"seats":9223372036854775808,"at":"2013-06-04T10:00:00Z"}', 400),
    ("naive_timestamp", b'{"ride_id":"r","fare":1,"at":"2013-06-04T10:00:00"}', 400),
    ("too_far_in_future", b'{"ride_id":"r","fare":1,"at":"2199-06-04T10:00:00Z"}', 400),
]


def ride(number: int = 1, **changed: Any) -> bytes:
    event = {"ride_id": f"r-{number}", "fare": 1.5, "seats": 2, "at": "2013-06-04T10:00:00Z", **changed}
    return json.dumps({name: value for name, value in event.items() if value is not ...}).encode()


class Door:
    """A client of one ingestion service, and a reader of what it wrote."""

    ride = staticmethod(ride)
    partitions = PARTITIONS

    def __init__(self, settings: Settings, channel: grpc.aio.Channel, http: httpx.AsyncClient) -> None:
        self.settings = settings
        self.rpc: Any = services.IngestionServiceStub(channel)
        self.progress: Any = progress_pb2_grpc.ProgressServiceStub(channel)
        self.http = http

    async def publish(self, *events: messages.Event, **request: Any) -> messages.PublishBatchResponse:
        batch = messages.StreamEvents(stream="rides", source="meter", events=events)
        response: messages.PublishBatchResponse = await self.rpc.PublishBatch(
            messages.PublishBatchRequest(batches=[batch], **request), timeout=60
        )
        return response

    async def log(self, topic: str = "events.rides", partitions: int | None = None) -> list[Any]:
        """Return every record of a topic, by partition and offset."""
        kafka = self.settings.kafka
        count = partitions or (1 if topic.endswith(".dlq") else PARTITIONS)
        return await topic_records(kafka.client_kwargs(), kafka.physical(topic), range(count))

    async def end(self, topic: str) -> int:
        """Return how many records a topic has, over its partitions."""
        kafka = self.settings.kafka
        async with AIOKafkaConsumer(**kafka.client_kwargs()) as consumer:
            places = [TopicPartition(kafka.physical(topic), number) for number in range(PARTITIONS)]
            return sum((await consumer.end_offsets(places)).values())

    async def ready(self) -> None:
        """Return once the definitions that lie in the topic are known."""
        request = progress_pb2.WaitProgressRequest(
            stage="publish",
            offsets=[progress_pb2.TopicPartitionOffset(topic="registry.pipelines.v1", partition=0, next_offset=1)],
        )
        await self.progress.WaitProgress(request, timeout=60, wait_for_ready=True)


async def announce(kafka: KafkaSettings) -> None:
    """Create the topics and register the stream as the registry would."""
    catalogue = [*fixed_topics(), *stream_topics([("rides", PARTITIONS)])]
    await create_topics(kafka.client_kwargs(), catalogue, kafka.topic_prefix)
    producer = AIOKafkaProducer(**kafka.client_kwargs())
    await producer.start()
    record = definition.DefinitionRecord(
        kind="stream", name="rides", revision=1, definition=definition.Definition(streams=[STREAM])
    )
    await producer.send_and_wait(kafka.physical("registry.pipelines.v1"), to_json(record), key=b"stream/rides")
    await producer.stop()


@asynccontextmanager
async def opened(kafka: KafkaSettings, **options: Any) -> AsyncIterator[Door]:
    settings = Settings(
        kafka=kafka,
        grpc=GrpcSettings(listen=free_address()),
        http=HttpSettings(listen=free_address()),
        **options,
    )
    async with (
        open_service(settings, Health()),
        grpc.aio.insecure_channel(settings.grpc.listen) as channel,
        httpx.AsyncClient(base_url=f"http://{settings.http.listen}", timeout=60) as http,
    ):
        door = Door(settings, channel, http)
        await door.ready()
        yield door


@pytest.fixture
def open_door() -> Callable[..., AbstractAsyncContextManager[Door]]:
    """Opens ingestion on given Kafka settings, in this process."""
    return opened


@pytest.fixture
def a_ride() -> Callable[..., bytes]:
    """Makes the data of a good event."""
    return ride


@pytest.fixture
def bad_input() -> list[tuple[str, bytes, int]]:
    """One event of every class of bad input: its reason, its bytes, its HTTP status."""
    return BAD


@pytest.fixture
def rides_of() -> Callable[..., list[int]]:
    """Returns the numbers of the rides that a log holds, sorted."""
    return lambda log: sorted(int(record.key[2:]) for record in log)


@pytest.fixture
def announce_stream() -> Any:
    """Registers the tests' stream on given Kafka settings."""
    return announce


@pytest_asyncio.fixture
async def kafka(servers: Any, topic_prefix: str) -> KafkaSettings:
    """Kafka with the stream registered."""
    settings = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    await announce(settings)
    return settings


@pytest_asyncio.fixture
async def door(kafka: KafkaSettings) -> AsyncIterator[Door]:
    """A client of an ingestion service that knows the stream."""
    async with opened(kafka) as one:
        yield one
