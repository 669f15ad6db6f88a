"""`feature.read_1` and `feature.read_50`: latency of reads of 1 and 50 entities x 5 views x 10 features over gRPC.

The feature service is a process of its own; its worker has folded the events before. The baseline is Feast's Python
feature server with the same Redis, asked over HTTP by a bare client; both hold as many entities, views and features.
Where Feast does not install, it is a bare gRPC echo, and the entry says so. One client asks one thing after the other.
`cpu_ms` is what a read costs the server's processes, which says more than latencies do on a machine that is busy;
`grpc_p50_ms` and `grpc_p99_ms` are what grpc.aio itself takes for messages about as long: no server on it is faster.
"""

import asyncio
import http.client
import importlib.util
import json
import random
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import psutil
from beside import online_feature, process
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.canonical import to_json
from tidemill_contracts.cloudevents import EVENT_TYPE, Attributes, to_headers
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.instants import format_us
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.topics import fixed_topics, stream_topics
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import free_address


def _feast() -> Any:
    """Load the module beside this one, whatever the working folder."""
    spec = importlib.util.spec_from_file_location("feast_server", Path(__file__).with_name("feast_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["feast_server"] = module
    spec.loader.exec_module(module)
    return module


feast_server = _feast()
VIEWS, ENTITIES = feast_server.VIEWS, feast_server.ENTITIES
EVENTS, READS, RUNS = 20_000, 300, 5
FEAST_READS = 60
READY_S = 60.0
NOON_US = 1_370_347_200_000_000
# How many times as long as its question an answer is, about.
ANSWER = 10
METHOD = "/tidemill.feature.v1.FeatureService/GetFeatures"
ECHO = """
import asyncio, sys, grpc

async def echo(request, context):
    return request * int(sys.argv[2])

async def main():
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(echo)
    service = "tidemill.feature.v1.FeatureService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"GetFeatures": handler})])
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""
_STRING, _FLOAT, _INT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_FLOAT64, definition.FIELD_TYPE_INT64
STREAM = definition.Stream(
    name="paid",
    fields=[
        *(definition.Field(name=name, type=_STRING) for name in ("payment", *VIEWS)),
        definition.Field(name="amount", type=_FLOAT),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payment",
    time_field="at",
    partitions=1,
    lateness_ms=60_000,
    late_policy=definition.LATE_POLICY_DROP,
    dedup_window_ms=1_000,
)


def view(entity: str) -> definition.View:
    """Return a view with five features over each of two windows."""
    features = [
        definition.Aggregation(
            name=f"{name.lower()}_{hours}h",
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{name}"),
            window_ms=hours * 3_600_000,
            expression="" if name == "COUNT" else "amount",
            type=_INT if name == "COUNT" else _FLOAT,
        )
        for hours in (2, 6)
        for name in ("COUNT", "SUM", "MEAN", "MIN", "MAX")
    ]
    accuracy = definition.ACCURACY_HOP
    return definition.View(name=entity, stream="paid", entity=[entity], features=features, accuracy=accuracy)


def events() -> list[Outgoing]:
    """Return payments of two hours before noon."""
    chance = random.Random(7)
    found = []
    for number in range(EVENTS):
        at_us = NOON_US - (EVENTS - number) * 360_000
        fields: dict[str, Any] = {name: f"{name}-{chance.randrange(ENTITIES)}" for name in VIEWS}
        fields |= {"payment": f"p{number}", "amount": round(chance.uniform(1, 500), 2), "at": format_us(at_us)}
        headers = to_headers(Attributes(f"p{number}", "bench", EVENT_TYPE, at_us, "paid"))
        found.append(Outgoing("events.paid", json.dumps(fields).encode(), key=f"p{number}".encode(), headers=headers))
    return found


async def prepare(servers: Endpoints, prefix: str) -> dict[str, str]:
    """Register and send everything, and return the service's environment."""
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=prefix)
    await create_topics(kafka.client_kwargs(), [*fixed_topics(), *stream_topics([("paid", 1)])], prefix)
    async with Producer(kafka) as producer:
        closure = definition.Definition(streams=[STREAM], views=[view(name) for name in VIEWS])
        for one in closure.views:
            record = definition.DefinitionRecord(kind="view", name=one.name, definition=closure)
            await producer.send_all([Outgoing("registry.pipelines.v1", to_json(record), f"view/{one.name}".encode())])
        await producer.send_all(events())
    return online_feature(servers, prefix)


def chosen(count: int, chance: random.Random) -> dict[str, list[str]]:
    """Return as many entities of every view."""
    return {name: [f"{name}-{number}" for number in chance.sample(range(ENTITIES), count)] for name in VIEWS}


def questions(count: int) -> list[bytes]:
    """Return a spread of requests, serialised once."""
    chance = random.Random(count)
    found = []
    for _ in range(97):
        views = [
            messages.ViewKeys(
                view=name, keys=[messages.EntityKey(values=[messages.Scalar(string_value=one)]) for one in entities]
            )
            for name, entities in chosen(count, chance).items()
        ]
        request = messages.GetFeaturesRequest(views=views, as_of_us=NOON_US, columnar=True)
        found.append(request.SerializeToString())
    return found


def bodies(count: int) -> list[bytes]:
    """Return the same questions as Feast is asked them."""
    chance = random.Random(count)
    references = [f"{name}:f{number}" for name in VIEWS for number in range(feast_server.FEATURES)]
    return [
        json.dumps(
            {
                "features": references,
                "entities": {f"{name}_id": entities for name, entities in chosen(count, chance).items()},
                "full_feature_names": True,
            }
        ).encode()
        for _ in range(97)
    ]


def cpu_ms(pid: int) -> float:
    """Return what a process and its children have used."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family) * 1000


@dataclass
class Server:
    """A server that is asked, and what it took: latencies, and the processor's time."""

    name: str
    pid: int
    ask: Callable[[bytes], None]
    questions: Callable[[int], list[bytes]]
    reads: int
    took_ms: list[float] = field(default_factory=list)
    p99s_ms: list[float] = field(default_factory=list)
    used_ms: float = 0.0

    def warm(self, asked: list[bytes]) -> None:
        """Ask, and forget what it took."""
        self.measure(asked)
        self.took_ms, self.p99s_ms, self.used_ms = [], [], 0.0

    def measure(self, asked: list[bytes]) -> None:
        """Ask one question after the other."""
        found, used_ms = [], cpu_ms(self.pid)
        for number in range(self.reads):
            began = perf_counter()
            self.ask(asked[number % len(asked)])
            found.append((perf_counter() - began) * 1000)
        self.used_ms += cpu_ms(self.pid) - used_ms
        self.p99s_ms.append(quantile(sorted(found), 0.99))
        self.took_ms = sorted([*self.took_ms, *found])

    @property
    def cpu_ms(self) -> float:
        """What one read costs."""
        return self.used_ms / len(self.took_ms)


def of_grpc(channel: grpc.Channel) -> Callable[[bytes], None]:
    """Return what asks over gRPC."""
    call: Any = channel.unary_unary(METHOD)

    def ask(request: bytes) -> None:
        call(request, timeout=10)

    return ask


def of_http(host: str, port: int) -> Callable[[bytes], None]:
    """Return what asks Feast, on a connection that stays open."""
    connection = http.client.HTTPConnection(host, port, timeout=30)
    headers = {"content-type": "application/json"}

    def ask(body: bytes) -> None:
        connection.request("POST", "/get-online-features", body, headers)
        response = connection.getresponse()
        raw = response.read()
        if response.status != http.client.OK or b"NOT_FOUND" in raw:
            raise RuntimeError(f"Feast does not say what it was told: {raw[:300]!r}")

    return ask


def folded(channel: grpc.Channel) -> None:
    """Return once the worker has folded everything."""
    wait: Any = channel.unary_unary(
        "/tidemill.progress.v1.ProgressService/WaitProgress",
        request_serializer=progress.WaitProgressRequest.SerializeToString,
    )
    offsets = [progress.TopicPartitionOffset(topic="events.paid", partition=0, next_offset=EVENTS)]
    request = progress.WaitProgressRequest(stage="online", offsets=offsets)
    wait(request, timeout=READY_S, wait_for_ready=True)


def full(channel: grpc.Channel) -> None:
    """Check that a read has what it should. Raises `RuntimeError`."""
    call: Any = channel.unary_unary(METHOD)
    response = messages.GetFeaturesResponse.FromString(call(questions(50)[0], timeout=10))
    present = sum(column.statuses.count(messages.STATUS_PRESENT) for one in response.columns for column in one.features)
    if present < 0.99 * 50 * len(VIEWS) * feast_server.FEATURES:
        raise RuntimeError(f"only {present} values are present")


@contextmanager
def echoing() -> Iterator[Server]:
    """Yield a server that does nothing."""
    echo = free_address()
    with process("-c", ECHO, echo, str(ANSWER)) as pid, grpc.insecure_channel(echo) as channel:
        grpc.channel_ready_future(channel).result(READY_S)
        yield Server("bare grpc.aio echo", pid, of_grpc(channel), questions, READS)


@contextmanager
def baseline(servers: Endpoints, echo: Server) -> Iterator[Server]:
    """Yield Feast's server, or the echo where there is none."""
    with tempfile.TemporaryDirectory(prefix="tm-feast-") as folder:
        try:
            with feast_server.serving(servers.redis, Path(folder), dying_with_us) as (host, port, pid):
                name = f"Feast {feast_server.VERSION} Python feature server with Redis"
                yield Server(name, pid, of_http(host, port), bodies, FEAST_READS)
        except feast_server.MissingError as error:
            yield replace(echo, name=f"{echo.name} (no Feast: {error})", took_ms=[], p99s_ms=[])


def quantile(latencies: list[float], share: float) -> float:
    """Return a quantile of sorted latencies."""
    return latencies[min(len(latencies) - 1, int(len(latencies) * share))]


def measured(ours: Server, other: Server, echo: Server, count: int) -> dict[str, Any]:
    """Return one entry; runs of the servers alternate, so that the machine's moods hit all."""
    for server in (ours, other, echo):
        server.warm(server.questions(count))
    for _ in range(RUNS):
        for server in (ours, other, echo):
            server.measure(server.questions(count))
    value, baseline_value = quantile(ours.took_ms, 0.99), quantile(other.took_ms, 0.99)
    p50, baseline_p50 = quantile(ours.took_ms, 0.5), quantile(other.took_ms, 0.5)
    return {
        "name": f"feature.read_{count}",
        "value": value,
        "unit": "ms (p99)",
        "baseline": other.name,
        "baseline_value": baseline_value,
        "ratio": value / baseline_value,
        "min": min(ours.p99s_ms),
        "median": sorted(ours.p99s_ms)[RUNS // 2],
        "max": max(ours.p99s_ms),
        "runs": RUNS,
        "p50_ms": p50,
        "baseline_p50_ms": baseline_p50,
        "ratio_p50": p50 / baseline_p50,
        "cpu_ms": ours.cpu_ms,
        "baseline_cpu_ms": other.cpu_ms,
        "ratio_cpu": ours.cpu_ms / other.cpu_ms,
        "grpc_p50_ms": quantile(echo.took_ms, 0.5),
        "grpc_p99_ms": quantile(echo.took_ms, 0.99),
    }


async def cleaned(servers: Endpoints, project: str) -> None:
    """Delete what the benchmark wrote."""
    async with Redis.from_url(servers.redis) as redis:
        keys = [key async for key in redis.scan_iter(match=f"*{{{project}:*", count=5_000)]
        if keys:
            await redis.delete(*keys)
    async with Redis.from_url(servers.redis, db=1) as redis:
        await redis.flushdb()


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure reads against Feast's server on existing servers."""
    prefix = f"bench-{secrets.token_hex(4)}."
    environment = asyncio.run(prepare(servers, prefix))
    target = environment["TIDEMILL_FEATURE_GRPC__LISTEN"]
    try:
        with process("-m", "tidemill_feature", **environment) as pid, grpc.insecure_channel(target) as channel:
            folded(channel)
            full(channel)
            ours = Server("tidemill", pid, of_grpc(channel), questions, READS)
            with echoing() as echo, baseline(servers, echo) as other:
                return [measured(ours, other, echo, count) for count in (1, 50)]
    finally:
        asyncio.run(cleaned(servers, prefix.rstrip(".")))
