"""From values to the answer of GetFeatures, by row or by column; pure."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
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


def _tag(field: FieldDescriptor) -> bytes:
    """Return what a field begins with on the wire, its type being the one that says its length."""
    return bytes([field.number << 3 | 2])


_FEATURES = _tag(messages.ViewColumns.DESCRIPTOR.fields_by_name["features"])
_FLOATS, _INTEGERS, _BOOLS, _STATUSES, _EVENT_TIMES, _NULLS, _HOP_ACCURACY = (
    _tag(messages.FeatureColumn.DESCRIPTOR.fields_by_name[name])
    for name in ("float64_values", "int64_values", "bool_values", "statuses", "event_times_us", "nulls", "hop_accuracy")
)
# From statuses to where there is no value; counts of an entity that is known have one.
_NULL = bytes(status != messages.STATUS_PRESENT for status in range(256))
_COUNTS_NULL = bytes(status in (messages.STATUS_NOT_FOUND, messages.STATUS_BEYOND_KEPT) for status in range(256))


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
    """Return a view by column.

    The columns are written as they lie on the wire, where a packed field of eight-byte numbers is what the array is in
    memory: parsing that is one copy, while a message per column and `extend` make an object of every number.
    """
    excluded = view.head_excluded
    columns = messages.ViewColumns(
        view=view.view,
        view_hash=view.view_hash,
        rows=len(excluded),
        head_excluded=excluded.tobytes() if excluded.any() else b"",
    )
    columns.MergeFromString(b"".join([_delimited(_FEATURES, _column(feature)) for feature in view.features]))
    return columns


def _column(feature: FeatureValues) -> bytes:
    statuses, values = feature.status.tobytes(), feature.values
    nulls = statuses.translate(_COUNTS_NULL if feature.counts else _NULL)
    parts = [_head(feature.name, feature.type), _delimited(_STATUSES, statuses)]
    if 1 in nulls:
        parts.append(_delimited(_NULLS, nulls))
    if feature.coarse is not None:
        parts.append(_delimited(_HOP_ACCURACY, feature.coarse.tobytes()))
    if feature.type == definition.FIELD_TYPE_STRING:
        texts = ["" if null else text for text, null in zip(values, nulls, strict=True)]
        parts.append(messages.FeatureColumn(string_values=texts).SerializeToString())
    elif feature.type == definition.FIELD_TYPE_BOOL:
        parts.append(_delimited(_BOOLS, values.tobytes()))
    elif feature.type == definition.FIELD_TYPE_FLOAT64:
        parts.append(_delimited(_FLOATS, values.astype("<f8", copy=False).tobytes()))
    else:
        parts.append(_delimited(_INTEGERS, values.astype("<i8", copy=False).tobytes()))
    parts.append(_delimited(_EVENT_TIMES, feature.event_us.astype("<i8", copy=False).tobytes()))
    return b"".join(parts)


@lru_cache(10_000)
def _head(name: str, kind: "definition.FieldType.ValueType") -> bytes:
    return messages.FeatureColumn(feature=name, type=kind).SerializeToString()


def _delimited(tag: bytes, raw: bytes) -> bytes:
    """Return a field of the wire type that says its length."""
    size = len(raw)
    if size < 0x80:
        return b"%c%c%b" % (tag, size, raw)
    parts = bytearray(tag)
    while size > 0x7F:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
    return bytes(parts) + raw


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
        repeat(False, len(head_excluded)) if feature.coarse is None else feature.coarse.tolist(),
        strict=True,
    )
    return [
        messages.FeatureValue(
            value=messages.Scalar() if null else messages.Scalar(**{name: convert(value)}),
            status=status,
            event_time_us=event_us,
            head_excluded=excluded,
            hop_accuracy=coarse,
        )
        for value, null, status, event_us, excluded, coarse in columns
    ]
