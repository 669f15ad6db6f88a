"""The registry and the feature service, as training needs them; failed calls come back as the runtime's errors."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import grpc
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.monitoring.v1 import records_pb2 as monitoring
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.progress.v1.progress_pb2_grpc import ProgressServiceStub
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tidemill_runtime.errors import Poison, Retryable
from tidemill_runtime.grpc_client import channel
from tidemill_runtime.rpc_errors import from_rpc
from tidemill_runtime.settings import GrpcSettings

from tidemill_training.run_records import ENDINGS

ACTOR = "service/training"
_REGISTRY = "tidemill.registry.v1.RegistryService"
_PROGRESS = "tidemill.progress.v1.ProgressService"


@asynccontextmanager
async def _translated(peer: str) -> AsyncIterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        translated = from_rpc(error)
        if isinstance(translated, Poison) and translated.reason is Reason.HANDLER:
            # The peer failed or does not know the call: that is not the request's fault.
            raise Retryable(f"{peer}: {translated}") from error
        raise translated from error


class RegistryPeer:
    """Runs, versions and deployments; raises `Retryable` where the registry is away, `Poison` where it refuses."""

    def __init__(self, wire: grpc.aio.Channel) -> None:
        self._stub = RegistryServiceStub(wire)

    async def definition(self, pipeline: str) -> definition.DefinitionRecord:
        """Return the pipeline's record with everything that it refers to."""
        async with _translated("registry"):
            answer = await self._stub.GetDefinition(registry.GetDefinitionRequest(kind="pipeline", name=pipeline))
        return answer.record

    async def start(self, request: monitoring.RetrainRequest) -> registry.Run:
        """Return the cause's run, created at the first call."""
        async with _translated("registry"):
            answer = await self._stub.StartRun(
                registry.StartRunRequest(
                    pipeline=request.pipeline,
                    cause_key=request.cause_key,
                    cause_kind=request.cause_kind,
                    request_id=request.request_id,
                    requested_at=request.event_time,
                )
            )
        return answer.run

    async def finish(self, ending: registry.FinishRunRequest) -> registry.Run:
        """End a run and return it; one that has ended otherwise already is returned as it ended."""
        try:
            return await self._finish(ending)
        except Poison as poison:
            if poison.reason is not Reason.CONFLICT:
                raise
        # Repeating the ending that a run has returns it, and another one changes nothing.
        one, other = (status for status in ENDINGS if status != ending.status)
        try:
            return await self._finish(registry.FinishRunRequest(run_id=ending.run_id, status=one))
        except Poison:
            return await self._finish(registry.FinishRunRequest(run_id=ending.run_id, status=other))

    async def _finish(self, ending: registry.FinishRunRequest) -> registry.Run:
        async with _translated("registry"):
            answer = await self._stub.FinishRun(ending)
        return answer.run

    async def register(self, version: registry.RegisterVersionRequest) -> records.VersionRecord:
        """Register a run's version; repeating it returns the first."""
        async with _translated("registry"):
            answer = await self._stub.RegisterVersion(version)
        return answer.version

    async def version(self, pipeline: str, version: int) -> records.VersionRecord:
        """Return one version."""
        async with _translated("registry"):
            answer = await self._stub.GetVersion(registry.GetVersionRequest(pipeline=pipeline, version=version))
        return answer.version

    async def champion(self, pipeline: str) -> records.DeployedVersion | None:
        """Return the version that answers, or None before the first."""
        try:
            async with _translated("registry"):
                answer = await self._stub.GetDeployment(registry.GetDeploymentRequest(pipeline=pipeline))
        except Poison as poison:
            if poison.reason is Reason.NO_MODEL:
                return None
            raise
        return answer.deployment.champion if answer.deployment.HasField("champion") else None


class FeaturePeer:
    """The offline log's progress."""

    def __init__(self, wire: grpc.aio.Channel) -> None:
        self._stub = ProgressServiceStub(wire)

    async def archived(self, positions: Iterable[progress.TopicPartitionOffset], timeout_s: float) -> None:
        """Return once the offline log holds everything before these positions. Raises `Retryable`."""
        request = progress.WaitProgressRequest(stage="offline", offsets=positions)
        async with _translated("feature"):
            await self._stub.WaitProgress(request, timeout=timeout_s)


@asynccontextmanager
async def open_peers(
    registry_address: str, feature_address: str, settings: GrpcSettings
) -> AsyncIterator[tuple[RegistryPeer, FeaturePeer]]:
    """Lend the peers; they connect at the first call. Every call of the registry is idempotent by its key."""
    async with (
        channel(registry_address, settings, actor=ACTOR, idempotent=[_REGISTRY]) as to_registry,
        channel(feature_address, settings, actor=ACTOR, idempotent=[_PROGRESS]) as to_feature,
    ):
        yield RegistryPeer(to_registry), FeaturePeer(to_feature)
