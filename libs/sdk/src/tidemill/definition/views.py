"""Feature views with their aggregations typed and their expressions canonical."""

from collections.abc import Mapping
from dataclasses import dataclass

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import TYPE_NAMES, Expression
from tidemill_features.plan import PlanError, compile_view

from tidemill.declarations.origin import Origin
from tidemill.declarations.unsupported import Unsupported
from tidemill.declarations.views import Aggregation, View
from tidemill.definition.report import Report, no_field
from tidemill.definition.source import line_of_text
from tidemill.definition.streams import CompiledStream, Streams

MAX_FEATURES = 200
MAX_ENTITY_FIELDS = 4
_BOOL, _INT, _FLOAT = definition.FIELD_TYPE_BOOL, definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64
FUNCTIONS = {
    "count": definition.AGGREGATION_FUNCTION_COUNT,
    "sum": definition.AGGREGATION_FUNCTION_SUM,
    "mean": definition.AGGREGATION_FUNCTION_MEAN,
    "min": definition.AGGREGATION_FUNCTION_MIN,
    "max": definition.AGGREGATION_FUNCTION_MAX,
    "last": definition.AGGREGATION_FUNCTION_LAST,
}
# Types that a function takes, and what it makes of each; `last` keeps any.
_RESULTS: Mapping[str, Mapping[int, definition.FieldType.ValueType]] = {
    "sum": {_BOOL: _INT, _INT: _INT, _FLOAT: _FLOAT},
    "mean": {_BOOL: _FLOAT, _INT: _FLOAT, _FLOAT: _FLOAT},
    "min": {_INT: _INT, _FLOAT: _FLOAT, definition.FIELD_TYPE_TIMESTAMP: definition.FIELD_TYPE_TIMESTAMP},
    "max": {_INT: _INT, _FLOAT: _FLOAT, definition.FIELD_TYPE_TIMESTAMP: definition.FIELD_TYPE_TIMESTAMP},
}


@dataclass(frozen=True, slots=True)
class CompiledView:
    """A view with the stream that feeds it."""

    message: definition.View
    stream: CompiledStream

    @property
    def entity_types(self) -> list[definition.FieldType.ValueType]:
        return [self.stream.schema[name].type for name in self.message.entity]


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
            self._compiled[id(view)] = self._compile(view)
        return self._compiled[id(view)]

    def all(self) -> list[definition.View]:
        """Return the views compiled so far, by name."""
        found = [view.message for view in self._compiled.values() if view is not None]
        return sorted(found, key=lambda view: view.name)

    def _compile(self, view: View) -> CompiledView | None:
        report, subject = self._report, f"view {view.name!r}"
        before = len(report.problems)
        report.name(view.origin, subject, view.name)
        other = self._declared.setdefault(view.name, view)
        if other is not view:
            report.add(view.origin, subject, f"it is declared at line {other.origin.line} already; rename one")
        stream = self._streams.get(view.source, view.origin, subject)
        if stream is None:
            return None
        message = definition.View(
            name=str(view.name), stream=stream.message.name, entity=self._entity(view, stream, subject)
        )
        if view.accuracy == "hop":
            message.accuracy = definition.ACCURACY_HOP
        else:
            report.add(view.origin, subject, f'accuracy {view.accuracy!r} is not in this release; there is "hop"')
        if view.max_age is not None:
            message.max_age_ms = report.duration(view.origin, f"{subject}: max_age", view.max_age) or 0
        message.features.extend(self._features(view, stream, subject))
        if len(report.problems) == before:
            self._check_plan(view, message, stream)
        return CompiledView(message, stream) if len(report.problems) == before else None

    def _entity(self, view: View, stream: CompiledStream, subject: str) -> list[str]:
        names = [view.by] if isinstance(view.by, str) else list(view.by)
        if not 1 <= len(names) <= MAX_ENTITY_FIELDS or len(set(names)) < len(names):
            self._report.add(view.origin, subject, f"by takes 1 to {MAX_ENTITY_FIELDS} different fields")
        for name in names:
            field = stream.schema.get(name)
            line = line_of_text(view.origin, name)
            if field is None:
                self._report.add(view.origin, subject, no_field(name, stream.owner, stream.schema), line=line)
            elif field.type == _FLOAT:
                message = f"by takes no float ({name!r}); equal floats are no identity"
                self._report.add(view.origin, subject, message, line=line)
        return names

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
                aggregation = self._aggregation(view, name, item, stream)
                found += [aggregation] if aggregation is not None else []
            else:
                line = line_of_text(view.origin, name)
                message = f"feature {name!r} is an aggregation such as tm.mean(…), not {item!r}"
                self._report.add(view.origin, subject, message, line=line)
        return found

    def _aggregation(
        self, view: View, name: str, item: Aggregation, stream: CompiledStream
    ) -> definition.Aggregation | None:
        report, subject = self._report, f"view {view.name!r}"
        before = len(report.problems)
        message = definition.Aggregation(name=str(name), function=FUNCTIONS[item.function], type=_INT)
        if item.expression is not None:
            value = report.expression(item.origin, subject, item.expression, stream.schema, stream.owner)
            if value is not None:
                message.expression = value.canonical
                message.type = self._type(item, value, f"{subject}: feature {name!r}")
        if item.where is not None:
            condition = report.expression(item.origin, f"{subject}: where", item.where, stream.schema, stream.owner)
            if condition is not None and self._is_condition(item.origin, f"{subject}: where", condition):
                message.where = condition.canonical
        if item.window is not None:
            message.window_ms = report.duration(item.origin, f"{subject}: feature {name!r}", item.window) or 0
        elif item.function != "last":
            report.add(item.origin, subject, f"feature {name!r} needs a window")
        elif view.max_age is None:
            fix = 'give it a window, or the view a max_age="…"'
            report.add(item.origin, subject, f"feature {name!r} is a last without a window; {fix}")
        return message if len(report.problems) == before else None

    def _type(self, item: Aggregation, value: Expression, subject: str) -> definition.FieldType.ValueType:
        if item.function == "last":
            return value.type
        results = _RESULTS[item.function]
        if value.type in results:
            return results[value.type]
        takes = ", ".join(TYPE_NAMES[kind] for kind in results)
        message = f"{item.function} takes {takes}, not {TYPE_NAMES[value.type]}"
        self._report.add(item.origin, subject, message, line=line_of_text(item.origin, item.expression))
        return value.type

    def _is_condition(self, origin: Origin, subject: str, condition: Expression) -> bool:
        if condition.type == _BOOL:
            return True
        message = f"a condition is wanted, not {TYPE_NAMES[condition.type]}"
        self._report.add(origin, subject, message, line=line_of_text(origin, condition.text))
        return False

    def _check_plan(self, view: View, message: definition.View, stream: CompiledStream) -> None:
        """Let the feature engine itself say whether it can keep this view."""
        try:
            compile_view(message, stream.message)
        except PlanError as error:
            self._report.add(view.origin, "", str(error))
