"""`monitoring.join` and `monitoring.barrier`: labels joined to predictions, in bulk and one simulated hour at a time.

Join: predictions per second, from a backlog of predictions and labels to published outcomes, beside a bare aiokafka
consumer of the same records. The rate is taken from Kafka's own record times, so that start and rebalance do not count.
Barrier: an hour's 38 predictions and 37 labels from Kafka's acknowledgement to the answer of WaitProgress, beside one
PostgreSQL commit of as many rows and one Kafka acknowledgement, which no design avoids.
"""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import grpc
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from beside import process
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers, watermark
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import format_us, parse_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_contracts.serving.v1 import records_pb2 as serving
from tidemill_contracts.topics import fixed_topics, stream_topics
from tidemill_testkit.ports import free_address

ROWS = 40_000
RUNS = 3
HOURS = 300
PER_HOUR = 38
PARTITIONS = 2
HOUR_US = 3_600_000_000
START_US = parse_us("2013-01-01T00:00:00Z")
PREDICTIONS, LABELS, OUTCOMES = "serving.predictions.v1", "events.landed", "monitoring.outcomes.v1"
_NUMBERS = [float(number) for number in range(25)]
_POSITIONS = [
    progress.TopicPartitionOffset(topic=f"events.{name}", partition=number, next_offset=100_000)
    for name in ("departed", "landed", "weather")
    for number in range(PARTITIONS)
]
Ends = dict[tuple[str, int], int]


