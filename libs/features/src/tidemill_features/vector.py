"""A pipeline's feature vector: ordered names, looked-up features and request-time transforms. Serving and training
build it with the same code, from rings or from the offline twin.

Names, in the definition's order: "<source>.<feature>" for each feature of a view, "<source>" for an expression.
Strings are categories; everything else is a number (bool 0 or 1, int as float64, null NaN).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.columns import column_of
from tidemill_features.expressions import Column, Expression, Schema, compile_expression, schema_of
from tidemill_features.expressions_tree import Type
from tidemill_features.finalise import HEAD_EXCLUDED_BIT, HOP_ACCURACY_BIT, NULL, PRESENT, FeatureValues
from tidemill_features.offline import OfflineValues
from tidemill_features.plan import PlanError, ViewPlan, compile_view
from tidemill_features.reader import Lookup, ViewValues

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Statuses = NDArray[np.uint8]
Requests = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class VectorRows:
    """The vectors of n requests, by name and in order.

    `category[i]`: whether name i is in `categories` (n strings, None for null) or in `numbers` (float64[n], NaN for
    null); `status`: uint8[n, names], bit 7 says HEAD_EXCLUDED, bit 6 HOP_ACCURACY; `event_us`: int64[n, names]. An
    expression's bits are those of all the view features that it reads, its event time is the newest of theirs.
    """

    names: tuple[str, ...]
    category: tuple[bool, ...]
    numbers: Mapping[str, Floats]
    categories: Mapping[str, list[str | None]]
    status: Statuses
    event_us: Ints


class Source(NamedTuple):
    """One source of the vector: a view with the request's fields that look it up, or an expression."""

    name: str
    plan: ViewPlan | None
    on: tuple[str, ...]
    expression: Expression | None


class _LookedUp(NamedTuple):
    """A view, the request's fields that look it up, and the place of its first feature in the vector."""

    plan: ViewPlan
    on: tuple[str, ...]
    first: int


class _Derived(NamedTuple):
    """An expression, its place in the vector, and those of the view features that it reads, by what it calls them."""

    expression: Expression
    place: int
    reads: Sequence[tuple[str, int]]


class PipelineVector:
    """The vector of one pipeline; immutable."""

    def __init__(self, request: definition.Stream, sources: Sequence[Source]) -> None:
        self._schema = schema_of(request.fields)
        self.sources = tuple(sources)
        # Every view once, by name.
        self.plans: tuple[ViewPlan, ...] = tuple({s.plan.name: s.plan for s in sources if s.plan is not None}.values())
        of_source = [_names(source) for source in sources]
        named = [column for columns in of_source for column in columns]
        self.names: tuple[str, ...] = tuple(name for name, _ in named)
        self.category: tuple[bool, ...] = tuple(kind == definition.FIELD_TYPE_STRING for _, kind in named)
        placed = list(zip(sources, accumulate(map(len, of_source), initial=0), strict=False))
        place_of = {name: place for place, name in enumerate(self.names)}
        self._looked_up = [_LookedUp(one.plan, one.on, first) for one, first in placed if one.plan is not None]
        self._derived = [
            _Derived(one.expression, place, [(name, place_of[name]) for name in one.expression.features])
            for one, place in placed
            if one.expression is not None
        ]
        # The request's fields that expressions read.
        self.fields: tuple[str, ...] = tuple(sorted({name for one in self._derived for name in one.expression.columns}))

    def lookups(self, requests: Requests) -> list[Lookup]:
        """Return what to read for these requests, a lookup per view source in order."""
        return [
            Lookup(plan.name, [tuple(request.get(name) for name in on) for request in requests])
            for plan, on, _ in self._looked_up
        ]

    def columns(self, requests: Requests) -> dict[str, Column]:
        """Return the requests' fields that expressions read, as columns."""
        schema = self._schema
        return {name: column_of([one.get(name) for one in requests], schema[name].type) for name in self.fields}

    def rows(self, views: Sequence[ViewValues | OfflineValues], columns: Mapping[str, Column], rows: int) -> VectorRows:
        """Return the vectors of `rows` requests.

        `views`: one per view source in order, read from rings for `lookups` or computed by the offline twin; `columns`:
        the requests' fields, at least those of `fields`.
        """
        values: list[Any] = [None] * len(self.names)
        status = np.empty((rows, len(self.names)), np.uint8)
        event_us = np.zeros((rows, len(self.names)), np.int64)
        read: dict[int, FeatureValues] = {}
        for (_, _, first), view in zip(self._looked_up, views, strict=True):
            excluded = np.where(view.head_excluded, HEAD_EXCLUDED_BIT, 0).astype(np.uint8)
            for place, feature in enumerate(view.features, first):
                status[:, place] = feature.status | excluded
                if feature.coarse is not None:
                    status[:, place] |= np.where(feature.coarse, HOP_ACCURACY_BIT, 0).astype(np.uint8)
                event_us[:, place] = feature.event_us
                strings = feature.type == definition.FIELD_TYPE_STRING
                values[place] = feature.values.tolist() if strings else feature.numbers()
                read[place] = feature
        for expression, place, reads in self._derived:
            given = columns
            if reads:
                given = {**columns, **{key: Column(read[other].values, read[other].nulls) for key, other in reads}}
            column = expression.evaluate(given, rows)
            status[:, place] = np.where(column.nulls, NULL, PRESENT)
            for _, other in reads:
                status[:, place] |= status[:, other] & (HEAD_EXCLUDED_BIT | HOP_ACCURACY_BIT)
                event_us[:, place] = np.maximum(event_us[:, place], event_us[:, other])
            values[place] = _of_column(column, expression.type)
        named = list(zip(self.names, self.category, values, strict=True))
        numbers = {name: value for name, category, value in named if not category}
        categories = {name: value for name, category, value in named if category}
        return VectorRows(self.names, self.category, numbers, categories, status, event_us)


