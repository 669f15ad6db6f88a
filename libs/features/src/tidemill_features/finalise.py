"""From merged partials to a value with its status; one piece of code for reads and for training sets.

- COUNT of nothing is 0; SUM, MEAN, MIN, MAX and LAST of nothing are null, as in SQL.
- NOT_FOUND: no event of this entity was ever folded, or a part of its key is null. The value is null.
- OUTSIDE_MAX_AGE: the entity's newest event is older than the view's max_age. The value is that of an entity without
  events: count 0, all else null. A last without a window looks at the age of its own value besides.
- NULL: found, but nothing to aggregate. PRESENT otherwise.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2

from tidemill_features.expressions_tree import Type
from tidemill_features.layout import EMPTY
from tidemill_features.plan import COUNT, LAST, MEAN, Feature

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

PRESENT = int(feature_pb2.STATUS_PRESENT)
NULL = int(feature_pb2.STATUS_NULL)
NOT_FOUND = int(feature_pb2.STATUS_NOT_FOUND)
OUTSIDE_MAX_AGE = int(feature_pb2.STATUS_OUTSIDE_MAX_AGE)

# Set in a logged status byte beside the status.
HEAD_EXCLUDED_BIT = 0x80


@dataclass(frozen=True, slots=True)
class Merged:
    """One feature's partials merged over its window, one per row.

    `count`: int64, None for last; `value` None for count; `event_us` EMPTY where nothing was merged.
    """

    count: Any
    value: Any
    event_us: Ints


class Known:
    """What is known of each row's entity: whether it has events, and whether the newest is older than max_age."""

    def __init__(self, newest_us: Ints, found: Bools, as_of_us: Any, max_age_us: int) -> None:
        self.missing = ~found
        self.withheld = self.missing | (newest_us < as_of_us - max_age_us)
        # The status of a value that is not null by itself.
        self.status = np.where(self.withheld, OUTSIDE_MAX_AGE, PRESENT).astype(np.uint8)
        self.status[self.missing] = NOT_FOUND


@dataclass(frozen=True, slots=True)
class FeatureValues:
    """One feature over many rows.

    `values`: float64 (NaN under a null), int64, bool or object (None); `status`: uint8; `event_us`: the newest event in
    the window, or of last the value's own; 0 where there is none.
    """

    name: str
    type: Type
    counts: bool
    values: Any
    status: Bytes
    event_us: Ints

    @property
    def nulls(self) -> Bools:
        """Return where there is no value."""
        null = self.status == NOT_FOUND if self.counts else self.status != PRESENT
        return np.asarray(null, np.bool_)

    def numbers(self) -> NDArray[np.float64]:
        """Return float64 with NaN for null. Raises `TypeError` for strings."""
        if self.values.dtype == object:
            raise TypeError(f"feature {self.name!r} is a string")
        if self.values.dtype == np.float64:
            return np.asarray(self.values, np.float64)
        return np.where(self.nulls, np.nan, self.values)


def finalise(feature: Feature, merged: Merged, entity: Known, as_of_us: Any) -> FeatureValues:
    """Return a feature's values. `as_of_us`: one instant, or int64[rows]."""
    event_us = np.where(merged.event_us == EMPTY, 0, merged.event_us)
    if feature.function == COUNT:
        values: Any = np.where(entity.withheld, 0, merged.count)
        return FeatureValues(feature.name, feature.type, True, values, entity.status, event_us)
    status = entity.status
    if feature.max_age_us:
        stale = (merged.event_us < as_of_us - feature.max_age_us) & (merged.event_us != EMPTY) & ~entity.missing
        status = np.where(stale, np.uint8(OUTSIDE_MAX_AGE), status)
    empty = merged.event_us == EMPTY if feature.function == LAST else merged.count == 0
    status = np.where(empty & (status == PRESENT), np.uint8(NULL), status)
    values = _values(feature, merged, status != PRESENT)
    return FeatureValues(feature.name, feature.type, False, values, status, event_us)


def _values(feature: Feature, merged: Merged, null: Any) -> Any:
    value = merged.value
    if feature.function == MEAN:
        value = value / np.maximum(merged.count, 1)
    if value.dtype == object:
        kept = value.copy()
        kept[null] = None
        return kept
    if value.dtype == np.float64:
        return np.where(null, np.nan, value)
    value = np.where(null, 0, value)
    return value.astype(np.bool_) if feature.type == definition.FIELD_TYPE_BOOL else value
