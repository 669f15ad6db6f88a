"""Training against the real Kafka and PostgreSQL, with stand-ins for its two peers on the wire."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiokafka import AIOKafkaProducer
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import SecretStr
from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.causes import cause_key
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import parse_us, to_timestamp
from tidemill_contracts.kafka_admin import create_topics
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1 import progress_pb2_grpc as progress_grpc
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.registry.v1 import registry_pb2_grpc as registry_grpc
from tidemill_contracts.topics import fixed_topics
from tidemill_contracts.training.v1 import training_pb2 as training
from tidemill_contracts.training.v1 import training_pb2_grpc as training_grpc
from tidemill_models.keys import generate_key_pair
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.grpc_server import GrpcServer
from tidemill_runtime.health import Health
from tidemill_runtime.lifecycle import running
from tidemill_runtime.settings import GrpcSettings, KafkaSettings, PostgresSettings
from tidemill_testkit.ports import free_address
from tidemill_testkit.topic_records import topic_records
from tidemill_training.adapters.processes import Launch, StartProcess, open_process
from tidemill_training.app import open_service
from tidemill_training.requests import TOPIC as REQUESTS
from tidemill_training.run_records import TOPIC as RUNS
from tidemill_training.settings import TrainingSettings

AT = to_timestamp(parse_us("2013-06-06T14:00:00Z"))
PIPELINE = "late"
LINE = {
    "kind": "done",
    "version": {
        "pipeline": PIPELINE,
        "run_id": "RUN",
        "bundle": "late/x",
        "metrics": {"log_loss": 0.4},
        "lineage": {"definition_hash": "sha256:d"},
    },
    "details": {"training_rows": 7},
}
DONE = f"print({json.dumps(LINE)!r}.replace('RUN', spec['run_id']))\n"


class StandInRegistry(registry_grpc.RegistryServiceServicer):
    """Runs and versions in memory, by the rules of the wire: one run per cause, one version per run."""

    def __init__(self) -> None:
        self.runs: dict[str, registry.Run] = {}
        self.versions: dict[str, records.VersionRecord] = {}
        self.record = definition.DefinitionRecord(kind="pipeline", name=PIPELINE, hash="sha256:d")
        self.record.definition.pipelines.add(name=PIPELINE, request="asked", label=definition.Label(stream="asked"))
        self.deployment: records.DeploymentRecord | None = None
        self.retired = False
        self.away = False
        # Names of single calls that are not answered.
        self.away_for: set[str] = set()

    def _reachable(self, call: str = "") -> None:
        if self.away or call in self.away_for:
            raise Retryable("the registry is away")

    def _require(self, pipeline: str) -> None:
        if pipeline != PIPELINE:
            raise Poison(Reason.UNKNOWN_PIPELINE, f"no pipeline {pipeline!r}")
        if self.retired:
            raise Poison(Reason.UNKNOWN_PIPELINE, f"pipeline {pipeline!r} was retired")

    async def GetDefinition(self, request: Any, context: Any) -> registry.GetDefinitionResponse:  # noqa: N802
        self._reachable()
        self._require(request.name)
        return registry.GetDefinitionResponse(record=self.record)

    async def StartRun(self, request: Any, context: Any) -> registry.StartRunResponse:  # noqa: N802
        self._reachable()
        self._require(request.pipeline)
        run_id = f"run-{request.cause_key[-6:]}"
        created = run_id not in self.runs
        run = self.runs.setdefault(
            run_id,
            registry.Run(run_id=run_id, pipeline=PIPELINE, cause_key=request.cause_key, status="started", attempts=0),
        )
        run.attempts += run.status == "started"
        return registry.StartRunResponse(run=run, created=created)

    async def FinishRun(self, request: Any, context: Any) -> registry.FinishRunResponse:  # noqa: N802
        self._reachable("FinishRun")
        run = self.runs[request.run_id]
        if run.status == request.status:
            return registry.FinishRunResponse(run=run)
        if run.status != "started":
            raise Poison(Reason.CONFLICT, f"has {run.status} already")
        run.status, run.reason = request.status, request.reason
        run.details.CopyFrom(request.details)
        return registry.FinishRunResponse(run=run)

    async def RegisterVersion(self, request: Any, context: Any) -> registry.RegisterVersionResponse:  # noqa: N802
        self._reachable("RegisterVersion")
        self._require(request.pipeline)
        if request.run_id not in self.versions:
            version = records.VersionRecord(
                pipeline=PIPELINE,
                version=len(self.versions) + 1,
                bundle=request.bundle,
                manifest_hash=request.manifest_hash,
                run_id=request.run_id,
                gates=request.gates,
                lineage=request.lineage,
            )
            version.metrics.update(request.metrics)
            self.versions[request.run_id] = version
            self.runs[request.run_id].version = version.version
        return registry.RegisterVersionResponse(version=self.versions[request.run_id])

    async def GetVersion(self, request: Any, context: Any) -> registry.GetVersionResponse:  # noqa: N802
        (version,) = [version for version in self.versions.values() if version.version == request.version]
        return registry.GetVersionResponse(version=version)

    async def GetDeployment(self, request: Any, context: Any) -> registry.GetDeploymentResponse:  # noqa: N802
        self._reachable()
        if self.deployment is None:
            raise Poison(Reason.NO_MODEL, "nothing deployed yet")
        return registry.GetDeploymentResponse(deployment=self.deployment)


class StandInFeature(progress_grpc.ProgressServiceServicer):
    """An offline log that says it holds whatever is asked for, and remembers what that was."""

    def __init__(self) -> None:
        self.asked: list[progress.WaitProgressRequest] = []

    async def WaitProgress(self, request: Any, context: Any) -> progress.WaitProgressResponse:  # noqa: N802
        self.asked.append(request)
        return progress.WaitProgressResponse()


@asynccontextmanager
async def serving(add: Callable[[Any, Any], None], servicer: Any) -> AsyncIterator[str]:
    server = GrpcServer(GrpcSettings(), Health())
    server.add(add, servicer)
    async with running(server):
        yield f"127.0.0.1:{server.port}"


@dataclass
class World:
    """One test's Kafka prefix, database, peers, and however many training services."""

    settings: TrainingSettings
    registry: StandInRegistry
    feature: StandInFeature
    home: Path
    producer: Any
    pipeline: str = PIPELINE
    # Code that answers with a version, as a finished run does.
    done: str = DONE

    @property
    def at(self) -> Timestamp:
        return AT

    @property
    def kafka(self) -> KafkaSettings:
        return self.settings.kafka

    @asynccontextmanager
    async def service(self, start: StartProcess = open_process, listen: str = "") -> AsyncIterator[None]:
        grpc_settings = GrpcSettings(listen=listen or self.settings.grpc.listen)
        async with open_service(self.settings.model_copy(update={"grpc": grpc_settings}), Health(), start):
            yield

    def stand_in(self, code: str) -> StartProcess:
        """Return a way to start runs whose process executes `code` after it has read `spec`."""
        preamble = (
            "import json, os, signal, sys, time\n"
            "from tidemill_training.run import bound\n"
            "bound(*map(int, sys.argv[1:4]))\n"
            "spec = json.loads(sys.stdin.read())\n"
        )
        (self.home / "stand_in.py").write_text(preamble + code)

        def start(launch: Launch) -> Any:
            return open_process(launch, "stand_in")

        return start

    async def ask(self, cause_id: str, *, pipeline: str = PIPELINE, value: bytes | None = None) -> int:
        """Write a request and return the offset after it."""
        request = monitoring.RetrainRequest(
            request_id=f"request-{cause_id}",
            pipeline=pipeline,
            cause_key=cause_key(pipeline, "drift", cause_id),
            cause_kind="drift",
            cause_id=cause_id,
            event_time=AT,
            reason="a test",
        )
        raw = to_json(request) if value is None else value
        placed = await self.producer.send_and_wait(self.kafka.physical(REQUESTS), raw, key=pipeline.encode())
        return int(placed.offset) + 1

    async def ended(self, next_offset: int, timeout_s: float = 120.0) -> list[progress.TopicPartitionOffset]:
        """Wait for stage "runs" and return what was written."""
        wanted = [progress.TopicPartitionOffset(topic=REQUESTS, next_offset=next_offset)]
        async with grpc.aio.insecure_channel(self.settings.grpc.listen) as channel:
            stub: Any = progress_grpc.ProgressServiceStub(channel)
            answer = await stub.WaitProgress(
                progress.WaitProgressRequest(stage="runs", offsets=wanted), timeout=timeout_s, wait_for_ready=True
            )
        return list(answer.written)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(self.settings.grpc.listen) as channel:
            yield training_grpc.TrainingServiceStub(channel)

    async def ledger(self, statement: str) -> Any:
        """Return what PostgreSQL answers: the first value of the first row."""
        connection = await asyncpg.connect(self.settings.postgres.url())
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    async def records(self, topic: str = RUNS) -> list[Any]:
        """Return the records of a topic of one partition."""
        return await topic_records(self.kafka.client_kwargs(), self.kafka.physical(topic), [0])

    async def runs(self) -> list[training.RunRecord]:
        return [from_json(record.value, training.RunRecord()) for record in await self.records()]

    async def steps(self) -> list[str]:
        """Return what was said on the topic, as "run status"."""
        return [f"{record.run_id} {record.status}" for record in await self.runs()]


