"""`serving.predict`: single predictions with features fetched and logged ASYNC, beside a bare gRPC echo.

Both servers are processes of their own on `grpc.aio`; one client keeps 16 calls in flight and sends the same bytes.
"""

import asyncio
import secrets
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import numpy as np
from beside import process
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis
from tidemill.stack.endpoints import Endpoints
from tidemill_contracts.canonical import to_json
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_contracts.topics import fixed_topics
from tidemill_models.learners.interface import build
from tidemill_models.manifest import Constructor
from tidemill_models.store import LocalStore
from tidemill_runtime.producer import Outgoing, Producer
from tidemill_runtime.settings import KafkaSettings
from tidemill_testkit.flight_world import (
    NOON_US,
    PIPELINE,
    Versions,
    definition_record,
    deployment,
    encoding,
    request_fields,
    rings,
)
from tidemill_testkit.ports import free_address

IN_FLIGHT = 16
RUN_S = 3.0
READY_S = 60.0
RUNS = 5
PREDICT = "/tidemill.serving.v1.PredictionService/Predict"
ECHO = """
import asyncio, sys, grpc
from tidemill_contracts.serving.v1 import serving_pb2 as m

async def echo(request, context):
    return request

async def main():
    handler = grpc.unary_unary_rpc_method_handler(echo, m.PredictRequest.FromString, m.PredictRequest.SerializeToString)
    server = grpc.aio.server()
    service = "tidemill.serving.v1.PredictionService"
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {"Predict": handler})])
    server.add_insecure_port(sys.argv[1])
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


def trees() -> bytes:
    """Return a boosted model of the pipeline's features as ONNX, of the size that the demo trains."""
    random = np.random.default_rng(7)
    x = random.normal(size=(4_000, encoding().width)).astype(np.float32)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + random.normal(size=len(x)) > 0).astype(np.float64)
    parameters = {"n_estimators": 200, "max_depth": 5}
    learner = build(Constructor("xgboost", "", parameters), encoding(), seed=7).fit(x, y)
    export = learner.export(x)
    return export.files[export.model_file]


async def prepare(servers: Endpoints, folder: Path, prefix: str) -> dict[str, str]:
    """Register, deploy and fill everything that serving reads, and return its environment."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "verify.pem").write_bytes(public)
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=prefix)
    await create_topics(kafka.client_kwargs(), fixed_topics(), prefix)
    versions, model = Versions(key, LocalStore(folder / "artifacts").publish), trees()
    champion, baseline = (versions.make(number, scorer="onnx", model=model) for number in (1, 2))
    async with Redis.from_url(servers.redis) as redis, Producer(kafka) as producer:
        await redis.mset(rings(range(2_000), project=prefix))
        record = deployment(1, champion, baselines=[baseline])
        await producer.send_all(
            [
                Outgoing("registry.pipelines.v1", to_json(definition_record()), f"pipeline/{PIPELINE}".encode()),
                Outgoing("registry.deployments.v1", to_json(record), PIPELINE.encode()),
            ]
        )
    values = {
        "KAFKA__BOOTSTRAP": servers.kafka,
        "KAFKA__TOPIC_PREFIX": prefix,
        "REDIS__URL": servers.redis,
        "ARTIFACTS": str(folder / "artifacts"),
        "VERIFY_KEY_FILE": str(folder / "verify.pem"),
        "PROJECT": prefix,
        "GRPC__LISTEN": free_address(),
        "LOG_LEVEL": "warning",
    }
    return {f"TIDEMILL_SERVING_{name}": value for name, value in values.items()}


def payloads() -> list[bytes]:
    """Return a spread of requests, serialised once."""
    return [
        messages.PredictRequest(
            pipeline=PIPELINE, fields=request_fields(number), as_of_us=NOON_US, log=messages.LOG_MODE_ASYNC
        ).SerializeToString()
        for number in range(997)
    ]


async def answering(call: Any, request: bytes) -> None:
    """Return once the server answers; a service that still loads its deployments does not yet."""
    ends = time.perf_counter() + READY_S
    while True:
        try:
            await call(request, wait_for_ready=True, timeout=20)
        except grpc.aio.AioRpcError:
            if time.perf_counter() > ends:
                raise
            await asyncio.sleep(0.1)
        else:
            return


async def rate(target: str, requests: list[bytes], seconds: float) -> tuple[float, list[float]]:
    """Return calls per second and the latencies in milliseconds, with 16 in flight."""
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(PREDICT)
        await answering(call, requests[0])
        began = time.perf_counter()
        ends = began + seconds

        async def client(first: int) -> None:
            number = first
            while (sent := time.perf_counter()) < ends:
                await call(requests[number % len(requests)], timeout=20)
                latencies.append((time.perf_counter() - sent) * 1000)
                number += IN_FLIGHT

        await asyncio.gather(*(client(first) for first in range(IN_FLIGHT)))
        return len(latencies) / (time.perf_counter() - began), latencies


async def measure(serving: str, echo: str) -> dict[str, Any]:
    """Return the entry of `serving.predict`; runs of both alternate, so that the machine's moods hit both."""
    requests = payloads()
    for target in (serving, echo):
        await rate(target, requests, 1.0)
    ours: list[float] = []
    bare: list[float] = []
    latencies: list[float] = []
    for _ in range(RUNS):
        value, took = await rate(serving, requests, RUN_S)
        ours.append(value)
        latencies += took
        bare.append((await rate(echo, requests, RUN_S))[0])
    latencies.sort()
    return {
        "name": "serving.predict",
        "value": median(ours),
        "unit": "predictions/s",
        "baseline": "bare grpc.aio echo",
        "baseline_value": median(bare),
        "ratio": median(ours) / median(bare),
        "min": min(ours),
        "median": median(ours),
        "max": max(ours),
        "runs": RUNS,
        "p50_ms": latencies[len(latencies) // 2],
        "p99_ms": latencies[len(latencies) * 99 // 100],
    }


def run(servers: Endpoints) -> list[dict[str, Any]]:
    """Measure serving against the echo on existing servers."""
    with tempfile.TemporaryDirectory(prefix="tm-serving-") as folder:
        environment = asyncio.run(prepare(servers, Path(folder), f"bench-{secrets.token_hex(4)}."))
        echo = free_address()
        with process("-m", "tidemill_serving", **environment), process("-c", ECHO, echo):
            return [asyncio.run(measure(environment["TIDEMILL_SERVING_GRPC__LISTEN"], echo))]
