"""From values to the answer of GetFeatures, by row or by column; pure."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from typing import Any

import numpy as np
from google.protobuf.message import Message
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


def _tag(message: type[Message], name: str) -> bytes:
    """Return what a field begins with on the wire, its type being the one that says its length."""
    return bytes([message.DESCRIPTOR.fields_by_name[name].number << 3 | 2])


_COLUMNS = _tag(messages.GetFeaturesResponse, "columns")
_FEATURES = _tag(messages.ViewColumns, "features")
_STATUSES, _EVENT_TIMES, _NULLS, _HOP_ACCURACY = (
    _tag(messages.FeatureColumn, name) for name in ("statuses", "event_times_us", "nulls", "hop_accuracy")
)
# Of types whose values lie on the wire as they do in memory: the field, the array's type, and the bytes of a value.
_PACKED: Mapping[int, tuple[bytes, str, int]] = {
    definition.FIELD_TYPE_BOOL: (_tag(messages.FeatureColumn, "bool_values"), "?", 1),
    definition.FIELD_TYPE_FLOAT64: (_tag(messages.FeatureColumn, "float64_values"), "<f8", 8),
    definition.FIELD_TYPE_INT64: (_tag(messages.FeatureColumn, "int64_values"), "<i8", 8),
    definition.FIELD_TYPE_TIMESTAMP: (_tag(messages.FeatureColumn, "int64_values"), "<i8", 8),
}
# From statuses to where there is no value; counts of an entity that is known have one.
_NULL = bytes(status != messages.STATUS_PRESENT for status in range(256))
_COUNTS_NULL = bytes(status in (messages.STATUS_NOT_FOUND, messages.STATUS_BEYOND_KEPT) for status in range(256))


def answer(result: Result, as_of_us: int, *, columnar: bool) -> messages.GetFeaturesResponse:
    """Return values as they are answered."""
    response = messages.GetFeaturesResponse(
        views=() if columnar else [_rows(view) for view in result.views],
        as_of_us=as_of_us,
        positions=[
            progress.TopicPartitionOffset(topic=place.topic, partition=place.partition, next_offset=offset)
            for place, offset in result.positions.items()
        ],
    )
    if columnar:
        response.MergeFromString(_columns(result.views))
    return response


def _columns(views: Sequence[ViewValues]) -> bytes:
    """Return views by column.

    The columns are written as they lie on the wire, where a packed field of eight-byte numbers is what the array is in
    memory: parsing that is one copy, while a message per column and `extend` make an object of every number.
    """
    # Views that were merged together share their arrays: their bytes are taken once.
    taken: dict[int, list[_Column]] = {}
    found: list[bytes] = []
    for view in views:
        columns = taken.get(id(view.whole))
        if columns is None:
            columns = taken[id(view.whole)] = [_Column(feature) for feature in view.whole]
        first, end, excluded = view.first, view.first + len(view.head_excluded), view.head_excluded
        head = messages.ViewColumns(
            view=view.view,
            view_hash=view.view_hash,
            rows=len(excluded),
            head_excluded=excluded.tobytes() if np.count_nonzero(excluded) else b"",
        )
        parts = [head.SerializeToString()]
        for name, column in zip(view.names, columns, strict=True):
            message = column.of_rows(name, first, end)
            parts += _length(_FEATURES, len(message)), message
        message = b"".join(parts)
        found += _length(_COLUMNS, len(message)), message
    return b"".join(found)


class _Column:
    """A feature's arrays as they lie on the wire."""

    def __init__(self, feature: FeatureValues) -> None:
        self._type, self._feature = feature.type, feature
        self._statuses = feature.status.tobytes()
        self._nulls = self._statuses.translate(_COUNTS_NULL if feature.counts else _NULL)
        self._event_times = feature.event_us.astype("<i8", copy=False).tobytes()
        self._packed = _PACKED.get(feature.type)
        self._values = b"" if self._packed is None else feature.values.astype(self._packed[1], copy=False).tobytes()

    def of_rows(self, name: str, first: int, end: int) -> bytes:
        """Return the message of some rows."""
        rows, nulls = end - first, self._nulls[first:end]
        times = self._event_times[first * 8 : end * 8]
        parts = [_head(name, self._type, rows), self._statuses[first:end], _length(_EVENT_TIMES, rows * 8), times]
        if self._packed is None:
            values = self._feature.values[first:end]
            texts = ["" if null else text for text, null in zip(values, nulls, strict=True)]
            parts.append(messages.FeatureColumn(string_values=texts).SerializeToString())
        else:
            tag, _, size = self._packed
            parts += _length(tag, rows * size), self._values[first * size : end * size]
        if 1 in nulls:
            parts += _length(_NULLS, rows), nulls
        if self._feature.coarse is not None:
            parts += _length(_HOP_ACCURACY, rows), self._feature.coarse[first:end].tobytes()
        return b"".join(parts)


@lru_cache(10_000)
def _head(name: str, kind: "definition.FieldType.ValueType", rows: int) -> bytes:
    """Return what a column begins with, up to its statuses."""
    return messages.FeatureColumn(feature=name, type=kind).SerializeToString() + _length(_STATUSES, rows)


@lru_cache(10_000)
def _length(tag: bytes, size: int) -> bytes:
    """Return what stands before a field of the wire type that says its length."""
    parts = bytearray(tag)
    while size > 0x7F:
        parts.append(size & 0x7F | 0x80)
        size >>= 7
    parts.append(size)
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
