"""Events per second from the service's doors to durable, beside a bare aiokafka producer of the same records.

`ingest.batch`: gRPC batches; `ingest.stream`: one PublishStream call; `ingest.ndjson`: one NDJSON request of plain
lines, which get their ids here. Batches wait for their acknowledgements before the next one, with as many in flight
as the bare producer has. The service is its own process, as deployed; the bare producer, with the service's own
options, has no door, no validation and no verdicts.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import grpc
import httpx
from aiokafka import AIOKafkaProducer
from beside import process
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.canonical import stream_hash, to_json
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.ingestion.v1 import ingestion_pb2 as messages
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub
from tidemill_contracts.instants import parse_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_contracts.topics import fixed_topics, stream_topics
from tidemill_testkit.ports import free_address

PREFIX = "bench-ingest."
BATCH = 500
BATCHES = 60
IN_FLIGHT = 4
RUNS = 5
ASKED_AT = "2013-01-01T08:15:00Z"
_TEXT, _NUMBER, _INSTANT = (
    definition.FIELD_TYPE_STRING,
    definition.FIELD_TYPE_FLOAT64,
    definition.FIELD_TYPE_TIMESTAMP,
)
_FIELDS = {
    "flight_id": _TEXT,
    "origin": _TEXT,
    "dest": _TEXT,
    "carrier": _TEXT,
    "tailnum": _TEXT,
    "departs_at": _INSTANT,
    "distance_miles": _NUMBER,
    "asked_at": _INSTANT,
}
STREAM = definition.Stream(
    name="flight-scheduled",
    fields=[definition.Field(name=name, type=kind) for name, kind in _FIELDS.items()],
    key_field="flight_id",
    time_field="asked_at",
    partitions=4,
    dedup_window_ms=3_600_000,
    max_future_ms=600_000,
)


def flight(number: int) -> bytes:
    """Return one event of the demo's widest stream."""
    event = {
        "flight_id": f"2013-01-01-UA-{number}",
        "origin": "EWR",
        "dest": "IAH",
        "carrier": "UA",
        "tailnum": "N14228",
        "departs_at": "2013-01-01T10:15:00Z",
        "distance_miles": 1400.0,
        "asked_at": ASKED_AT,
    }
    return json.dumps(event, separators=(",", ":")).encode()


async def register(client: dict[str, Any]) -> None:
    """Create the topics and announce the stream as the registry does."""
    await create_topics(client, [*fixed_topics(), *stream_topics([(STREAM.name, STREAM.partitions)])], PREFIX)
    record = definition.DefinitionRecord(
        kind="stream", name=STREAM.name, revision=1, definition=definition.Definition(streams=[STREAM])
    )
    async with AIOKafkaProducer(**client) as producer:
        await producer.send_and_wait(PREFIX + "registry.pipelines.v1", to_json(record), key=b"stream")


@contextmanager
def service(bootstrap: str) -> Iterator[tuple[str, str]]:
    """Run ingestion as its own process and lend its addresses, gRPC and HTTP."""
    grpc_at, http_at = free_address(), free_address()
    settings = {"KAFKA__BOOTSTRAP": bootstrap, "KAFKA__TOPIC_PREFIX": PREFIX}
    settings |= {"GRPC__LISTEN": grpc_at, "HTTP__LISTEN": http_at}
    settings |= {"LOG_LEVEL": "warning"}
    environment = {f"TIDEMILL_INGESTION_{name}": value for name, value in settings.items()}
    with process("-m", "tidemill_ingestion", **environment):
        yield grpc_at, http_at


