"""What the registry says: definitions, deployments and versions, folded from their topics."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from google.protobuf.json_format import MessageToDict
from tidemill_contracts.canonical import from_json
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.definition.v1.definition_pb2 import Budget
from tidemill_contracts.instants import from_timestamp
from tidemill_contracts.reasons import Reason
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Partition

from tidemill_monitoring.clock import DAY_US
from tidemill_monitoring.decode import PREDICTIONS, StreamPlan, plans_of
from tidemill_monitoring.drift import delta_of
from tidemill_monitoring.evaluation import Criteria
from tidemill_monitoring.join import Wait
from tidemill_monitoring.pairs import RolloutStep
from tidemill_monitoring.policy import Rules, rules_of
from tidemill_monitoring.profiles import Reference

# What a definition that names no budget is held to.
FALSE_ALARMS = Budget(count=1, period_ms=90 * 86_400_000)
# Beside the newest ones, those that answer: a champion may be older than any number of versions that were refused.
_KEPT_VERSIONS = 20
_ANSWERING = ("shadow", "canary", "champion")


class Profiled(NamedTuple):
    """A version's reference profile and its feature columns in order."""

    reference: Reference
    columns: Sequence[registry.FeatureColumn]
    stage: str


class Registered:
    """Streams, pipelines, deployments and versions by name; `fold_…` take the topics' values in order."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.plans: dict[str, StreamPlan] = {}
        # Pipelines whose label this release cannot read, with the reason: they are not joined, all others are.
        self.faults: dict[str, str] = {}
        self.waits: dict[str, Wait] = {}
        self.champion_since_us: dict[str, int] = {}
        # Retired ones too: outcomes of what they predicted may still come.
        self._pipelines: dict[str, definition.Pipeline] = {}
        self._partitions: dict[str, list[Partition]] = {}
        self._rules: dict[str, Rules] = {}
        self._steps: dict[str, RolloutStep | None] = {}
        self._profiles: dict[str, dict[int, Profiled]] = {}

    def fold_definition(self, value: bytes | None) -> None:
        """Take in a record of registry.pipelines.v1.

        Raises `Poison` for a record that is no definition. A pipeline that cannot be joined is in `faults`.
        """
        try:
            self.catalogue.fold(value)
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no usable definition: {error!r}") from error
        self._pipelines.update(self.catalogue.pipelines)
        self.plans, self.faults = {}, {}
        for pipeline in self.catalogue.pipelines.values():
            self.waits[pipeline.name] = _wait(pipeline.label)
            self._rules[pipeline.name] = rules_of(pipeline)
            self._plan(pipeline)

    def _plan(self, pipeline: definition.Pipeline) -> None:
        try:
            plans = plans_of(replace(self.catalogue, pipelines={pipeline.name: pipeline}))
        except KeyError as error:
            self.faults[pipeline.name] = f"{error.args[0]!r}, which it reads, is not registered"
            return
        except ValueError as error:
            self.faults[pipeline.name] = f"its label: {error}"
            return
        for topic, plan in plans.items():
            known = self.plans[topic].labels if topic in self.plans else ()
            self.plans[topic] = plan._replace(labels=[*known, *plan.labels])
        self._partitions[pipeline.name] = [
            Partition(topic, number)
            for topic, plan in sorted(plans.items())
            for number in range(plan.stream.partitions)
        ]

    def fold_deployment(self, value: bytes | None) -> None:
        """Take in a record of registry.deployments.v1. Raises `Poison`."""
        if not value:
            return
        found = _read(value, registry.DeploymentRecord())
        decided_us = from_timestamp(found.decided_at)
        if found.HasField("champion"):
            self.champion_since_us.setdefault(found.pipeline, decided_us)
        self._steps[found.pipeline] = (
            RolloutStep(
                found.revision,
                found.champion.version,
                found.challenger.version,
                found.step,
                from_timestamp(found.step_began_at) if found.HasField("step_began_at") else decided_us,
            )
            if found.HasField("challenger") and found.HasField("champion")
            else None
        )

    def fold_version(self, value: bytes | None) -> None:
        """Take in a record of registry.models.v1.

        Profiles are kept of the newest versions and of those that answer. Raises `Poison`.
        """
        if not value:
            return
        found = _read(value, registry.VersionRecord())
        kept = self._profiles.setdefault(found.pipeline, {})
        kept[found.version] = Profiled(Reference(MessageToDict(found.reference)), list(found.features), found.stage)
        for version in sorted(kept)[:-_KEPT_VERSIONS]:
            if kept[version].stage not in _ANSWERING:
                del kept[version]

    def topics(self) -> list[str]:
        """Return the logical topics that the join reads; none before there is a pipeline."""
        return [*sorted(self.plans), PREDICTIONS] if self.plans else []

    def pipelines(self) -> list[str]:
        """Return the names of all pipelines that are joined now."""
        return sorted(self.catalogue.pipelines.keys() - self.faults.keys())

    def partitions(self, pipeline: str) -> list[Partition]:
        """Return every partition of the streams of a pipeline that is joined, or was until it was retired."""
        return self._partitions[pipeline]

    def step(self, pipeline: str) -> RolloutStep | None:
        """Return the rollout step under way."""
        return self._steps.get(pipeline)

    def profile(self, pipeline: str, version: int) -> Profiled | None:
        """Return a version's reference profile."""
        return self._profiles.get(pipeline, {}).get(version)

    def has_profiles(self, pipeline: str) -> bool:
        """Return whether any version of a pipeline is known."""
        return pipeline in self._profiles

    def rules(self, pipeline: str) -> Rules:
        """Return a pipeline's retraining policy."""
        return self._rules[pipeline]

    def definition(self, pipeline: str) -> definition.Pipeline | None:
        """Return a pipeline's definition; None of one that was retired."""
        return self.catalogue.pipelines.get(pipeline)

    def allowed(self, pipeline: str) -> Budget:
        """Return the pipeline's false-alarm budget."""
        policy = self._pipelines[pipeline].retrain
        return policy.false_alarms if policy.false_alarms.count else FALSE_ALARMS

    def criteria(self, pipeline: str) -> Criteria | None:
        """Return when a change of the loss counts; None where performance is not monitored."""
        limits = [
            monitor.performance.limit
            for monitor in self._pipelines[pipeline].monitors
            if monitor.HasField("performance")
        ]
        if not limits:
            return None
        allowed = self.allowed(pipeline)
        return Criteria(min(limits), delta_of(allowed.count, allowed.period_ms, DAY_US // 1000))

    def compares(self, pipeline: str, kind: Literal["covariates", "predictions"]) -> bool:
        """Return whether the definition asks for "covariates" or "predictions" to be compared."""
        return any(monitor.HasField(kind) for monitor in self._pipelines[pipeline].monitors)


def _wait(label: definition.Label) -> Wait:
    return Wait(label.wait_ms * 1000, float(label.absent) if label.HasField("absent") else None)


def _read(value: bytes, message: Any) -> Any:
    try:
        return from_json(value, message)
    except ValueError as error:
        raise Poison(Reason.UNDECODABLE, f"no {type(message).__name__}: {error}") from error
