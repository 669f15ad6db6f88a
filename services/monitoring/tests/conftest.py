"""Monitoring in this process against the real Kafka and PostgreSQL, with a hand on every topic it reads."""

import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiokafka import AIOKafkaProducer
from pydantic import SecretStr
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers, watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us, parse_us, to_timestamp
from tidemill_contracts.kafka_admin import add_partitions, create_topics
from tidemill_contracts.monitoring.v1 import monitoring_pb2_grpc as monitoring_grpc
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1 import progress_pb2_grpc as progress_grpc
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_contracts.topics import events_topic, fixed_topics, stream_topics
from tidemill_monitoring.app import open_service
from tidemill_monitoring.settings import Settings
from tidemill_runtime.health import Health
from tidemill_runtime.settings import GrpcSettings, KafkaSettings, PostgresSettings
from tidemill_testkit.eventually import aeventually
from tidemill_testkit.ports import free_address
from tidemill_testkit.topic_deletion import delete_topics
from tidemill_testkit.topic_records import topic_records

HOUR = 3_600_000_000
DAY = 24 * HOUR
START = parse_us("2013-01-01T00:00:00Z")
PIPELINE = "late"
PARTITIONS = 2
AT_FIRST = {"asked": range(PARTITIONS), "landed": range(PARTITIONS)}
ACTOR = (("x-tidemill-actor", "tester"),)


