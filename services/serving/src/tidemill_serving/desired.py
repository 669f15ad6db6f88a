"""What should be served: a fold of the registry's definitions and deployments, laid over the last good state."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from tidemill_contracts.canonical import from_json, to_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_runtime.errors import Poison

PIPELINE = "pipeline"
_RETIRED = "retired"


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
    """The newest record of every pipeline; a deployment of None was taken back.

    The registry's relay sends a record again where it ended before it noted that it had. A record changes nothing where
    its revision is lower than the known one's and it was written no later (wall clock of the registry). Both count: a
    registry whose database was made anew, or is an older copy, goes on at lower revisions and is followed, since it
    writes them later; and a higher revision counts whatever its time, since clocks go back.
    """

    definitions: Mapping[str, definition.DefinitionRecord] = field(default_factory=dict)
    deployments: Mapping[str, registry.DeploymentRecord | None] = field(default_factory=dict)

    def with_definition(self, value: bytes | None) -> "Registered":
        """Take in one record of `registry.pipelines.v1`; streams, views, tombstones and old records change nothing.

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
        known = self.definitions.get(record.name)
        if known is not None and _is_older(_written(record), _written(known)):
            return self
        return replace(self, definitions={**self.definitions, record.name: record})

    def with_deployment(self, key: bytes | None, value: bytes | None) -> "Registered":
        """Take in one record of `registry.deployments.v1`; an old one changes nothing.

        Raises `Poison` where the bytes are no such record.
        """
        if not value:
            return replace(self, deployments={**self.deployments, (key or b"").decode(errors="replace"): None})
        try:
            record = from_json(value, registry.DeploymentRecord())
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no DeploymentRecord: {error}") from error
        if record.change != _RETIRED and not record.HasField("champion"):
            raise Poison(Reason.MISSING_FIELD, "a deployment without a champion", field="champion")
        known = self.deployments.get(record.pipeline)
        if known is not None and _is_older(_written(record), _written(known)):
            return self
        return replace(self, deployments={**self.deployments, record.pipeline: record})

    def knows(self, pipeline: str) -> bool:
        """Say whether a pipeline is registered, and not retired since."""
        return pipeline in self.definitions and not self.definitions[pipeline].retired

    def over(self, older: "Registered") -> "Registered":
        """Return this state with what it does not mention taken from an older one.

        Revisions are not compared: `older` is what this replica served before, and the log, once it is read to its end,
        says what holds now.
        """
        return Registered(
            {**older.definitions, **self.definitions},
            {**older.deployments, **self.deployments},
        )

    def wanted(self) -> dict[str, Wanted]:
        """Return what should be served: pipelines that have both a definition and a deployment."""
        return {
            name: Wanted(self.definitions[name], deployment)
            for name, deployment in self.deployments.items()
            if deployment is not None and deployment.change != _RETIRED and self.knows(name)
        }


def remembered(wanted: Iterable[Wanted]) -> Registered:
    """Return the state that holds exactly these pipelines."""
    held = list(wanted)
    return Registered({one.name: one.definition for one in held}, {one.name: one.deployment for one in held})


class _Written(NamedTuple):
    """Which revision of its object a record is, and the registry's wall clock when it was written (µs)."""

    revision: int
    at_us: int


def _written(record: definition.DefinitionRecord | registry.DeploymentRecord) -> _Written:
    at = record.applied_at if isinstance(record, definition.DefinitionRecord) else record.emitted_at
    return _Written(record.revision, from_timestamp(at))


def _is_older(one: _Written, known: _Written) -> bool:
    return one.revision < known.revision and one.at_us <= known.at_us
