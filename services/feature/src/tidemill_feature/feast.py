"""Feast's `/get-online-features`, question and answer, in terms of views; pure.

A reference is `view:feature`; an entity is a field of a view's entity. A feature service is a pipeline: every feature
that it looks up, by the fields of its request. Statuses are Feast's, so that null is NULL_VALUE; a value that is
OUTSIDE_MAX_AGE is withheld, which Feast's own Redis store does not do.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.instants import format_us, parse_us
from tidemill_contracts.reasons import Reason
from tidemill_features.finalise import FeatureValues
from tidemill_features.layout import EntityValue
from tidemill_features.plan import ViewPlan
from tidemill_features.reader import Lookup, Result
from tidemill_runtime.errors import Poison, Retryable

from tidemill_feature.reading import check_instant, check_rows, check_text, key_bytes_max, plan_of
from tidemill_feature.registered import Definitions

_INT64 = range(-(2**63), 2**63)
_NO_TIME = "1970-01-01T00:00:00Z"
_STATUSES = {
    int(messages.STATUS_PRESENT): "PRESENT",
    int(messages.STATUS_NULL): "NULL_VALUE",
    int(messages.STATUS_NOT_FOUND): "NOT_FOUND",
    int(messages.STATUS_OUTSIDE_MAX_AGE): "OUTSIDE_MAX_AGE",
    int(messages.STATUS_BEYOND_KEPT): "BEYOND_KEPT",
}
_TYPES: Mapping[int, tuple[str, type]] = {
    definition.FIELD_TYPE_BOOL: ("a boolean", bool),
    definition.FIELD_TYPE_INT64: ("an integer", int),
    definition.FIELD_TYPE_STRING: ("a string", str),
    definition.FIELD_TYPE_TIMESTAMP: ("an RFC 3339 instant", str),
}

Entities = Mapping[str, Sequence[Any]]


class Column(NamedTuple):
    """A feature of the answer: its name there, the source that it comes from, and its name in the view."""

    name: str
    source: int
    feature: str


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for: `sources` are views, each with the entities that it is looked up by.

    `pinned`: those of which a version was named.
    """

    sources: list[tuple[ViewPlan, tuple[str, ...]]]
    columns: list[Column]
    pinned: set[int] = field(default_factory=set)


def select(features: Sequence[str], service: str | None, definitions: Definitions, *, full_names: bool) -> Selection:
    """Return the features that are asked for. Raises `Poison` for what is not registered."""
    if service and features:
        raise Poison(Reason.CONFLICT, "give features or feature_service, not both", field="feature_service")
    if service:
        selection = _of_pipeline(service, definitions, full_names=full_names)
    elif features:
        selection = _of_references(features, definitions, full_names=full_names)
    else:
        raise Poison(Reason.EMPTY, "neither features nor a feature_service", field="features")
    _check_names(selection)
    return selection


def _of_references(references: Sequence[str], definitions: Definitions, *, full_names: bool) -> Selection:
    selection = Selection([], [])
    sources: dict[str, int] = {}
    for reference in references:
        check_characters(reference, "features")
        # The last colon: a whole hash has one of its own.
        view, colon, feature = reference.rpartition(":")
        if not colon:
            raise Poison(Reason.UNDECODABLE, f"{reference!r} is no feature", field="features", fix="write view:feature")
        name, _, version = view.partition("@")
        plan = plan_of(name, definitions, version)
        if feature not in {known.name for known in plan.features}:
            known = ", ".join(known.name for known in plan.features)
            message = f"view {name!r} has no feature {feature!r}"
            raise Poison(Reason.UNKNOWN_FIELD, message, field="features", fix=f"known: {known}")
        if name not in sources:
            sources[name] = len(selection.sources)
            selection.sources.append((plan, plan.entity))
        if version:
            selection.pinned.add(sources[name])
        selection.columns.append(Column(_name(name, feature, full_names), sources[name], feature))
    return selection


def _of_pipeline(name: str, definitions: Definitions, *, full_names: bool) -> Selection:
    check_characters(name, "feature_service")
    pipeline = definitions.catalogue.pipelines.get(name)
    if pipeline is None:
        known = ", ".join(sorted(definitions.catalogue.pipelines)) or "none"
        raise Poison(
            Reason.UNKNOWN_PIPELINE,
            f"no pipeline {name!r} is registered",
            field="feature_service",
            fix=f"known: {known}",
        )
    selection = Selection([], [])
    for part in pipeline.features:
        if not part.HasField("view"):
            continue
        plan = plan_of(part.view.view, definitions)
        for feature in plan.features:
            column = Column(_name(part.name, feature.name, full_names), len(selection.sources), feature.name)
            selection.columns.append(column)
        selection.sources.append((plan, tuple(part.view.on)))
    if not selection.sources:
        message = f"pipeline {name!r} looks up no view"
        raise Poison(Reason.EMPTY, message, field="feature_service", fix="give features")
    return selection


def _name(view: str, feature: str, full_names: bool) -> str:
    return f"{view}__{feature}" if full_names else feature


