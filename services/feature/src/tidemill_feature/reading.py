"""From a GetFeatures request to look-ups, and from values to its answer; pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_contracts.reasons import Reason
from tidemill_features.finalise import FeatureValues
from tidemill_features.layout import EntityValue
from tidemill_features.plan import ViewPlan
from tidemill_features.reader import Lookup, Result, ViewValues
from tidemill_runtime.errors import Poison

_SCALARS: dict[int, tuple[str, type]] = {
    definition.FIELD_TYPE_BOOL: ("bool_value", bool),
    definition.FIELD_TYPE_INT64: ("int64_value", int),
    definition.FIELD_TYPE_FLOAT64: ("float64_value", float),
    definition.FIELD_TYPE_STRING: ("string_value", str),
    definition.FIELD_TYPE_TIMESTAMP: ("timestamp_us", int),
}


def lookups(request: messages.GetFeaturesRequest, plans: Mapping[str, ViewPlan], rows_max: int) -> list[Lookup]:
    """Return what a request asks for. Raises `Poison` naming the view, or the key that does not fit it."""
    rows = sum(len(view.keys) for view in request.views)
    if rows > rows_max:
        raise Poison(Reason.OUT_OF_RANGE, f"{rows} keys; at most {rows_max} are read at once", field="views.keys")
    return [_lookup(view, plans) for view in request.views]


def _lookup(asked: messages.ViewKeys, plans: Mapping[str, ViewPlan]) -> Lookup:
    plan = plans.get(asked.view)
    if plan is None:
        known = ", ".join(sorted(plans)) or "none"
        raise Poison(
            Reason.UNKNOWN_VIEW, f"no view {asked.view!r} is registered", field="views.view", fix=f"known: {known}"
        )
    return Lookup(plan.name, [_key(key, plan) for key in asked.keys])


def _key(key: messages.EntityKey, plan: ViewPlan) -> tuple[EntityValue, ...]:
    if len(key.values) != len(plan.entity):
        raise Poison(
            Reason.MISSING_FIELD,
            f"a key of view {plan.name!r} has {len(plan.entity)} values, not {len(key.values)}",
            field="views.keys",
            fix=f"give {', '.join(plan.entity)} in this order",
        )
    values: list[EntityValue] = []
    for scalar, kind, name in zip(key.values, plan.entity_types, plan.entity, strict=True):
        given = scalar.WhichOneof("value")
        wanted, _ = _SCALARS[kind]
        if given not in (None, wanted):
            raise Poison(
                Reason.WRONG_TYPE,
                f"{name!r} of view {plan.name!r} is {wanted}, not {given}",
                field=f"views.keys.{name}",
            )
        values.append(None if given is None else getattr(scalar, wanted))
    return tuple(values)


def answer(result: Result, as_of_us: int) -> messages.GetFeaturesResponse:
    """Return values as they are answered."""
    return messages.GetFeaturesResponse(
        views=[_view(view) for view in result.views],
        as_of_us=as_of_us,
        positions=[
            progress.TopicPartitionOffset(topic=place.topic, partition=place.partition, next_offset=offset)
            for place, offset in result.positions.items()
        ],
    )


def _view(view: ViewValues) -> messages.ViewValues:
    columns = [_column(feature, view.head_excluded.tolist()) for feature in view.features]
    return messages.ViewValues(
        view=view.view,
        features=[feature.name for feature in view.features],
        rows=[messages.FeatureRow(values=row) for row in zip(*columns, strict=True)],
        view_hash=view.view_hash,
    )


def _column(feature: FeatureValues, head_excluded: Sequence[bool]) -> list[messages.FeatureValue]:
    name, convert = _SCALARS[feature.type]
    columns: Any = zip(
        feature.values.tolist(),
        feature.nulls.tolist(),
        feature.status.tolist(),
        feature.event_us.tolist(),
        head_excluded,
        strict=True,
    )
    return [
        messages.FeatureValue(
            value=messages.Scalar() if null else messages.Scalar(**{name: convert(value)}),
            status=status,
            event_time_us=event_us,
            head_excluded=excluded,
        )
        for value, null, status, event_us, excluded in columns
    ]