@pytest.fixture
async def world(
    request: pytest.FixtureRequest, topic_prefix: str, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    kafka = KafkaSettings(bootstrap=request.getfixturevalue("servers").kafka, topic_prefix=topic_prefix)
    await create_topics(kafka.client_kwargs(), fixed_topics(), topic_prefix)
    private, _ = generate_key_pair()
    (tmp_path / "signing.pem").write_bytes(private)
    # The base class answers UNIMPLEMENTED for what training never calls.
    stand_in_registry = StandInRegistry()  # type: ignore[abstract]
    stand_in_feature = StandInFeature()
    async with AsyncExitStack() as stack:
        addresses = [
            await stack.enter_async_context(
                serving(registry_grpc.add_RegistryServiceServicer_to_server, stand_in_registry)
            ),
            await stack.enter_async_context(
                serving(progress_grpc.add_ProgressServiceServicer_to_server, stand_in_feature)
            ),
        ]
        producer = AIOKafkaProducer(**kafka.client_kwargs(), acks="all")
        await producer.start()
        stack.push_async_callback(producer.stop)
        settings = TrainingSettings.model_validate(
            {
                "kafka": kafka,
                "postgres": PostgresSettings(dsn=SecretStr(database)),
                "grpc": GrpcSettings(listen=free_address()),
                "registry": addresses[0],
                "feature": addresses[1],
                "artifacts": str(tmp_path / "artifacts"),
                "signing_key_file": tmp_path / "signing.pem",
                "datadir": tmp_path / "faust",
                "max_attempts": 3,
                "run_wall_s": 90.0,
            }
        )
        yield World(settings, stand_in_registry, stand_in_feature, tmp_path, producer)
