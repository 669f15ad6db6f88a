"""A registry, an ingestion service as a process, and the command line as people run it, on the real servers."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from tidemill_contracts.ingestion.v1.ingestion_pb2_grpc import IngestionServiceStub
from tidemill_contracts.progress.v1 import progress_pb2
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_registry.app import open_service
from tidemill_registry.settings import Settings
from tidemill_runtime.health import Health
from tidemill_runtime.settings import GrpcSettings, KafkaSettings, PostgresSettings
from tidemill_testkit.orphans import dying_with_us
from tidemill_testkit.ports import free_address
from tidemill_testkit.topic_records import topic_records


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of a command that was asked for JSON."""
        return json.loads(self.out.strip().splitlines()[-1])


class Ingestion:
    """The ingestion service as a process of its own, at an address that outlives it."""

    def __init__(self, kafka: KafkaSettings, folder: Path) -> None:
        self.kafka = kafka
        self.address = free_address()
        self._log = folder / "ingestion.log"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, **environment: object) -> None:
        """Start it; returns once it answers."""
        self._launch(environment)
        async with grpc.aio.insecure_channel(self.address) as channel:
            request = progress_pb2.WaitProgressRequest(stage="publish")
            await ProgressServiceStub(channel).WaitProgress(request, timeout=60, wait_for_ready=True)

    def _launch(self, environment: Mapping[str, object]) -> None:
        settings = {
            "KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "KAFKA__TOPIC_PREFIX": self.kafka.topic_prefix,
            "GRPC__LISTEN": self.address,
            **environment,
        }
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                dying_with_us([sys.executable, "-m", "tidemill_ingestion"]),
                env={**os.environ, **{f"TIDEMILL_INGESTION_{name}": str(value) for name, value in settings.items()}},
                stdout=output,
                stderr=output,
            )

    async def stop(self, number: int = signal.SIGTERM) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            await asyncio.to_thread(self._process.wait, 60)


@dataclass
class Desk:
    """Where somebody sits who runs commands."""

    kafka: KafkaSettings
    registry: str
    ingestion: Ingestion
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    async def begin(self, *arguments: object) -> asyncio.subprocess.Process:
        """Start a command."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidemill.cli.main",
            *map(str, arguments),
            env={**os.environ, **self.environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *arguments: object) -> Done:
        """Run a command to its end."""
        return await self.done(await self.begin(*arguments))

    async def done(self, process: asyncio.subprocess.Process) -> Done:
        """Return how a command that was started ended."""
        async with asyncio.timeout(180):
            out, err = await process.communicate()
        assert b"Traceback" not in err, err.decode()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        return path

    async def apply(self, text: str, *options: object) -> Done:
        """Apply a definition."""
        return await self.run("apply", self.write("definition.py", text), "--json", *options)

    async def publish(self, request: Any) -> Any:
        async with grpc.aio.insecure_channel(self.ingestion.address) as channel:
            return await IngestionServiceStub(channel).PublishBatch(request, timeout=60)

    async def ends(self, topic: str) -> list[int]:
        """Return the end offset of each partition of a topic."""
        places = await self._places(topic)
        async with self._consumer() as consumer:
            ends = await consumer.end_offsets(places)
        return [ends[place] for place in places]

    async def log(self, topic: str) -> list[Any]:
        """Return every record of a topic."""
        places = await self._places(topic)
        numbers = [place.partition for place in places]
        return await topic_records(self.kafka.client_kwargs(), self.kafka.physical(topic), numbers)

    def _consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(**self.kafka.client_kwargs(), auto_offset_reset="earliest", enable_auto_commit=False)

    async def _places(self, topic: str) -> list[TopicPartition]:
        """Return the partitions of a topic that the broker has now."""
        name = self.kafka.physical(topic)
        admin = AIOKafkaAdminClient(**self.kafka.client_kwargs())
        await admin.start()
        try:
            (found,) = await admin.describe_topics([name])
        finally:
            await admin.close()
        return [TopicPartition(name, number) for number in range(len(found["partitions"]))]


@pytest_asyncio.fixture
async def desk(servers: Any, topic_prefix: str, database: str, tmp_path: Path) -> AsyncIterator[Desk]:
    kafka = KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix)
    address = free_address()
    settings = Settings(
        kafka=kafka,
        postgres=PostgresSettings(dsn=database),  # type: ignore[arg-type]
        grpc=GrpcSettings(listen=address),
    )
    ingestion = Ingestion(kafka, tmp_path)
    environment = {
        "TIDEMILL_REGISTRY": address,
        "TIDEMILL_INGESTION": ingestion.address,
        "TIDEMILL_KAFKA": kafka.bootstrap,
        "TIDEMILL_TOPIC_PREFIX": kafka.topic_prefix,
        "TIDEMILL_ACTOR": "ada",
    }
    async with open_service(settings, Health()):
        try:
            yield Desk(kafka, address, ingestion, tmp_path, environment)
        finally:
            await ingestion.stop(signal.SIGKILL)
