"""What should be served: a fold of the registry's definitions and deployments, laid over the last good state."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_runtime.errors import Poison

PIPELINE = "pipeline"


@dataclass(frozen=True)
class Wanted:
    """One pipeline as the registry wants it served: its definition and its deployment."""

    definition: definition.DefinitionRecord
    deployment: registry.DeploymentRecord

    @property
    def name(self) -> str:
        return self.deployment.pipeline

    @cached_property
    def catalogue(self) -> Catalogue:
        """The pipeline with the streams and views that it was registered with."""
        found = Catalogue()
        found.fold(to_json(self.definition))
        return found

    @property
    def key(self) -> tuple[str, bytes]:
        """What tells one wanted state from another."""
        return self.definition.hash, self.deployment.SerializeToString(deterministic=True)


@dataclass(frozen=True)
class Registered:
    """The newest record of every pipeline; a deployment of None was taken back."""

    definitions: Mapping[str, definition.DefinitionRecord] = field(default_factory=dict)
    deployments: Mapping[str, registry.DeploymentRecord | None] = field(default_factory=dict)

    def with_definition(self, value: bytes | None) -> "Registered":
        """Take in one record of `registry.pipelines.v1`; streams, views and tombstones change nothing here.

        Raises `Poison` where the bytes are no such record.
        """
        if not value:
            return self
        try:
            record = from_json(value, definition.DefinitionRecord())
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no DefinitionRecord: {error}") from error
        if record.kind != PIPELINE:
            return self
        return replace(self, definitions={**self.definitions, record.name: record})

    def with_deployment(self, key: bytes | None, value: bytes | None) -> "Registered":
        """Take in one record of `registry.deployments.v1`. Raises `Poison` where the bytes are no such record."""
        if not value:
            return replace(self, deployments={**self.deployments, (key or b"").decode(errors="replace"): None})
        try:
            record = from_json(value, registry.DeploymentRecord())
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no DeploymentRecord: {error}") from error
        if record.change == "retired":
            return replace(self, deployments={**self.deployments, record.pipeline: None})
        if not record.HasField("champion"):
            raise Poison(Reason.MISSING_FIELD, "a deployment without a champion", field="champion")
        return replace(self, deployments={**self.deployments, record.pipeline: record})

    def knows(self, pipeline: str) -> bool:
        """Say whether a pipeline is registered, and not retired since."""
        return pipeline in self.definitions and not self.definitions[pipeline].retired

    def over(self, older: "Registered") -> "Registered":
        """Return this state with what it does not mention taken from an older one."""
        return Registered(
            {**older.definitions, **self.definitions},
            {**older.deployments, **self.deployments},
        )

    def wanted(self) -> dict[str, Wanted]:
        """Return what should be served: pipelines that have both a definition and a deployment."""
        return {
            name: Wanted(self.definitions[name], deployment)
            for name, deployment in self.deployments.items()
            if deployment is not None and self.knows(name)
        }


def remembered(wanted: Iterable[Wanted]) -> Registered:
    """Return the state that holds exactly these pipelines."""
    held = list(wanted)
    return Registered({one.name: one.definition for one in held}, {one.name: one.deployment for one in held})
