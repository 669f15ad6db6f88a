"""Which streams and views the service works on: a fold of the registry's definitions."""

from collections.abc import Mapping
from dataclasses import dataclass

from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import events_topic
from tidemill_features.expressions import ExpressionError
from tidemill_features.plan import PlanError, ViewPlan, compile_view
from tidemill_runtime.errors import Poison


@dataclass(frozen=True, slots=True)
class RegisteredStream:
    """A stream and the plans of its views, sorted by name."""

    stream: definition.Stream
    plans: tuple[ViewPlan, ...]


class Definitions:
    """What is registered now; `revision` rises with every change that the service must follow."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.plans: dict[str, ViewPlan] = {}
        # Views that this release cannot compute, with the reason.
        self.faults: dict[str, str] = {}
        self.revision = 0
        self._hashes: dict[str, bytes] = {}

    def fold(self, value: bytes | None) -> bool:
        """Take in one record of `registry.pipelines.v1`; say whether streams or views changed.

        Raises `Poison` for a record that is no definition. A view that cannot be computed is in `faults`.
        """
        try:
            record = self.catalogue.fold(value)
        except ValueError as error:
            raise Poison(Reason.UNDECODABLE, f"no definition record: {error}") from error
        if record is None:
            return False
        hashes = {f"stream/{s.name}": s.SerializeToString(deterministic=True) for s in self.catalogue.streams.values()}
        hashes |= {f"view/{v.name}": v.SerializeToString(deterministic=True) for v in self.catalogue.views.values()}
        if hashes == self._hashes:
            return False
        self._hashes = hashes
        self.revision += 1
        self._compile()
        return True

    def streams(self) -> Mapping[str, RegisteredStream]:
        """Return every registered stream, by name."""
        return {
            name: RegisteredStream(stream, tuple(plan for _, plan in sorted(self.plans.items()) if plan.stream == name))
            for name, stream in self.catalogue.streams.items()
        }

    def topics(self) -> list[str]:
        """Return the topics of all streams, sorted."""
        return sorted(map(events_topic, self.catalogue.streams))

    def _compile(self) -> None:
        self.plans, self.faults = {}, {}
        for name, view in self.catalogue.views.items():
            try:
                self.plans[name] = compile_view(view, self.catalogue.streams[view.stream])
            except (PlanError, ExpressionError, KeyError) as error:
                self.faults[name] = str(error)
