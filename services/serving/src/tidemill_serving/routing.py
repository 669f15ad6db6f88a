"""Which versions score a request and which one answers: a table that is replaced whole, never edited."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import Generic, TypeVar

from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_runtime.errors import Poison

CANARY = "canary"
SHADOW = "shadow"

L = TypeVar("L")
ScoredBy = tuple[registry.DeployedVersion, records.Role.ValueType]


@dataclass(frozen=True, slots=True)
class Split:
    """How requests divide between champion and challenger.

    `salt` names the rollout, not its step: what the challenger answered at a share of 0.1 stays with it at 0.5.
    """

    salt: bytes = b""
    share: float = 0.0

    def challenger_answers(self, prediction_id: str) -> bool:
        """Return whether the challenger answers: the same for the same id, on every replica, at every time."""
        if self.share <= 0.0:
            return False
        return bucket(prediction_id, self.salt) < self.share


def bucket(prediction_id: str, salt: bytes) -> float:
    """Return where in [0, 1) an id lies; uniform over ids, independent between salts."""
    raw = blake2b(prediction_id.encode(), digest_size=7, key=salt).digest()
    # 53 bits: the float is exact, so it never rounds up to 1.
    return (int.from_bytes(raw) >> 3) / (1 << 53)


def split_of(record: registry.DeploymentRecord) -> Split:
    """Return the split that a deployment asks for; a shadow, or no challenger, never answers.

    Raises `Poison` where the step is not known or the share lies outside 0 to 1.
    """
    if not record.HasField("challenger"):
        return Split()
    if record.step_kind not in (SHADOW, CANARY):
        raise Poison(Reason.UNSUPPORTED, f"deployment step {record.step_kind!r} is not known", field="step_kind")
    if not 0.0 <= record.share <= 1.0:
        raise Poison(Reason.OUT_OF_RANGE, f"a share of {record.share}", field="share")
    if record.step_kind == SHADOW:
        return Split()
    # Not the bundle's hash: the same year lived again with newer code asks the same version about the same flights.
    name = f"{record.pipeline}/{record.challenger.version}"
    return Split(salt=blake2b(name.encode(), digest_size=32).digest(), share=record.share)


def scorers_of(record: registry.DeploymentRecord) -> list[ScoredBy]:
    """Return every version that scores a request, the champion first, each once: the first role counts."""
    found: list[ScoredBy] = []
    if record.HasField("champion"):
        found.append((record.champion, records.ROLE_CHAMPION))
    if record.HasField("challenger"):
        found.append((record.challenger, records.ROLE_CHALLENGER))
    found.extend((version, records.ROLE_BASELINE) for version in record.baselines)
    first: dict[int, ScoredBy] = {}
    for version, role in found:
        first.setdefault(version.version, (version, role))
    return list(first.values())


@dataclass(frozen=True)
class RoutingTable(Generic[L]):
    """What serves each pipeline at one moment; a request holds on to the entry it began with."""

    entries: Mapping[str, L] = field(default_factory=lambda: MappingProxyType({}))

    def entry(self, pipeline: str, known: bool) -> L:
        """Return what serves a pipeline. Raises `Poison`: not registered, or registered and without a model."""
        found = self.entries.get(pipeline)
        if found is not None:
            return found
        if known:
            raise Poison(
                Reason.NO_MODEL,
                f"pipeline {pipeline} has no deployed version yet",
                field="pipeline",
                fix="wait for its first training, or promote a version",
            )
        raise Poison(Reason.UNKNOWN_PIPELINE, f"no pipeline {pipeline[:80]!r} is registered", field="pipeline")

    def with_entry(self, pipeline: str, entry: L) -> "RoutingTable[L]":
        """Return a new table in which one pipeline is served differently."""
        return RoutingTable(MappingProxyType({**self.entries, pipeline: entry}))

    def without(self, pipeline: str) -> "RoutingTable[L]":
        """Return a new table in which a pipeline is not served."""
        return RoutingTable(MappingProxyType({name: kept for name, kept in self.entries.items() if name != pipeline}))