def compile_vector(
    pipeline: definition.Pipeline,
    views: Mapping[str, definition.View],
    streams: Mapping[str, definition.Stream],
) -> PipelineVector:
    """Return a pipeline's vector.

    Raises `KeyError` for a view or stream that is not given, `PlanError` or `ExpressionError` where the definition
    cannot be computed; `tidemill check` says so earlier.
    """
    request = streams[pipeline.request]
    schema = schema_of(request.fields)
    plans: dict[str, ViewPlan] = {}
    offered: dict[str, Schema] = {}
    for source in pipeline.features:
        if source.HasField("view"):
            name = source.view.view
            if name not in plans:
                plans[name] = compile_view(views[name], streams[views[name].stream])
            _check_lookup(source, plans[name], schema)
            offered[source.name] = features_of(plans[name])
    sources = [
        Source(source.name, plans[source.view.view], tuple(source.view.on), None)
        if source.HasField("view")
        else Source(source.name, None, (), compile_expression(source.expression, schema, views=offered))
        for source in pipeline.features
    ]
    for part in sources:
        for column, kind in _names(part):
            if kind == definition.FIELD_TYPE_TIMESTAMP:
                raise PlanError(f"feature {column!r} is a timestamp; models take numbers and categories")
    return PipelineVector(request, sources)


def features_of(plan: ViewPlan) -> Schema:
    """Return what expressions may read of a view, by name; any feature is null for an entity that has no events."""
    return {
        feature.name: definition.Field(name=feature.name, type=feature.type, nullable=True) for feature in plan.features
    }


def _check_lookup(source: definition.FeatureSource, plan: ViewPlan, schema: Schema) -> None:
    """Compare the request's fields with the view's entity: equal texts of unequal types would be other keys."""
    on = source.view.on
    if len(on) != len(plan.entity):
        raise PlanError(f"feature {source.name!r}: view {plan.name!r} is looked up by {len(plan.entity)} fields")
    for name, kind in zip(on, plan.entity_types, strict=True):
        if name not in schema:
            raise PlanError(f"feature {source.name!r}: the request has no field {name!r}")
        if schema[name].type != kind:
            raise PlanError(f"feature {source.name!r}: field {name!r} has another type than the view's entity")


def _names(source: Source) -> list[tuple[str, Type]]:
    if source.expression is not None:
        return [(source.name, source.expression.type)]
    assert source.plan is not None
    return [(f"{source.name}.{feature.name}", feature.type) for feature in source.plan.features]


def _of_column(column: Column, kind: Type) -> Any:
    if kind == definition.FIELD_TYPE_STRING:
        pairs = zip(column.values.tolist(), column.nulls.tolist(), strict=True)
        return [None if null else value for value, null in pairs]
    return np.where(column.nulls, np.nan, column.values.astype(np.float64))