def pipeline() -> definition.Definition:
    """Return a pipeline whose label is a landing."""
    fields = [
        definition.Field(name="flight_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="delay", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
        definition.Field(name="landed_at", type=definition.FIELD_TYPE_TIMESTAMP),
    ]
    landed = definition.Stream(
        name="landed", fields=fields, key_field="flight_id", time_field="landed_at", partitions=PARTITIONS
    )
    late = definition.Pipeline(
        name="late",
        request="landed",
        label=definition.Label(stream="landed", expression="delay > 15", by="flight_id", wait_ms=36 * 3_600_000),
        monitors=[definition.Monitor(performance=definition.PerformanceMonitor(metric="log_loss", limit=0.05))],
    )
    return definition.Definition(streams=[landed], pipelines=[late])


def prediction(number: int, as_of_us: int) -> bytes:
    """Return a logged prediction of the demo's size: 25 numbers, 3 categories, two versions."""
    return serving.PredictionRecord(
        prediction_id=f"8f14e45f-ceea-467f-a8f4-{number:012d}",
        pipeline="late",
        join_key=f"flight-{number}",
        as_of_us=as_of_us,
        model_version=1,
        probability=0.3,
        scores=[
            serving.Score(model_version=1, probability=0.3, role=serving.ROLE_CHAMPION),
            serving.Score(model_version=2, probability=0.2, role=serving.ROLE_BASELINE),
        ],
        features=serving.ServedFeatures(numbers=_NUMBERS, categories=["EWR", "UA", "IAH"], statuses=bytes(28)),
        positions=_POSITIONS,
        request_json=b'{"flight_id":"2013-01-01-UA-1545","origin":"EWR","dest":"IAH","carrier":"UA"}',
    ).SerializeToString()


def label(number: int, at_us: int) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Return a landing's value and headers."""
    event = {"flight_id": f"flight-{number}", "delay": float(number % 40), "landed_at": format_us(at_us)}
    return json.dumps(event).encode(), to_headers(Attributes(str(number), "bench", EVENT_TYPE, at_us, "landed"))


@dataclass
class World:
    """One service with topics and a database of its own."""

    kafka: str
    dsn: str
    prefix: str
    producer: Any = None
    stages: Any = None
    ends: Ends = field(default_factory=dict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["World"]:
        """Run the service as its own process."""
        address = free_address()
        with tempfile.TemporaryDirectory() as datadir:
            settings = {
                "KAFKA__BOOTSTRAP": self.kafka,
                "KAFKA__TOPIC_PREFIX": self.prefix,
                "POSTGRES__DSN": self.dsn,
                "GRPC__LISTEN": address,
                "DATADIR": datadir,
                "LOG_LEVEL": "warning",
            }
            environment = {f"TIDEMILL_MONITORING_{name}": value for name, value in settings.items()}
            with process("-m", "tidemill_monitoring", **environment):
                async with grpc.aio.insecure_channel(address) as channel:
                    self.stages = ProgressServiceStub(channel)  # type: ignore[no-untyped-call,unused-ignore]
                    await self.settle(wait_for_ready=True)
                    yield self

    async def send(self, topic: str, values: Sequence[tuple[bytes, bytes | None, Any, int | None]]) -> None:
        """Write records (value, key, headers, partition) and wait for all of them."""
        for start in range(0, len(values), 5_000):
            pending = [
                await self.producer.send(
                    self.prefix + topic, value=value, key=key, headers=headers, partition=partition
                )
                for value, key, headers, partition in values[start : start + 5_000]
            ]
            for placed in await asyncio.gather(*pending):
                place = (topic, placed.partition)
                self.ends[place] = max(self.ends.get(place, 0), placed.offset + 1)

    async def hour(self, numbers: range, at_us: int) -> None:
        """Write an hour: labels of the last one, a watermark, and this hour's predictions."""
        landed = [label(number - PER_HOUR, at_us - HOUR_US // 2) for number in numbers[:-1] if number >= PER_HOUR]
        await self.send(
            LABELS, [(value, json.loads(value)["flight_id"].encode(), head, None) for value, head in landed]
        )
        await self.watermark(at_us)
        predicted = [(prediction(number, at_us), f"flight-{number}".encode(), None, None) for number in numbers]
        await self.send(PREDICTIONS, predicted)

    async def watermark(self, at_us: int) -> None:
        """Carry every partition to an instant."""
        marks = [(b"", None, watermark("landed", at_us), number) for number in range(PARTITIONS)]
        await self.send(LABELS, marks)

    async def apply(self) -> None:
        """Register the pipeline."""
        record = definition.DefinitionRecord(kind="pipeline", name="late", revision=1, definition=pipeline())
        await self.send("registry.pipelines.v1", [(to_json(record), b"pipeline/late", None, None)])

    async def settle(self, *, wait_for_ready: bool = False) -> None:
        """Wait until everything written has had its effect."""
        offsets = [
            progress.TopicPartitionOffset(topic=topic, partition=number, next_offset=end)
            for (topic, number), end in self.ends.items()
        ]
        request = progress.WaitProgressRequest(stage="join", offsets=offsets)
        await self.stages.WaitProgress(request, timeout=120, wait_for_ready=wait_for_ready)


@asynccontextmanager
async def world(servers: Endpoints, name: str) -> AsyncIterator[World]:
    """Make topics and a database, and remove the database afterwards."""
    prefix, client = f"bench-{name}.", {"bootstrap_servers": servers.kafka}
    await create_topics(client, [*fixed_topics(), *stream_topics([("landed", PARTITIONS)])], prefix)
    admin = await asyncpg.connect(servers.postgres_dsn)
    database = f"bench_{name.replace('-', '_')}"
    await admin.execute(f'CREATE DATABASE "{database}"')
    try:
        dsn = urlunsplit(urlsplit(servers.postgres_dsn)._replace(path=f"/{database}"))
        async with AIOKafkaProducer(**client, acks="all", enable_idempotence=True) as producer:
            yield World(servers.kafka, dsn, prefix, producer)
    finally:
        await admin.execute(f'DROP DATABASE "{database}" WITH (FORCE)')
        await admin.close()


async def backlog(here: World) -> None:
    """Write predictions over four days and their labels; nothing is joined before the pipeline is registered."""
    per_us = 96 * HOUR_US // ROWS
    asked = [(prediction(n, START_US + n * per_us), f"flight-{n}".encode(), None, None) for n in range(ROWS)]
    await here.send(PREDICTIONS, asked)
    landed = [label(n, START_US + n * per_us + 4 * HOUR_US) for n in range(ROWS)]
    await here.send(LABELS, [(value, f"flight-{n}".encode(), head, None) for n, (value, head) in enumerate(landed)])
    await here.watermark(START_US + 101 * HOUR_US)


async def consumed(here: World, topics: Sequence[str], rows: int) -> tuple[float, list[int]]:
    """Read `rows` records; return records per second and their Kafka times in milliseconds."""
    times: list[int] = []
    names = [here.prefix + topic for topic in topics]
    async with AIOKafkaConsumer(*names, bootstrap_servers=here.kafka, auto_offset_reset="earliest") as consumer:
        began = perf_counter()
        while len(times) < rows:
            batches = await consumer.getmany(timeout_ms=1_000, max_records=5_000)
            times += [record.timestamp for records in batches.values() for record in records]
        return rows / (perf_counter() - began), times


async def join(servers: Endpoints, turn: int) -> tuple[float, float]:
    """Return predictions per second to outcomes, and through a bare consumer."""
    async with world(servers, f"join-{turn}") as here, here.running():
        await backlog(here)
        await here.apply()
        await here.settle()
        _, times = await consumed(here, [OUTCOMES], ROWS)
        first, last = min(times), max(times)
        rate = sum(time > first for time in times) / ((last - first) / 1000)
        # Each prediction is two records: itself and its label.
        bare, _ = await consumed(here, [PREDICTIONS, LABELS], 2 * ROWS)
        return rate, bare / 2


async def barrier(servers: Endpoints) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each barrier and of the least work that it stands for."""
    waits, least = [], []
    async with world(servers, "barrier") as here, here.running():
        await here.apply()
        await here.settle()
        connection = await asyncpg.connect(here.dsn, server_settings={"synchronous_commit": "off"})
        await connection.execute("CREATE TABLE bare (id bigint, value bytea)")
        for number in range(HOURS):
            await here.hour(range(number * PER_HOUR, (number + 1) * PER_HOUR), START_US + number * HOUR_US)
            began = perf_counter()
            await here.settle()
            waits.append((perf_counter() - began) * 1000)
            least.append(await bare_barrier(here, connection))
        await connection.close()
    return waits[HOURS // 10 :], least[HOURS // 10 :]


async def bare_barrier(here: World, connection: Any) -> float:
    """Return the milliseconds of one commit and one acknowledgement of an hour's rows."""
    rows = [(number, prediction(number, START_US)) for number in range(PER_HOUR)]
    began = perf_counter()
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO bare SELECT * FROM unnest($1::bigint[], $2::bytea[])",
            [n for n, _ in rows],
            [v for _, v in rows],
        )
    await here.send("monitoring.drift.v1", [(value, b"late", None, None) for _, value in rows])
    return (perf_counter() - began) * 1000


def entry(name: str, unit: str, values: Sequence[float], baseline: str, baseline_value: float) -> dict[str, Any]:
    """Return one line of the report."""
    return {
        "name": name,
        "value": median(values),
        "unit": unit,
        "baseline": baseline,
        "baseline_value": baseline_value,
        "ratio": median(values) / baseline_value,
        "min": min(values),
        "median": median(values),
        "max": max(values),
        "runs": len(values),
    }


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure both on the given servers."""
    rates = [asyncio.run(join(servers, turn)) for turn in range(RUNS)]
    waits, least = asyncio.run(barrier(servers))
    return [
        entry(
            "monitoring.join",
            "predictions/s",
            [rate for rate, _ in rates],
            "bare aiokafka consumer, same records",
            median(bare for _, bare in rates),
        ),
        entry("monitoring.barrier", "ms", waits, "one commit and one acknowledgement", median(least)),
    ]