def _check_names(selection: Selection) -> None:
    """Raise `Poison` where two features of the answer would have one name, as Feast does."""
    names = Counter(column.name for column in selection.columns)
    names.update({entity for _, on in selection.sources for entity in on})
    if twice := sorted(name for name, count in names.items() if count > 1):
        message = f"more than one column of the answer would be named {', '.join(twice)}"
        raise Poison(Reason.CONFLICT, message, field="features", fix="set full_feature_names")


def lookups(selection: Selection, entities: Entities, definitions: Definitions, rows_max: int) -> list[Lookup]:
    """Return what to read. Raises `Poison` where entities are unknown, missing, uneven or of another type."""
    wanted = list(dict.fromkeys(entity for _, on in selection.sources for entity in on))
    for name in entities:
        check_characters(name, "entities")
        if name not in wanted:
            message = f"no view that is asked for is looked up by {name!r}"
            raise Poison(Reason.UNKNOWN_ENTITY, message, field=f"entities.{name}", fix=f"entities: {', '.join(wanted)}")
    if missing := [name for name in wanted if name not in entities]:
        message = f"entity {missing[0]!r} is not given"
        raise Poison(Reason.MISSING_FIELD, message, field=f"entities.{missing[0]}", fix=f"give {', '.join(wanted)}")
    rows = {len(values) for values in entities.values()}
    if len(rows) > 1:
        raise Poison(Reason.MISSING_FIELD, "entities have lists of different lengths", field="entities")
    check_rows(max(rows) * len(selection.sources), rows_max)
    return [_lookup(plan, on, entities, definitions) for plan, on in selection.sources]


def _lookup(plan: ViewPlan, on: Sequence[str], entities: Entities, definitions: Definitions) -> Lookup:
    bytes_max = key_bytes_max(plan, definitions)
    columns = [
        [_value(value, kind, f"entities.{name}", bytes_max) for value in entities[name]]
        for name, kind in zip(on, plan.entity_types, strict=True)
    ]
    return Lookup(plan.name, list(zip(*columns, strict=True)))


def _value(value: Any, kind: int, field: str, bytes_max: int) -> EntityValue:
    """Return an entity's value as rings are keyed by it."""
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        raise Poison(Reason.NON_FINITE, f"{value} is no entity", field=field)
    name, wanted = _TYPES[kind]
    # A boolean is an int to Python, and no integer to anyone else.
    fits = type(value) is wanted
    if not fits:
        raise Poison(Reason.WRONG_TYPE, f"it is {name}, not {type(value).__name__}", field=field)
    if isinstance(value, str):
        check_characters(value, field)
        check_text(value, field, bytes_max)
        return _instant(value, field) if kind == definition.FIELD_TYPE_TIMESTAMP else value
    number: int | bool = value
    if number not in _INT64:
        raise Poison(Reason.OUT_OF_RANGE, "it does not fit an int64", field=field)
    return number


def _instant(text: str, field: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Poison(Reason.WRONG_TYPE, f"{text[:40]!r} is no RFC 3339 instant", field=field) from error
    if moment.tzinfo is None:
        raise Poison(Reason.NAIVE_TIMESTAMP, f"{text!r} has no UTC offset", field=field, fix="end it in Z or +hh:mm")
    instant_us = parse_us(text)
    check_instant(instant_us, field)
    return instant_us


def check_characters(text: str, field: str) -> None:
    """Raise `Poison` for what JSON's escapes can write and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Poison(Reason.BAD_UTF8, "a \\u escape is half of a surrogate pair", field=ascii(field)[1:-1]) from error


def answer(selection: Selection, entities: Entities, result: Result) -> dict[str, Any]:
    """Return the answer as Feast's server writes it: a vector per column, entities first.

    Raises `Retryable` where rings still hold a former version of a view that is not what was asked for.
    """
    names = [*entities, *(column.name for column in selection.columns)]
    found = [{feature.name: feature for feature in view.features} for view in result.views]
    for place, ((plan, _), view) in enumerate(zip(selection.sources, result.views, strict=True)):
        lacking = any(column.feature not in found[place] for column in selection.columns if column.source == place)
        if lacking or (place in selection.pinned and view.view_hash != plan.hash):
            raise Retryable(f"this version of view {view.view!r} is still being built", retry_after_s=1)
    vectors = [_given(values) for values in entities.values()]
    vectors += [_vector(found[column.source][column.feature]) for column in selection.columns]
    return {"metadata": {"feature_names": names}, "results": vectors}


def _given(values: Sequence[Any]) -> dict[str, Any]:
    statuses = ["NULL_VALUE" if value is None else "PRESENT" for value in values]
    return {"values": list(values), "statuses": statuses, "event_timestamps": [_NO_TIME] * len(values)}


def _vector(feature: FeatureValues) -> dict[str, Any]:
    times = {instant_us: format_us(instant_us) for instant_us in set(feature.event_us.tolist())}
    pairs = zip(feature.values.tolist(), feature.nulls.tolist(), strict=True)
    return {
        "values": [None if null else _shown(value, feature.type) for value, null in pairs],
        "statuses": [_STATUSES[status] for status in feature.status.tolist()],
        "event_timestamps": [times[instant_us] for instant_us in feature.event_us.tolist()],
    }


def _shown(value: Any, kind: int) -> Any:
    """Return a value as JSON can say it."""
    return format_us(value) if kind == definition.FIELD_TYPE_TIMESTAMP else value