async def rate(send: Callable[[int], Awaitable[None]], first: int) -> float:
    """Return events per second of `BATCHES` batches, `IN_FLIGHT` of them at a time."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(number: int) -> None:
        async with gate:
            await send(number)

    began = perf_counter()
    await asyncio.gather(*(one(first + number) for number in range(BATCHES)))
    return BATCH * BATCHES / (perf_counter() - began)


async def through_service(address: str) -> Callable[[int], Awaitable[None]]:
    """Return what publishes one batch through the service and checks its verdicts."""
    channel = grpc.aio.insecure_channel(address)
    publish: Any = IngestionServiceStub(channel).PublishBatch
    progress: Any = ProgressServiceStub(channel)
    known = [progress_pb2.TopicPartitionOffset(topic="registry.pipelines.v1", next_offset=1)]
    await progress.WaitProgress(
        progress_pb2.WaitProgressRequest(stage="publish", offsets=known), wait_for_ready=True, timeout=60
    )

    async def send(number: int) -> None:
        numbers = range(number * BATCH, (number + 1) * BATCH)
        events = [messages.Event(id=str(one), data=flight(one)) for one in numbers]
        batch = messages.StreamEvents(stream=STREAM.name, source="bench", events=events)
        response = await publish(messages.PublishBatchRequest(batches=[batch]))
        if response.accepted != BATCH:
            raise RuntimeError(f"{response.accepted} of {BATCH} events were accepted")

    return send


async def stream_rate(address: str, first: int) -> float:
    """Return events per second of one PublishStream call with `BATCH` events in each message."""
    async with grpc.aio.insecure_channel(address) as channel:

        async def requests() -> AsyncIterator[messages.PublishStreamRequest]:
            for number in range(first, first + BATCHES):
                numbers = range(number * BATCH, (number + 1) * BATCH)
                events = [messages.Event(id=str(one), data=flight(one)) for one in numbers]
                yield messages.PublishStreamRequest(stream=STREAM.name, source="bench", events=events)

        call: Any = IngestionServiceStub(channel).PublishStream(requests())
        began, accepted = perf_counter(), 0
        async for response in call:
            accepted += sum(verdict.outcome == messages.OUTCOME_ACCEPTED for verdict in response.verdicts)
        return checked(accepted) / (perf_counter() - began)


async def ndjson_rate(address: str, first: int) -> float:
    """Return events per second of one NDJSON request."""

    async def body() -> AsyncIterator[bytes]:
        for number in range(first, first + BATCHES):
            yield b"".join(flight(one) + b"\n" for one in range(number * BATCH, (number + 1) * BATCH))

    began = perf_counter()
    async with httpx.AsyncClient(timeout=60) as client:
        answer = await client.post(
            f"http://{address}/v1/streams/{STREAM.name}/events?verdicts=refused",
            content=body(),
            headers={"content-type": "application/x-ndjson"},
        )
    return checked(json.loads(answer.text.splitlines()[-1])["accepted"]) / (perf_counter() - began)


def checked(accepted: int) -> int:
    """Return how many events were accepted: all of them. Raises `RuntimeError`."""
    if accepted != BATCH * BATCHES:
        raise RuntimeError(f"{accepted} of {BATCH * BATCHES} events were accepted")
    return accepted


def bare(producer: AIOKafkaProducer) -> Callable[[int], Awaitable[None]]:
    """Return what writes one batch of the same records with nothing in front of Kafka."""

    async def send(number: int) -> None:
        pending = [
            await producer.send(
                f"{PREFIX}events.{STREAM.name}", flight(one), key=f"2013-01-01-UA-{one}".encode(), headers=headers(one)
            )
            for one in range(number * BATCH, (number + 1) * BATCH)
        ]
        await asyncio.gather(*pending)

    return send


def headers(number: int) -> list[tuple[str, bytes]]:
    """Return the headers that the service writes."""
    return to_headers(Attributes(str(number), "bench", EVENT_TYPE, _TIME_US, subject=STREAM.name, dataschema=_SCHEMA))


_TIME_US = parse_us(ASKED_AT)
_SCHEMA = stream_hash(STREAM)


async def measure(bootstrap: str, grpc_at: str, http_at: str) -> dict[str, list[float]]:
    """Return the rates of all, taken in turns so that the machine's moods hit all; the first turn warms up."""
    through = await through_service(grpc_at)
    rates: dict[str, list[float]] = {"batch": [], "stream": [], "ndjson": [], "bare": []}
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap, enable_idempotence=True, acks="all", linger_ms=0, max_batch_size=256 * 1024
    ) as producer:
        for turn in range(RUNS + 1):
            first = 4 * turn * BATCHES
            rates["batch"].append(await rate(through, first))
            rates["stream"].append(await stream_rate(grpc_at, first + BATCHES))
            rates["ndjson"].append(await ndjson_rate(http_at, first + 2 * BATCHES))
            rates["bare"].append(await rate(bare(producer), first + 3 * BATCHES))
    return {name: sorted(values[1:]) for name, values in rates.items()}


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure every door on the given Kafka."""
    asyncio.run(register({"bootstrap_servers": servers.kafka}))
    with service(servers.kafka) as (grpc_at, http_at):
        rates = asyncio.run(measure(servers.kafka, grpc_at, http_at))
    baseline = median(rates.pop("bare"))
    return [
        {
            "name": f"ingest.{name}",
            "value": median(found),
            "unit": "events/s",
            "baseline": "bare aiokafka producer, same records",
            "baseline_value": baseline,
            "ratio": median(found) / baseline,
            "min": found[0],
            "median": median(found),
            "max": found[-1],
            "runs": RUNS,
        }
        for name, found in rates.items()
    ]
