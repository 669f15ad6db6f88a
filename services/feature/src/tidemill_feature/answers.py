"""From values to the answer of GetFeatures, by row or by column; pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2 as messages
from tidemill_contracts.progress.v1 import progress_pb2 as progress
from tidemill_features.finalise import FeatureValues
from tidemill_features.reader import Result, ViewValues

SCALARS: Mapping[int, tuple[str, type]] = {
    definition.FIELD_TYPE_BOOL: ("bool_value", bool),
    definition.FIELD_TYPE_INT64: ("int64_value", int),
    definition.FIELD_TYPE_FLOAT64: ("float64_value", float),
    definition.FIELD_TYPE_STRING: ("string_value", str),
    definition.FIELD_TYPE_TIMESTAMP: ("timestamp_us", int),
}
_FLOATS, _INTEGERS, _EVENT_TIMES = (
    messages.FeatureColumn.DESCRIPTOR.fields_by_name[name].number
    for name in ("float64_values", "int64_values", "event_times_us")
)


def answer(result: Result, as_of_us: int, *, columnar: bool) -> messages.GetFeaturesResponse:
    """Return values as they are answered."""
    return messages.GetFeaturesResponse(
        views=() if columnar else [_rows(view) for view in result.views],
        columns=[_columns(view) for view in result.views] if columnar else (),
        as_of_us=as_of_us,
        positions=[
            progress.TopicPartitionOffset(topic=place.topic, partition=place.partition, next_offset=offset)
            for place, offset in result.positions.items()
        ],
    )


def _columns(view: ViewValues) -> messages.ViewColumns:
    excluded = view.head_excluded
    return messages.ViewColumns(
        view=view.view,
        view_hash=view.view_hash,
        rows=len(excluded),
        features=[_column(feature) for feature in view.features],
        head_excluded=excluded.tobytes() if excluded.any() else b"",
    )


def _column(feature: FeatureValues) -> messages.FeatureColumn:
    nulls, values = feature.nulls, feature.values
    column = messages.FeatureColumn(
        feature=feature.name,
        type=feature.type,
        statuses=feature.status.tobytes(),
        nulls=nulls.tobytes() if nulls.any() else b"",
    )
    packed = _packed(_EVENT_TIMES, feature.event_us.astype("<i8", copy=False))
    if feature.type == definition.FIELD_TYPE_FLOAT64:
        packed += _packed(_FLOATS, values.astype("<f8", copy=False))
    elif feature.type == definition.FIELD_TYPE_STRING:
        column.string_values.extend(["" if null else text for text, null in zip(values, nulls.tolist(), strict=True)])
    elif feature.type == definition.FIELD_TYPE_BOOL:
        column.bool_values.extend(values.tolist())
    else:
        packed += _packed(_INTEGERS, values.astype("<i8", copy=False))
    column.MergeFromString(packed)
    return column


def _packed(number: int, array: "np.ndarray[Any, np.dtype[Any]]") -> bytes:
    """Return a packed field of eight-byte numbers as it lies on the wire, which is how the array lies in memory.

    Parsing it is one copy; `extend` would make an object of every number.
    """
    return bytes([number << 3 | 2]) + _varint(array.nbytes) + array.tobytes()


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _rows(view: ViewValues) -> messages.ViewValues:
    columns = [_values(feature, view.head_excluded.tolist()) for feature in view.features]
    return messages.ViewValues(
        view=view.view,
        features=[feature.name for feature in view.features],
        rows=[messages.FeatureRow(values=row) for row in zip(*columns, strict=True)],
        view_hash=view.view_hash,
    )


def _values(feature: FeatureValues, head_excluded: Sequence[bool]) -> list[messages.FeatureValue]:
    name, convert = SCALARS[feature.type]
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
