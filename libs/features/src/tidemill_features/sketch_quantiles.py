"""Quantiles with a relative error of at most one per cent: DDSketch.

C. Masson, J. Rim, H. Lee, "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees", PVLDB
12(12), 2019. Values are counted in bins whose edges grow by γ = (1 + α) / (1 − α); only counts are added, so that the
order of values, slots and batches changes nothing. The logarithm of a value is taken from its exponent and a cubic of
its mantissa (ibid., "cubic interpolation"): from additions and multiplications alone, so the same on every machine.

At most `MAX_BINS` bins are kept per sign, those of the largest magnitudes: enough for all values within a factor of
20,000, and for more where they leave gaps. Smaller ones fall together in the lowest bin, where the bound does not hold.
"""

import math
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_BINS = 512
# The cubic A m³ + B m² + C m on [0, 1) has its least slope, relative to that of log2(1 + m), at 0.
_A, _B, _C = 6.0 / 35.0, -3.0 / 5.0, 10.0 / 7.0
# Bins for each doubling: 1 / log2(γ) where α is 0.01, and a hundredth more since the cubic is no logarithm.
_BINS_PER_DOUBLING = 35.0
# Added to a bin, so that every number has a bin above zero; the sign of the value is the sign of the bin.
_SHIFT = 40_000
# A count of zeros, and the number of bins; then four bytes of bin and four of count each.
_HEAD = struct.Struct("<II")
MAX_BYTES = _HEAD.size + 2 * MAX_BINS * 8

Ints = NDArray[np.int64]


def bins_of(values: Any) -> Ints:
    """Return the bin of every value; 0 for zero."""
    numbers = np.asarray(values, np.float64)
    mantissa, exponent = np.frexp(np.abs(numbers))
    part = 2.0 * mantissa - 1.0
    place = exponent + ((_A * part + _B) * part + _C) * part
    bins = np.floor(place * _BINS_PER_DOUBLING).astype(np.int64) + _SHIFT
    return np.where(numbers > 0, bins, np.where(numbers < 0, -bins, 0))


def _value_of(number: int) -> float:
    """Return a bin's value: the middle, by relative error, of its edges."""
    if not number:
        return 0.0
    low, high = (_edge(abs(number) + step) for step in (0, 1))
    value = low * (2.0 / (1.0 + low / high))
    return value if number > 0 else -value


def _edge(number: int) -> float:
    """Return the lower edge of a bin, by Newton's method on the cubic: a fixed count of steps, so the same anywhere."""
    place = (number - _SHIFT) / _BINS_PER_DOUBLING
    exponent = math.floor(place)
    wanted, part = place - exponent, place - exponent
    for _ in range(6):
        part -= (((_A * part + _B) * part + _C) * part - wanted) / ((3.0 * _A * part + 2.0 * _B) * part + _C)
    # The highest bin ends beyond the largest float.
    return math.ldexp((1.0 + part) / 2.0, exponent) if exponent <= sys.float_info.max_exp else sys.float_info.max


class Quantiles:
    """Counts by bin."""

    def __init__(self, counts: dict[int, int] | None = None) -> None:
        self._counts = counts if counts is not None else {}

    def add(self, values: Sequence[int]) -> None:
        """Take in bins."""
        counts = self._counts
        for number in values:
            counts[number] = counts.get(number, 0) + 1
        if len(counts) > MAX_BINS:
            _collapse(counts)

    def pack(self) -> bytes:
        """Return the stored bytes, by rising bin: equal counts, equal bytes."""
        counts = {number: count for number, count in sorted(self._counts.items()) if number}
        pairs = [part for pair in counts.items() for part in pair]
        return _HEAD.pack(self._counts.get(0, 0), len(counts)) + struct.pack(f"<{'iI' * len(counts)}", *pairs)

    @classmethod
    def unpack(cls, raw: bytes) -> "Quantiles":
        """Return a stored sketch. Raises `ValueError`."""
        zeros, body = _parts(raw)
        pairs: dict[int, int] = dict(struct.iter_unpack("<iI", body))
        if 8 * len(pairs) != len(body):
            raise ValueError("a sketch of quantiles names a bin twice")
        return cls({0: zeros, **pairs} if zeros else pairs)


class MergedQuantiles:
    """The counts by bin of several stored sketches: `_bins` rise, `_seen` says how many values lie there or below."""

    def __init__(self, raws: Iterable[bytes]) -> None:
        parts = [_parts(raw) for raw in raws]
        pairs = np.frombuffer(b"".join([body for _, body in parts]), "<i4").reshape(-1, 2)
        # The zeros of all sketches as one more bin.
        bins = np.append(pairs[:, 0], 0)
        counts = np.append(pairs[:, 1].view("<u4").astype(np.int64), sum(zeros for zeros, _ in parts))
        order = np.argsort(bins)
        self._bins = bins[order]
        self._seen = np.cumsum(counts[order])

    def quantile(self, q: float) -> float:
        """Return the value at rank ⌊q (n − 1)⌋ of the sorted values, within one per cent; NaN of nothing."""
        total = int(self._seen[-1])
        if not total:
            return float("nan")
        return _value_of(int(self._bins[np.searchsorted(self._seen, q * (total - 1), side="right")]))


def _parts(raw: bytes) -> tuple[int, bytes]:
    """Return the count of zeros of a stored sketch, and its bins with their counts. Raises `ValueError`."""
    if len(raw) >= _HEAD.size:
        zeros, bins = _HEAD.unpack_from(raw)
        if len(raw) == _HEAD.size + 8 * bins:
            return zeros, raw[_HEAD.size :]
    raise ValueError(f"no sketch of quantiles in {len(raw)} bytes")


def _collapse(counts: dict[int, int]) -> None:
    """Bound the bins of each sign: all below the largest `MAX_BINS` fall together into the smallest of those.

    Whatever was put there earlier has never been among the largest, so that the outcome hangs on the values and not on
    their order.
    """
    for sign in (1, -1):
        bins = sorted((sign * number for number in counts if sign * number > 0), reverse=True)
        for number in bins[MAX_BINS:]:
            counts[sign * bins[MAX_BINS - 1]] += counts.pop(sign * number)
