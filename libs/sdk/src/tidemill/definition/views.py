"""Feature views with their aggregations typed and their expressions canonical."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tidemill_contracts.bounds import MAX_EDGE_EVENTS, MAX_ENTITY_FIELDS, MAX_FEATURES
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.plan import PlanError, ViewPlan, compile_view

from tidemill.declarations.unsupported import Unsupported
from tidemill.declarations.views import Aggregation, View
from tidemill.definition.aggregations import compile_aggregation
from tidemill.definition.report import Report, named
from tidemill.definition.source import line_of_text
from tidemill.definition.streams import CompiledStream, Streams

_FLOAT = definition.FIELD_TYPE_FLOAT64
_ACCURACIES = {"hop": definition.ACCURACY_HOP, "exact": definition.ACCURACY_EXACT}


@dataclass(frozen=True, slots=True)
class CompiledView:
    """A view with the stream that feeds it."""

    message: definition.View
    stream: CompiledStream
    plan: ViewPlan

    @property
    def entity_types(self) -> list[definition.FieldType.ValueType]:
        return [self.stream.schema[name].type for name in self.message.entity]


_CHAINED = (
    "a view over a view is not in this release: a ring's values change with every late event and with time itself, and "
    "are no stream that a second view could fold; declare it over the event"
)


class Views:
    """Compiles each view once; a view with a fault is None from then on, and reported once."""

    def __init__(self, report: Report, streams: Streams) -> None:
        self._report = report
        self._streams = streams
        self._compiled: dict[int, CompiledView | None] = {}
        self._declared: dict[str, View] = {}

    def get(self, view: View) -> CompiledView | None:
        """Return the compiled view."""
        if id(view) not in self._compiled:
            subject = named("view", view.name)
            self._compiled[id(view)] = self._report.guarded(view.origin, subject, lambda: self._compile(view, subject))
        return self._compiled[id(view)]

    def all(self) -> list[definition.View]:
        """Return the views compiled so far, by name."""
        found = [view.message for view in self._compiled.values() if view is not None]
        return sorted(found, key=lambda view: view.name)

    def _compile(self, view: View, subject: str) -> CompiledView | None:
        report = self._report
        before = len(report.problems)
        if report.name(view.origin, subject, view.name):
            other = self._declared.setdefault(view.name, view)
            if other is not view:
                report.add(view.origin, subject, f"it is declared at line {other.origin.line} already; rename one")
        if isinstance(view.source, View):
            report.add(view.origin, subject, _CHAINED)
            return None
        stream = self._streams.get(view.source, view.origin, subject)
        if stream is None:
            return None
        message = definition.View(
            name=str(view.name), stream=stream.message.name, entity=self._entity(view, stream, subject)
        )
        self._accuracy(view, message, subject)
        if view.max_age is not None:
            message.max_age_ms = report.duration(view.origin, f"{subject}: max_age", view.max_age) or 0
        message.features.extend(self._features(view, stream, subject))
        if view.budget is not None:
            message.budget_bytes = report.size(view.origin, f"{subject}: budget", view.budget) or 0
        plan = self._plan(view, message, stream) if len(report.problems) == before else None
        return None if plan is None else CompiledView(message, stream, plan)

    def _accuracy(self, view: View, message: definition.View, subject: str) -> None:
        accuracy = _ACCURACIES.get(str(view.accuracy))
        if accuracy is None:
            why = 'write "hop" (at most a twelfth of the window too long) or "exact"'
            self._report.add(view.origin, subject, f"there is no accuracy {view.accuracy!r}; {why}")
            return
        message.accuracy = accuracy
        if view.edge_events is None:
            return
        if accuracy != definition.ACCURACY_EXACT:
            self._report.add(view.origin, subject, 'edge_events are kept where accuracy is "exact"')
        elif type(view.edge_events) is not int or not 1 <= view.edge_events <= MAX_EDGE_EVENTS:
            why = f"edge_events is a number from 1 to {MAX_EDGE_EVENTS:,}, not {view.edge_events!r:.80}"
            self._report.add(view.origin, subject, why)
        else:
            message.edge_events = view.edge_events

    def _entity(self, view: View, stream: CompiledStream, subject: str) -> list[str]:
        if not isinstance(view.by, Sequence):
            message = f'by takes a field ("{next(iter(stream.schema))}") or a list of fields, not {view.by!r:.80}'
            self._report.add(view.origin, subject, message)
            return []
        names = [view.by] if isinstance(view.by, str) else list(view.by)
        if not 1 <= len(names) <= MAX_ENTITY_FIELDS or any(name in names[:place] for place, name in enumerate(names)):
            self._report.add(view.origin, subject, f"by takes 1 to {MAX_ENTITY_FIELDS} different fields")
        found = []
        for name in names:
            field = self._report.field(view.origin, subject, name, stream.schema, stream.owner)
            if field is None:
                continue
            if field.type == _FLOAT:
                message = f"by takes no float ({name!r}); equal floats are no identity"
                self._report.add(view.origin, subject, message, line=line_of_text(view.origin, name))
            found.append(field.name)
        return found

    def _features(self, view: View, stream: CompiledStream, subject: str) -> list[definition.Aggregation]:
        if not isinstance(view.features, Mapping) or not 1 <= len(view.features) <= MAX_FEATURES:
            self._report.add(view.origin, subject, f"features takes a dictionary of 1 to {MAX_FEATURES} aggregations")
            return []
        found = []
        for name, item in view.features.items():
            self._report.feature_name(view.origin, subject, name)
            if isinstance(item, Unsupported):
                self._report.refuse(item, f"{subject}: feature {name!r}")
            elif isinstance(item, Aggregation):
                aggregation = compile_aggregation(self._report, view, name, item, stream)
                found += [aggregation] if aggregation is not None else []
            else:
                line = line_of_text(view.origin, name)
                message = f"feature {name!r} is an aggregation such as tm.mean(…), not {item!r:.80}"
                self._report.add(view.origin, subject, message, line=line)
        return found

    def _plan(self, view: View, message: definition.View, stream: CompiledStream) -> ViewPlan | None:
        """Let the feature engine itself say whether it can keep this view."""
        try:
            return compile_view(message, stream.message)
        except PlanError as error:
            self._report.add(view.origin, "", str(error))
            return None