def pipeline_definition(**changes: Any) -> definition.Definition:
    """Return a pipeline asked about on `asked`, labelled by `landed`."""
    text = definition.FIELD_TYPE_STRING
    asked = definition.Stream(
        name="asked",
        fields=[
            definition.Field(name="flight_id", type=text),
            definition.Field(name="asked_at", type=definition.FIELD_TYPE_TIMESTAMP),
        ],
        key_field="flight_id",
        time_field="asked_at",
        partitions=PARTITIONS,
    )
    landed = definition.Stream(
        name="landed",
        fields=[
            definition.Field(name="flight_id", type=text),
            definition.Field(name="delay", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
            definition.Field(name="landed_at", type=definition.FIELD_TYPE_TIMESTAMP),
        ],
        key_field="flight_id",
        time_field="landed_at",
        partitions=PARTITIONS,
    )
    pipeline = definition.Pipeline(
        name=PIPELINE,
        request="asked",
        label=definition.Label(stream="landed", expression="delay > 15", by="flight_id", wait_ms=36 * 3_600_000),
        train=definition.Train(window_ms=60 * 86_400_000),
        monitors=[
            definition.Monitor(performance=definition.PerformanceMonitor(metric="log_loss", limit=0.05)),
            definition.Monitor(covariates=definition.CovariateMonitor()),
            definition.Monitor(predictions=definition.PredictionMonitor()),
        ],
        retrain=definition.RetrainPolicy(
            on=[
                definition.RetrainTrigger(drift=definition.DriftTrigger()),
                definition.RetrainTrigger(every=definition.ScheduleTrigger(period_ms=28 * 86_400_000)),
            ],
            cooldown_ms=3 * 86_400_000,
            budget=definition.Budget(count=6, period_ms=90 * 86_400_000),
            false_alarms=definition.Budget(count=1, period_ms=90 * 86_400_000),
        ),
    )
    pipeline.MergeFrom(definition.Pipeline(**changes))
    return definition.Definition(streams=[asked, landed], pipelines=[pipeline])


Scores = Iterable[tuple[int, float, "serving.Role.ValueType"]]
ALONE = ((1, 0.3, serving.ROLE_CHAMPION),)


def prediction(flight: str, as_of_us: int, scores: Scores = ALONE, **more: Any) -> serving.PredictionRecord:
    """Return a logged prediction; scores are (version, probability, role), the first one answered."""
    listed = [serving.Score(model_version=v, probability=p, role=r) for v, p, r in scores]
    return serving.PredictionRecord(
        prediction_id=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{flight}/{as_of_us}")),
        pipeline=PIPELINE,
        join_key=flight,
        as_of_us=as_of_us,
        model_version=listed[0].model_version,
        probability=listed[0].probability,
        scores=listed,
        **more,
    )


@dataclass
class World:
    """The topics around monitoring, and its answers."""

    kafka: KafkaSettings
    settings: Settings
    producer: Any
    ends: dict[tuple[str, int], int] = field(default_factory=dict)
    pending: list[tuple[str, Any]] = field(default_factory=list)
    stages: Any = None
    rpc: Any = None
    health: Health = field(default_factory=Health)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        """Run the service and wait until it is ready to be asked."""
        self.health = Health()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(open_service(self.settings, self.health))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(self.settings.grpc.listen))
            self.ask_through(channel)
            yield self

    def ask_through(self, channel: Any) -> None:
        """Ask the service that a channel leads to."""
        self.stages = progress_grpc.ProgressServiceStub(channel)
        self.rpc = monitoring_grpc.MonitoringServiceStub(channel)

    async def send(self, topic: str, value: bytes | None, key: str | None, **more: Any) -> None:
        """Write one record; `settle` waits for it."""
        raw_key = None if key is None else key.encode()
        future = await self.producer.send(self.kafka.physical(topic), value=value, key=raw_key, **more)
        self.pending.append((topic, future))

    async def written(self) -> None:
        """Wait until everything written is acknowledged, and remember where the topics end."""
        pending, self.pending = self.pending, []
        for topic, future in pending:
            placed = await future
            place = (topic, placed.partition)
            self.ends[place] = max(self.ends.get(place, 0), placed.offset + 1)

    defined = staticmethod(pipeline_definition)

    async def apply(self, found: definition.Definition | None = None) -> None:
        """Register a definition, its topics first."""
        found = found or pipeline_definition()
        topics = list(stream_topics((stream.name, stream.partitions) for stream in found.streams))
        await create_topics(self.kafka.client_kwargs(), topics, self.kafka.topic_prefix)
        await add_partitions(self.kafka.client_kwargs(), topics, self.kafka.topic_prefix)
        name = found.pipelines[0].name
        record = definition.DefinitionRecord(kind="pipeline", name=name, revision=1, hash="sha256:d", definition=found)
        await self.send("registry.pipelines.v1", to_json(record), f"pipeline/{name}")

    async def make_anew(self, *streams: str) -> None:
        """Delete the topics of streams, and create them again."""
        await delete_topics(self.kafka.client_kwargs(), [self.kafka.physical(events_topic(one)) for one in streams])
        for place in [place for place in self.ends if place[0].removeprefix("events.") in streams]:
            del self.ends[place]
        topics = list(stream_topics((stream, PARTITIONS) for stream in streams))
        await create_topics(self.kafka.client_kwargs(), topics, self.kafka.topic_prefix)

    async def deploy(self, champion: int, at_us: int, **more: Any) -> None:
        """Write a deployment; `challenger=` and `step=` begin a rollout."""
        challenger = more.pop("challenger", 0)
        record = registry.DeploymentRecord(
            pipeline=PIPELINE,
            champion=registry.DeployedVersion(version=champion),
            challenger=registry.DeployedVersion(version=challenger) if challenger else None,
            decided_at=to_timestamp(at_us),
            step_began_at=to_timestamp(at_us) if challenger else None,
            **more,
        )
        await self.send("registry.deployments.v1", to_json(record), PIPELINE)

    async def retire(self) -> None:
        """End the pipeline."""
        record = definition.DefinitionRecord(kind="pipeline", name=PIPELINE, revision=2, retired=True)
        await self.send("registry.pipelines.v1", to_json(record), f"pipeline/{PIPELINE}")

    async def grow(self, stream: str, partitions: int) -> None:
        """Add partitions to a stream; returns when the producer knows them."""
        wider = pipeline_definition()
        next(one for one in wider.streams if one.name == stream).partitions = partitions
        await self.apply(wider)

        async def known() -> bool:
            await self.producer.client.force_metadata_update()
            found = await self.producer.partitions_for(self.kafka.physical(events_topic(stream)))
            return len(found) == partitions

        await aeventually(known, claim="the producer knows the new partitions")

    async def land(self, flight: str, at_us: int, delay: float | None, event_id: str = "", **more: Any) -> None:
        """Write a landing."""
        value = json.dumps({"flight_id": flight, "delay": delay, "landed_at": format_us(at_us)}).encode()
        attributes = Attributes(event_id or f"land-{flight}", "test", EVENT_TYPE, at_us, "landed")
        await self.send(events_topic("landed"), value, flight, headers=to_headers(attributes), **more)

    async def predict(self, flight: str, as_of_us: int, scores: Scores = ALONE, **more: Any) -> None:
        """Log a prediction."""
        record = prediction(flight, as_of_us, scores, **more)
        await self.send("serving.predictions.v1", record.SerializeToString(), record.join_key)

    async def watermark(self, at_us: int, partitions: Mapping[str, Iterable[int]] = AT_FIRST) -> None:
        """Carry partitions, by default all that both streams have at first, to an instant."""
        for stream, numbers in partitions.items():
            for number in numbers:
                await self.send(events_topic(stream), b"", None, partition=number, headers=watermark(stream, at_us))

    async def settle(self, at_us: int = 0) -> progress.WaitProgressResponse:
        """Wait until everything written so far has had its effect."""
        await self.written()
        offsets = [
            progress.TopicPartitionOffset(topic=topic, partition=number, next_offset=end)
            for (topic, number), end in self.ends.items()
        ]
        request = progress.WaitProgressRequest(stage="join", offsets=offsets, event_time_us=at_us)
        answer: progress.WaitProgressResponse = await self.stages.WaitProgress(request, timeout=60, wait_for_ready=True)
        return answer

    async def values(self, topic: str) -> list[Any]:
        """Return every value that a topic holds."""
        records = await topic_records(self.kafka.client_kwargs(), self.kafka.physical(topic))
        return [record.value for record in records]

    async def day(self, number: int, rows: int, probability: float, version: int = 1) -> None:
        """Live one day: requests at one o'clock, landings on time at three, midnight."""
        start_us = START + number * DAY
        for row in range(rows):
            flight = f"{number}-{row}"
            await self.predict(flight, start_us + HOUR, ((version, probability, serving.ROLE_CHAMPION),))
            await self.land(flight, start_us + 3 * HOUR + row, 0.0)
        await self.watermark(start_us + DAY)

    async def outcomes(self) -> list[monitoring.OutcomeRecord]:
        """Return every outcome published, in the order of (prediction, revision)."""
        found = [monitoring.OutcomeRecord.FromString(value) for value in await self.values("monitoring.outcomes.v1")]
        return sorted(found, key=lambda one: (one.prediction.join_key, one.prediction_id, one.revision))

    async def told(self, topic: str, message: Callable[[], Any]) -> list[Any]:
        """Return the records of an operators' topic."""
        return [from_json(value, message()) for value in await self.values(topic)]


@pytest.fixture
async def world(servers: Any, topic_prefix: str, database: str, tmp_path: Path) -> AsyncIterator[World]:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    chosen: dict[str, Any] = {
        "kafka": kafka,
        "postgres": PostgresSettings(dsn=SecretStr(database)),
        "grpc": GrpcSettings(listen=free_address()),
        "datadir": tmp_path,
    }
    settings = Settings(**chosen)
    await create_topics(kafka.client_kwargs(), fixed_topics(), topic_prefix)
    producer = AIOKafkaProducer(**kafka.client_kwargs())
    await producer.start()
    try:
        yield World(kafka, settings, producer)
    finally:
        await producer.stop()
