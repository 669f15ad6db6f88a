"""A registry on the real servers, and what its tests send it."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.progress.v1 import progress_pb2, progress_pb2_grpc
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as messages
from tidemill_contracts.registry.v1 import registry_pb2_grpc as services
from tidemill_registry.app import open_service
from tidemill_registry.settings import Settings
from tidemill_runtime.health import Health
from tidemill_runtime.settings import GrpcSettings, HttpSettings, KafkaSettings, PostgresSettings
from tidemill_testkit.ports import free_address
from tidemill_testkit.topic_records import topic_records

ACTOR = (("x-tidemill-actor", "ann@example.org"),)
HOUR_US = 3_600_000_000


class Registry:
    """A client of one registry, and a reader of its topics."""

    def __init__(self, settings: Settings, channel: grpc.aio.Channel) -> None:
        self.settings = settings
        self.rpc: Any = services.RegistryServiceStub(channel)
        self.progress: Any = progress_pb2_grpc.ProgressServiceStub(channel)
        self.http = f"http://{settings.http.listen}"

    actor = ACTOR

    async def apply(self, applied: definition.Definition, **wanted: Any) -> list[messages.ObjectChange]:
        return list((await self.apply_whole(applied, **wanted)).changes)

    async def apply_whole(self, applied: definition.Definition, **wanted: Any) -> messages.ApplyDefinitionResponse:
        request = messages.ApplyDefinitionRequest(definition=applied, **wanted)
        response: messages.ApplyDefinitionResponse = await self.rpc.ApplyDefinition(request, metadata=ACTOR)
        return response

    async def start_run(self, cause: str, pipeline: str = "tips") -> messages.StartRunResponse:
        request = messages.StartRunRequest(pipeline=pipeline, cause_key=cause, cause_kind="drift")
        response: messages.StartRunResponse = await self.rpc.StartRun(request, metadata=ACTOR)
        return response

    async def register(
        self,
        cause: str,
        *,
        at_us: int = HOUR_US,
        passed: bool = True,
        pipeline: str = "tips",
        views: Mapping[str, str] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> records.VersionRecord:
        run = (await self.start_run(cause, pipeline)).run
        request = messages.RegisterVersionRequest(
            pipeline=pipeline,
            run_id=run.run_id,
            bundle=f"{pipeline}/{cause}",
            manifest_hash="sha256:" + 64 * "0",
            metrics={"log_loss": 0.5},
            gates=[records.GateResult(gate="better", passed=passed, reason="because")],
            event_time=to_timestamp(at_us),
            cause_id=cause,
            views=views,
            sources=sources,
        )
        request.reference.update({"rows": 10})
        version: records.VersionRecord = (await self.rpc.RegisterVersion(request, metadata=ACTOR)).version
        return version

    async def wait(self, offsets: list[progress_pb2.TopicPartitionOffset] | None = None) -> dict[str, int]:
        request = progress_pb2.WaitProgressRequest(stage="outbox", offsets=offsets)
        response = await self.progress.WaitProgress(request, timeout=60)
        return {written.topic: written.next_offset for written in response.written}

    @staticmethod
    def refusal(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, str]:
        """Return the code, the named reason and the field at fault."""
        status, info, bad = status_pb2.Status(), error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        metadata = dict(error.trailing_metadata() or ())
        status.ParseFromString(metadata["grpc-status-details-bin"])
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
        return error.code(), info.reason.lower(), bad.field_violations[0].field if bad.field_violations else ""

    async def topic(self, name: str) -> list[Any]:
        """Return every record of a topic, once the outbox is drained."""
        await self.wait()
        kafka = self.settings.kafka
        return await topic_records(kafka.client_kwargs(), kafka.physical(name), [0])


@pytest.fixture
def settings(servers: Any, database: str, topic_prefix: str) -> Settings:
    return Settings(
        kafka=KafkaSettings(bootstrap=servers.kafka, topic_prefix=topic_prefix),
        postgres=PostgresSettings(dsn=database),  # type: ignore[arg-type]
        grpc=GrpcSettings(listen=free_address()),
        http=HttpSettings(listen=free_address()),
    )


@pytest_asyncio.fixture
async def client(settings: Settings) -> AsyncIterator[Registry]:
    """A client of a registry that the test starts itself."""
    async with grpc.aio.insecure_channel(settings.grpc.listen) as channel:
        yield Registry(settings, channel)


@pytest_asyncio.fixture
async def registry(settings: Settings, client: Registry) -> AsyncIterator[Registry]:
    """A client of a registry that runs in this process."""
    async with open_service(settings, Health()):
        yield client


@pytest.fixture
def rides() -> Any:
    """Builds definitions of one stream, one view and pipelines with a two-step rollout."""
    return _rides


def _rides(*, extra: tuple[str, ...] = (), window_ms: int = 1000, pipelines: tuple[str, ...] = ("tips",)) -> Any:
    fields = [
        definition.Field(name="ride_id", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
        *(definition.Field(name=field, type=definition.FIELD_TYPE_FLOAT64, nullable=True) for field in extra),
    ]
    count = definition.Aggregation(name="n", function=definition.AGGREGATION_FUNCTION_COUNT, window_ms=window_ms)
    lookup = definition.ViewLookup(view="busy", on=["ride_id"])
    return definition.Definition(
        streams=[definition.Stream(name="rides", fields=fields, key_field="ride_id", time_field="at", partitions=2)],
        views=[definition.View(name="busy", stream="rides", entity=["ride_id"], features=[count])],
        pipelines=[
            definition.Pipeline(
                name=name,
                request="rides",
                features=[definition.FeatureSource(name="busy", view=lookup)],
                label=definition.Label(stream="rides", expression="true", by="ride_id"),
                rollout=[
                    definition.RolloutStep(kind=definition.ROLLOUT_KIND_SHADOW, duration_ms=3_600_000),
                    definition.RolloutStep(kind=definition.ROLLOUT_KIND_CANARY, share=0.5, duration_ms=3_600_000),
                ],
            )
            for name in pipelines
        ],
    )
