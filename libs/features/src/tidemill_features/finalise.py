"""From merged partials to a value with its status; one piece of code for reads and for training sets.

- COUNT, RATE, APPROX_DISTINCT and each bin of a HISTOGRAM are 0 of nothing; everything else is null, as in SQL. So are
  a variance of one value, a skew of equal ones, and what is beyond the range of its type (a mean where its sum is).
- NOT_FOUND: no event of this entity was ever folded, or a part of its key is null. The value is null.
- OUTSIDE_MAX_AGE: the entity's newest event is older than the view's max_age. The value is that of an entity without
  events: counts 0, all else null. A last without a window looks at the age of its own value besides.
- BEYOND_KEPT: a read so far in the past that buckets of the window may have given way to newer ones. The value is null,
  a count too, since what is left of it would look like any other.
- NULL: found, but nothing to aggregate. PRESENT otherwise.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.feature.v1 import feature_pb2

from tidemill_features import moments
from tidemill_features import partials as p
from tidemill_features.expressions_tree import Type
from tidemill_features.layout import EMPTY
from tidemill_features.partials import Feature
from tidemill_features.plan import RingPlan
from tidemill_features.whole_sums import BEYOND

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

PRESENT = int(feature_pb2.STATUS_PRESENT)
NULL = int(feature_pb2.STATUS_NULL)
NOT_FOUND = int(feature_pb2.STATUS_NOT_FOUND)
OUTSIDE_MAX_AGE = int(feature_pb2.STATUS_OUTSIDE_MAX_AGE)
BEYOND_KEPT = int(feature_pb2.STATUS_BEYOND_KEPT)

# Set in a logged status byte beside the status.
HEAD_EXCLUDED_BIT = 0x80
HOP_ACCURACY_BIT = 0x40
STATUS_BITS = HOP_ACCURACY_BIT - 1


# Not frozen, as many are made in each read: that would take four times as long.
@dataclass(slots=True)
class Merged:
    """One feature's partials merged over its window, one per row.

    `count`: int64, None for first and last; `value`: None for count, of moments their state, of a sketch what it says;
    `event_us`: EMPTY where nothing was merged; `weight`: of an EWMA. None for nowhere: `coarse`, where
    a bucket at an edge of an exact window could not be cut; `left_out`, where the last bucket holds what came after the
    read and was left out.
    """

    count: Any
    value: Any
    event_us: Ints
    weight: Any = None
    coarse: Bools | None = None
    left_out: Bools | None = None


class Known:
    """What is known of each row's entity: whether it has events, and whether the newest is older than max_age."""

    def __init__(self, newest_us: Ints, found: Bools, as_of_us: Any, max_age_us: int) -> None:
        self.missing = ~found
        self._newest_us, self._as_of_us = newest_us, as_of_us
        # Where events lie after the moment asked for: of all others every bucket is kept.
        self.any_ahead = bool(np.count_nonzero(newest_us > as_of_us))
        self.withheld = self.missing | (newest_us < as_of_us - max_age_us)
        # The status of a value that is not null by itself.
        self.status = np.full(len(newest_us), PRESENT, np.uint8)
        self._null: Any = None
        if np.count_nonzero(self.withheld):
            self.status[self.withheld] = OUTSIDE_MAX_AGE
            self.status[self.missing] = NOT_FOUND
            self._null = self.withheld
        # What features share, by the array that they have in common, which is kept so that no other takes its id.
        self._of_counts: dict[int, tuple[Any, Bytes, Any]] = {}
        self._of_sums: dict[int, tuple[Any, Bytes, Any]] = {}
        self._of_times: dict[int, tuple[Ints, Ints]] = {}

    def of_count(self, count: Any) -> tuple[Bytes, Any]:
        """Return the status of what is null without values, and where it is null: None for nowhere."""
        known = self._of_counts.get(id(count))
        if known is None:
            status, null, none = self.status, self._null, count == 0
            # Every call of NumPy's counts where rows are few.
            if np.count_nonzero(none):
                status = np.where(none & (self.status == PRESENT), np.uint8(NULL), self.status)
                null = status != PRESENT
            known = self._of_counts[id(count)] = count, status, null
        return known[1:]

    def of_sum(self, count: Any, total: Any) -> tuple[Bytes, Any]:
        """Return the same of what is null, too, where the sum of the values that `count` counts is beyond its range."""
        known = self._of_sums.get(id(total))
        if known is None:
            status, null = self.of_count(count)
            within = np.isfinite(total) if total.dtype.kind == "f" else total != BEYOND
            if np.count_nonzero(within) < len(within):
                status = np.where(~within & (status == PRESENT), np.uint8(NULL), status)
                null = status != PRESENT
            known = self._of_sums[id(total)] = total, status, null
        return known[1:]

    def beyond(self, ring: RingPlan, window_us: int) -> Bools | None:
        """Return where a window reaches back to buckets that may have given way to newer ones; None for nowhere."""
        if not self.any_ahead:
            return None
        first = (self._as_of_us - window_us) // ring.hop_us
        beyond = np.asarray(self._newest_us // ring.hop_us - first >= ring.slots, np.bool_)
        return beyond if np.count_nonzero(beyond) else None

    def of_times(self, event_us: Ints) -> Ints:
        """Return event times with 0 for none."""
        known = self._of_times.get(id(event_us))
        if known is None:
            none = event_us == EMPTY
            times = np.where(none, 0, event_us) if np.count_nonzero(none) else event_us
            known = self._of_times[id(event_us)] = event_us, times
        return known[1]


@dataclass(slots=True)
class FeatureValues:
    """One feature over many rows.

    `values`: float64 (NaN under a null), int64, bool or object (None); `status`: uint8; `event_us`: the newest event in
    the window, or of last the value's own; 0 where there is none; `coarse`: where a value of an exact window is only as
    accurate as a hop, None for nowhere.
    """

    name: str
    type: Type
    counts: bool
    values: Any
    status: Bytes
    event_us: Ints
    coarse: Bools | None = None

    @property
    def nulls(self) -> Bools:
        """Return where there is no value."""
        if not self.counts:
            return np.asarray(self.status != PRESENT, np.bool_)
        return np.asarray((self.status == NOT_FOUND) | (self.status == BEYOND_KEPT), np.bool_)

    def numbers(self) -> NDArray[np.float64]:
        """Return float64 with NaN for null. Raises `TypeError` for strings."""
        if self.values.dtype == object:
            raise TypeError(f"feature {self.name!r} is a string")
        if self.values.dtype == np.float64:
            return np.asarray(self.values, np.float64)
        return np.where(self.nulls, np.nan, self.values)


def finalise(feature: Feature, ring: RingPlan, merged: Merged, entity: Known, as_of_us: Any) -> FeatureValues:
    """Return a feature's values. `as_of_us`: one instant, or int64[rows]."""
    values = _finalised(feature, merged, entity, as_of_us)
    beyond = entity.beyond(ring, feature.window_us)
    if beyond is not None:
        values = _without(values, beyond)
    if merged.coarse is None:
        return values
    coarse = merged.coarse & ~entity.withheld
    if beyond is not None:
        coarse &= ~beyond
    return replace(values, coarse=coarse) if coarse.any() else values


def _without(values: FeatureValues, beyond: Bools) -> FeatureValues:
    """Return values with those taken away whose window reaches beyond what is kept."""
    left = values.values.copy()
    left[beyond] = nothing_of(left)
    status = np.where(beyond, np.uint8(BEYOND_KEPT), values.status)
    return replace(values, values=left, status=status, event_us=np.where(beyond, 0, values.event_us))


def nothing_of(values: Any) -> Any:
    """Return what stands in an array where there is no value."""
    return {"O": None, "f": np.nan}.get(values.dtype.kind, 0)


def _finalised(feature: Feature, merged: Merged, entity: Known, as_of_us: Any) -> FeatureValues:
    if feature.function == p.TIME_SINCE_LAST and merged.value is not None:
        merged = Merged(None, None, merged.value)
    event_us = entity.of_times(merged.event_us)
    if feature.function in _PLAIN:
        summed = feature.function in _SUMMED
        status, null = entity.of_sum(merged.count, merged.value) if summed else entity.of_count(merged.count)
        value = _calculated(feature, merged)
        if null is not None or value.dtype != np.float64:
            value = _typed(feature, value, status != PRESENT if null is None else null)
        return FeatureValues(feature.name, feature.type, False, value, status, event_us)
    if feature.function in _COUNTING:
        values = _counted(feature, merged, entity)
        return FeatureValues(feature.name, feature.type, True, values, entity.status, event_us)
    status = entity.status
    if feature.max_age_us:
        stale = (merged.event_us < as_of_us - feature.max_age_us) & (merged.event_us != EMPTY) & ~entity.missing
        status = np.where(stale, np.uint8(OUTSIDE_MAX_AGE), status)
    value, empty = _value(feature, merged, as_of_us)
    status = np.where(empty & (status == PRESENT), np.uint8(NULL), status)
    return FeatureValues(feature.name, feature.type, False, _typed(feature, value, status != PRESENT), status, event_us)


# Of nothing these are 0.
_COUNTING = frozenset({p.COUNT, p.RATE, p.HISTOGRAM, p.APPROX_DISTINCT})
# Null where there is nothing to aggregate, and else a number.
_PLAIN = frozenset({p.SUM, p.MEAN, p.MIN, p.MAX})
# Null, too, where the sum is beyond the range of floats or of int64.
_SUMMED = frozenset({p.SUM, p.MEAN})
# What an absent event time says of these.
_OF_EVENTS = frozenset({p.FIRST, p.LAST, p.LAST_K, p.TIME_SINCE_LAST})
_FLOATING = frozenset({p.VARIANCE, p.STD, p.SKEW, p.DECAYED_SUM, p.EWMA})


def _counted(feature: Feature, merged: Merged, entity: Known) -> Any:
    if feature.function == p.RATE:
        per_second = merged.count / (feature.window_us / 1_000_000)
        return np.where(entity.missing, np.nan, np.where(entity.withheld, 0.0, per_second))
    counts = merged.value.astype(np.int64) if feature.function == p.APPROX_DISTINCT else merged.count
    return np.where(entity.withheld, 0, counts)


def _value(feature: Feature, merged: Merged, as_of_us: Any) -> tuple[Any, Any]:
    """Return the values, and where there is none."""
    if feature.function in _OF_EVENTS:
        empty = merged.event_us == EMPTY
        if feature.function != p.TIME_SINCE_LAST:
            return merged.value, empty
        # An event of a clock that goes ahead is of now.
        return np.maximum(as_of_us - np.where(empty, 0, merged.event_us), 0) / 1_000_000, empty
    empty = merged.count == 0
    if feature.function == p.QUANTILE:
        return np.array([one.quantile(feature.quantile) for one in merged.value], np.float64), empty
    if feature.function == p.TOP_K:
        return _element(feature, merged.value)
    value = _calculated(feature, merged)
    return value, empty | ~np.isfinite(value) if feature.function in _FLOATING else empty


def _calculated(feature: Feature, merged: Merged) -> Any:
    value = merged.value
    if feature.function == p.MEAN:
        return value / np.maximum(merged.count, 1)
    if feature.function == p.EWMA:
        return value / np.where(merged.weight > 0, merged.weight, 1.0)
    if feature.function == p.SKEW:
        return moments.skew(value)
    if feature.function == p.VARIANCE:
        return moments.variance(value)
    return np.sqrt(moments.variance(value)) if feature.function == p.STD else value


def _element(feature: Feature, ranked: Any) -> tuple[Any, Any]:
    """Return one place of each row's most frequent values."""
    place = feature.element
    found = [one[place] if place < len(one) else None for one in ranked]
    empty = np.array([one is None for one in found], np.bool_)
    if feature.type == definition.FIELD_TYPE_STRING:
        values = np.empty(len(found), object)
        values[:] = found
        return values, empty
    return np.array([0 if one is None else one for one in found], np.int64), empty


def _typed(feature: Feature, value: Any, null: Any) -> Any:
    if value.dtype == object:
        kept = value.copy()
        kept[null] = None
        return kept
    if value.dtype == np.float64:
        return np.where(null, np.nan, value)
    value = np.where(null, 0, value)
    return value.astype(np.bool_) if feature.type == definition.FIELD_TYPE_BOOL else value
