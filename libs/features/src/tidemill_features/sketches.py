"""Sketches: what a slot keeps of many values where keeping all would cost too much.

A sketch lies in the shard's variable-length area. What it says depends on the values alone (and, of the heavy hitters,
on their order in the log), never on how the log was cut into batches or how often it was stored and taken up again:
so the offline twin, which never stores any, has the same bits.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from tidemill_features.partials import Dtype, Kind, Partial
from tidemill_features.sketch_distinct import MAX_BYTES as DISTINCT_BYTES
from tidemill_features.sketch_distinct import Distinct, estimate
from tidemill_features.sketch_heavy import Heavy, most_frequent
from tidemill_features.sketch_heavy import max_bytes as heavy_bytes
from tidemill_features.sketch_quantiles import MAX_BYTES as QUANTILES_BYTES
from tidemill_features.sketch_quantiles import MergedQuantiles, Quantiles, bins_of


class Sketch(Protocol):
    """One slot's sketch."""

    def add(self, values: Sequence[Any]) -> None:
        """Take in values, in offset order."""

    def pack(self) -> bytes:
        """Return the stored bytes, never none."""


# A count of distinct values, a sketch of quantiles, or the values by falling frequency.
Merged = int | MergedQuantiles | list[Any]


def blank(partial: Partial) -> Sketch:
    """Return a sketch of nothing."""
    if partial.kind is Kind.DISTINCT:
        return Distinct()
    if partial.kind is Kind.QUANTILES:
        return Quantiles()
    return Heavy(partial.size)


def unpack(partial: Partial, raw: bytes) -> Sketch:
    """Return a stored sketch. Raises `ValueError` where the bytes are none."""
    if partial.kind is Kind.DISTINCT:
        return Distinct.unpack(raw)
    if partial.kind is Kind.QUANTILES:
        return Quantiles.unpack(raw)
    return Heavy.unpack(raw, partial.size, strings=partial.dtype is Dtype.STRING)


def add_values(partial: Partial, values: Any) -> Any:
    """Return a column of values as the sketch takes them: of quantiles their bins, vectorised."""
    return bins_of(values) if partial.kind is Kind.QUANTILES else values


def merge(partial: Partial, raws: Iterable[bytes]) -> Merged:
    """Return what the stored sketches of several slots say together, in the order of (bucket, partition).

    Raises `ValueError` where bytes are no sketch.
    """
    if partial.kind is Kind.DISTINCT:
        return estimate(map(Distinct.unpack, raws))
    if partial.kind is Kind.QUANTILES:
        return MergedQuantiles(raws)
    strings = partial.dtype is Dtype.STRING
    return most_frequent([Heavy.unpack(raw, partial.size, strings=strings) for raw in raws], partial.size)


def max_bytes(partial: Partial) -> int:
    """Return the most that a slot's sketch takes, strings at their nominal length."""
    if partial.kind is Kind.DISTINCT:
        return DISTINCT_BYTES
    if partial.kind is Kind.QUANTILES:
        return QUANTILES_BYTES
    return heavy_bytes(partial.size, strings=partial.dtype is Dtype.STRING)
