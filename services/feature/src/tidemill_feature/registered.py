"""Which streams and views the service works on: a fold of the registry's definitions, and what the book adds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tidemill_contracts.canonical import view_hash
from tidemill_contracts.catalogue import Catalogue
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason
from tidemill_contracts.topics import events_topic
from tidemill_features.expressions import ExpressionError
from tidemill_features.layout import build_id, builds_in, view_id
from tidemill_features.plan import PlanError, ViewPlan, compile_view
from tidemill_runtime.errors import Poison

from tidemill_feature.book import Book, Version


@dataclass(frozen=True, slots=True)
class RegisteredStream:
    """A stream and the plans of its views, sorted by name: old versions too, each with the build that is wanted.

    `floors`: by view hash, the first build that is still folded while a later one is being made.
    """

    stream: definition.Stream
    plans: tuple[ViewPlan, ...]
    floors: Mapping[str, int]

    def folded(self, built: frozenset[bytes]) -> tuple[dict[bytes, ViewPlan], dict[bytes, ViewPlan]]:
        """Return, by build, what is folded on where `built` is what the rings hold, and what must be built first."""
        wanted = {build_id(plan.hash, plan.build): plan for plan in self.plans}
        live = {name: plan for name, plan in wanted.items() if name in built}
        for plan in self.plans:
            for build in builds_in(built, plan.hash):
                if self.floors.get(plan.hash, 0) <= build < plan.build:
                    live[build_id(plan.hash, build)] = replace(plan, build=build)
        return live, {name: plan for name, plan in wanted.items() if name not in built}


class Definitions:
    """What is registered now; `revision` rises with every change that the service must follow."""

    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.plans: dict[str, ViewPlan] = {}
        # Every version of a view that is folded, the newest last.
        self.versions: dict[str, list[ViewPlan]] = {}
        # Views that this release cannot compute, with the reason.
        self.faults: dict[str, str] = {}
        self.book = Book()
        # Whether the topic was read to its end: before, a view that has come back may still look retired.
        self.complete = False
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

    def take(self, book: Book) -> bool:
        """Take in the book; say whether other versions or builds are folded from now on."""
        # It is read once a second, and all plans are compiled anew for a changed one.
        if book == self.book:
            return False
        before = self._folded(), self.book.floors
        self.book = book
        self._compile()
        if before == (self._folded(), book.floors):
            return False
        self.revision += 1
        return True

    def streams(self) -> Mapping[str, RegisteredStream]:
        """Return every registered stream, by name."""
        floors = {
            plan.hash: floor
            for versions in self.versions.values()
            for plan in versions
            if (floor := self.book.floors.get(_name(plan.hash)))
        }
        return {
            name: RegisteredStream(
                stream,
                tuple(p for _, versions in sorted(self.versions.items()) for p in versions if p.stream == name),
                floors,
            )
            for name, stream in self.catalogue.streams.items()
        }

    def topics(self) -> list[str]:
        """Return the topics of all streams, sorted."""
        return sorted(map(events_topic, self.catalogue.streams))

    def closures(self, since_us: int) -> dict[str, Version]:
        """Return, by view id, the definition of every view that can be computed."""
        views = self.catalogue.views
        return {
            _name(plan.hash): Version(since_us, views[name], self.catalogue.streams[views[name].stream])
            for name, plan in self.plans.items()
        }

    def ended(self) -> dict[str, str]:
        """Return, by view id, the hashes of all versions of views that were retired."""
        if not self.complete:
            return {}
        return {
            name: view_hash(version.view, version.stream)
            for name, version in self.book.versions.items()
            if version.view.name in self.catalogue.retired
        }

    def _folded(self) -> list[tuple[str, int]]:
        return [(plan.hash, plan.build) for versions in self.versions.values() for plan in versions]

    def _compile(self) -> None:
        plans: dict[str, ViewPlan] = {}
        self.faults = {}
        for name, view in self.catalogue.views.items():
            try:
                plans[name] = self._built(compile_view(view, self.catalogue.streams[view.stream]))
            except (PlanError, ExpressionError, KeyError) as error:
                self.faults[name] = str(error)
        self.plans = plans
        self.versions = {name: [plan] for name, plan in plans.items()}
        for version in sorted(self.book.versions.values(), key=lambda version: -version.since_us):
            versions = self.versions.get(version.view.name)
            if versions is not None and (plan := self._old(version, versions[-1])) is not None:
                versions.insert(0, plan)

    def _old(self, version: Version, newest: ViewPlan) -> ViewPlan | None:
        """Return the plan of an older version, if that is what it is and the stream still has what it reads."""
        stream = self.catalogue.streams.get(version.stream.name)
        if stream is None or newest.hash == view_hash(version.view, version.stream):
            return None
        try:
            plan = compile_view(version.view, version.stream)
        except (PlanError, ExpressionError) as error:
            self.faults[f"{version.view.name} (old version)"] = str(error)
            return None
        before, now = _types(version.stream), _types(stream)
        if any(before[name] != now.get(name) for name in plan.columns):
            self.faults[f"{plan.name} (old version)"] = f"stream {stream.name!r} has no longer what it reads"
            return None
        return self._built(replace(plan, partitions=stream.partitions))

    def _built(self, plan: ViewPlan) -> ViewPlan:
        return replace(plan, build=self.book.builds.get(_name(plan.hash), 0))


def _name(view_hash: str) -> str:
    return view_id(view_hash).hex()


def _types(stream: definition.Stream) -> dict[str, tuple[int, bool]]:
    return {field.name: (field.type, field.nullable) for field in stream.fields}
