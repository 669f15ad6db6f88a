"""One aggregation of a view, typed and with its expressions canonical."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from tidemill_contracts.bounds import MAX_EDGES, MAX_K
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.expressions import TYPE_NAMES, Expression
from tidemill_features.expressions_tree import Type

from tidemill.declarations.origin import Origin
from tidemill.declarations.unsupported import Unsupported
from tidemill.declarations.views import Aggregation, View
from tidemill.definition.report import Report, is_finite, named
from tidemill.definition.source import line_of_text
from tidemill.definition.streams import CompiledStream

_BOOL, _INT, _FLOAT = definition.FIELD_TYPE_BOOL, definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_FLOAT64
_STRING, _INSTANT = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_TIMESTAMP
_ANY: Mapping[int, Type] = {kind: kind for kind in (_BOOL, _INT, _FLOAT, _STRING, _INSTANT)}
_ORDERED: Mapping[int, Type] = {_INT: _INT, _FLOAT: _FLOAT, _INSTANT: _INSTANT}
_TO_FLOAT: Mapping[int, Type] = {_BOOL: _FLOAT, _INT: _FLOAT, _FLOAT: _FLOAT}
# Share is the mean of a condition.
FUNCTIONS = {
    name.removeprefix("AGGREGATION_FUNCTION_").lower(): number
    for name, number in definition.AggregationFunction.items()
    if number
} | {"share": definition.AGGREGATION_FUNCTION_MEAN}
# Types that a function takes, and what it makes of each.
_RESULTS: Mapping[str, Mapping[int, Type]] = {
    "sum": {_BOOL: _INT, _INT: _INT, _FLOAT: _FLOAT},
    "mean": _TO_FLOAT,
    "share": {_BOOL: _FLOAT},
    "min": _ORDERED,
    "max": _ORDERED,
    "variance": _TO_FLOAT,
    "std": _TO_FLOAT,
    "skew": _TO_FLOAT,
    "first": _ANY,
    "last": _ANY,
    "last_k": _ANY,
    "histogram": {_INT: _INT, _FLOAT: _INT},
    "decayed_sum": _TO_FLOAT,
    "ewma": _TO_FLOAT,
    "approx_distinct": dict.fromkeys(_ANY, _INT),
    "quantile": {_INT: _FLOAT, _FLOAT: _FLOAT},
    "top_k": {_BOOL: _BOOL, _INT: _INT, _STRING: _STRING, _INSTANT: _INSTANT},
}
# Of those that take no expression.
_OF_EVENTS: Mapping[str, Type] = {"count": _INT, "rate": _FLOAT, "time_since_last": _FLOAT}
# What is left of a value after that many halvings is no longer worth a bucket.
HALF_LIVES = 16


def compile_aggregation(
    report: Report, view: View, name: str, item: Aggregation, stream: CompiledStream
) -> definition.Aggregation | None:
    """Return an aggregation as the engine takes it; None where a fault was found."""
    return _Compiler(report, view, name, item, stream).message()


class _Compiler:
    def __init__(self, report: Report, view: View, name: str, item: Aggregation, stream: CompiledStream) -> None:
        self._report = report
        self._view = view
        self._item = item
        self._stream = stream
        self._name = name
        self._subject = named("view", view.name)
        self._feature = f"{self._subject}: feature {name!r}"

    def message(self) -> definition.Aggregation | None:
        report, item = self._report, self._item
        before = len(report.problems)
        message = definition.Aggregation(
            name=str(self._name), function=FUNCTIONS[item.function], type=_OF_EVENTS.get(item.function, _INT)
        )
        if item.function not in _OF_EVENTS:
            value = report.expression(
                item.origin, self._feature, item.expression, self._stream.schema, self._stream.owner
            )
            if value is not None:
                message.expression = value.canonical
                message.type = self._type(value)
        if item.where is not None:
            self._where(message, item.where)
        self._options(message)
        self._window(message)
        return message if len(report.problems) == before else None

    def _where(self, message: definition.Aggregation, where: str) -> None:
        subject = f"{self._feature}: where"
        found = self._report.expression(self._item.origin, subject, where, self._stream.schema, self._stream.owner)
        if found is not None and _is_condition(self._report, self._item.origin, subject, found):
            message.where = found.canonical

    def _options(self, message: definition.Aggregation) -> None:
        report, item = self._report, self._item
        if item.function in ("last_k", "top_k") and report.number(
            item.origin, f"{self._feature}: k", item.k, low=1, high=MAX_K, whole=True
        ):
            message.k = item.k or 0
        if item.function == "quantile" and report.number(
            item.origin, f"{self._feature}: q", item.quantile, low=0, high=1
        ):
            message.quantile = float(item.quantile or 0.0)
        if item.function == "histogram":
            message.edges.extend(self._edges())
        if item.half_life is not None:
            message.half_life_ms = report.duration(item.origin, f"{self._feature}: half-life", item.half_life) or 0

    def _edges(self) -> list[float]:
        given = self._item.edges
        edges = list(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else []
        numbers = all(is_finite(edge) for edge in edges)
        if not numbers or not 1 <= len(edges) <= MAX_EDGES or any(low >= high for low, high in pairwise(edges)):
            message = f"edges are a list of 1 to {MAX_EDGES} numbers that rise, not {given!r:.80}"
            self._report.add(self._item.origin, self._feature, message)
            return []
        return [float(edge) for edge in edges]

    def _window(self, message: definition.Aggregation) -> None:
        report, item = self._report, self._item
        if isinstance(item.window, Unsupported):
            report.refuse(item.window, self._feature)
        elif item.window is not None:
            message.window_ms = report.duration(item.origin, self._feature, item.window) or 0
        elif item.half_life is not None:
            message.window_ms = HALF_LIVES * message.half_life_ms
        elif item.function != "last":
            report.add(item.origin, self._subject, f"feature {self._name!r} needs a window")
        elif self._view.max_age is None:
            fix = 'give it a window, or the view a max_age="…"'
            report.add(item.origin, self._subject, f"feature {self._name!r} is a last without a window; {fix}")

    def _type(self, value: Expression) -> Type:
        item = self._item
        results = _RESULTS[item.function]
        if value.type in results:
            return results[value.type]
        takes = ", ".join(TYPE_NAMES[kind] for kind in results)
        message = f"{item.function} takes {takes}, not {TYPE_NAMES[value.type]}"
        self._report.add(item.origin, self._feature, message, line=line_of_text(item.origin, item.expression))
        return value.type


def _is_condition(report: Report, origin: Origin, subject: str, condition: Expression) -> bool:
    if condition.type == _BOOL:
        return True
    message = f"a condition is wanted, not {TYPE_NAMES[condition.type]}"
    report.add(origin, subject, message, line=line_of_text(origin, condition.text))
    return False
