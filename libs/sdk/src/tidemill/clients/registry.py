"""The registry: definitions, runs, versions and deployments."""

from collections.abc import Sequence

from tidemill_contracts.definition.v1 import definition_pb2
from tidemill_contracts.instants import to_timestamp
from tidemill_contracts.registry.v1 import records_pb2 as records
from tidemill_contracts.registry.v1 import registry_pb2 as registry
from tidemill_contracts.registry.v1.registry_pb2_grpc import RegistryServiceStub

from tidemill.clients.calls import Connection

# Topics are created, and partitions added, before it answers.
APPLY_DEADLINE_S = 60.0


class RegistryClient:
    """Calls of `RegistryService`; every one raises `CallError`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stub = RegistryServiceStub(connection.channel)

    def apply(
        self,
        compiled: definition_pb2.Definition,
        by: str,
        *,
        retire: Sequence[str] = (),
        allow_breaking: bool = False,
        reason: str = "",
    ) -> registry.ApplyDefinitionResponse:
        """Register a definition, and end the views `retire` along; `allow_breaking` needs a reason."""
        request = registry.ApplyDefinitionRequest(
            definition=compiled, retire_views=retire, allow_breaking=allow_breaking, reason=reason
        )
        return self._connection.call(self._stub.ApplyDefinition, request, by=by, deadline_s=APPLY_DEADLINE_S)

    def retire(
        self, kind: str, names: Sequence[str], by: str, *, allow_breaking: bool = False, reason: str = ""
    ) -> registry.ApplyDefinitionResponse:
        """End streams, views or pipelines; `kind` is the singular."""
        request = registry.ApplyDefinitionRequest(allow_breaking=allow_breaking, reason=reason)
        getattr(request, f"retire_{kind}s").extend(names)
        return self._connection.call(self._stub.ApplyDefinition, request, by=by, deadline_s=APPLY_DEADLINE_S)

    def compare(self, compiled: definition_pb2.Definition, by: str) -> registry.ApplyDefinitionResponse:
        """Return what applying a definition would change, and what it would break."""
        request = registry.ApplyDefinitionRequest(definition=compiled, dry_run=True)
        return self._connection.call(self._stub.ApplyDefinition, request, by=by)

    def definition(self, kind: str, name: str) -> definition_pb2.DefinitionRecord:
        """Return one registered object with all that it needs."""
        request = registry.GetDefinitionRequest(kind=kind, name=name)
        return self._connection.call(self._stub.GetDefinition, request).record

    def definitions(self, kind: str = "") -> Sequence[definition_pb2.DefinitionRecord]:
        """Return every registered object, or those of one kind."""
        request = registry.ListDefinitionsRequest(kind=kind)
        return self._connection.call(self._stub.ListDefinitions, request).records

    def schema(self, stream: str) -> dict[str, definition_pb2.Field]:
        """Return the fields of a registered stream by name."""
        closure = self.definition("stream", stream).definition
        return {field.name: field for found in closure.streams if found.name == stream for field in found.fields}

    def runs(self, pipeline: str, limit: int) -> Sequence[registry.Run]:
        """Return the newest training runs of a pipeline, which need not be registered any more."""
        request = registry.ListRunsRequest(pipeline=pipeline, limit=limit)
        found = self._connection.call(self._stub.ListRuns, request).runs
        if not found:
            self._require_pipeline(pipeline)
        return found

    def versions(self, pipeline: str) -> Sequence[records.VersionRecord]:
        """Return every version of a pipeline, which need not be registered any more."""
        request = registry.ListVersionsRequest(pipeline=pipeline)
        found = self._connection.call(self._stub.ListVersions, request).versions
        if not found:
            self._require_pipeline(pipeline)
        return found

    def _require_pipeline(self, pipeline: str) -> None:
        """Raise `CallError` (`unknown_pipeline`) where nobody registered it: a list of nothing does not say so."""
        self.definition("pipeline", pipeline)

    def version(self, pipeline: str, version: int) -> records.VersionRecord:
        """Return one version."""
        request = registry.GetVersionRequest(pipeline=pipeline, version=version)
        return self._connection.call(self._stub.GetVersion, request).version

    def deployment(self, pipeline: str) -> records.DeploymentRecord:
        """Return what serves now."""
        request = registry.GetDeploymentRequest(pipeline=pipeline)
        return self._connection.call(self._stub.GetDeployment, request).deployment

    def promote(
        self, pipeline: str, version: int, reason: str, by: str, *, at_us: int | None = None
    ) -> records.DeploymentRecord:
        """Make a version champion now, without a rollout."""
        request = registry.PromoteRequest(pipeline=pipeline, version=version, reason=reason)
        if at_us is not None:
            request.event_time.CopyFrom(to_timestamp(at_us))
        return self._connection.call(self._stub.Promote, request, by=by).deployment

    def rollback(self, pipeline: str, reason: str, by: str, *, at_us: int | None = None) -> records.DeploymentRecord:
        """End the rollout, or bring the champion before this one back."""
        request = registry.RollbackRequest(pipeline=pipeline, reason=reason)
        if at_us is not None:
            request.event_time.CopyFrom(to_timestamp(at_us))
        return self._connection.call(self._stub.Rollback, request, by=by).deployment
