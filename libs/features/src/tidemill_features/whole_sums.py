"""Sums of integers that say where they leave the range of int64; NumPy's begin again at the other end.

A sum that has left stays BEYOND, one after the other in the order of its values, as a sum of floats stays infinite.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features.layout import INT64_MIN

Ints = NDArray[np.int64]

# A sum of exactly this is taken for one beyond, too, and so is one that this is added to.
BEYOND = INT64_MIN
# Sums of magnitudes below it leave nothing, whatever is lost of them as floats.
_SAFE = 2.0**62


class WholeSum:
    """Adds as `np.add` does, by the parts of a ufunc that are used here."""

    def __call__(self, left: Ints, right: Ints) -> Ints:
        """Return the sums of int64[n] and int64[n]."""
        total = left + right
        beyond = ((left ^ total) & (right ^ total)) < 0
        beyond |= (left == BEYOND) | (right == BEYOND)
        return np.where(beyond, BEYOND, total)

    def accumulate(self, values: Ints, axis: int = 0) -> Ints:
        """Return the running sums along an axis."""
        if _are_small(values):
            return np.asarray(np.add.accumulate(values, axis=axis), np.int64)
        found = np.moveaxis(values.copy(), axis, 0)
        # Never a scalar, of which NumPy says aloud that it wraps around.
        rows = found.reshape(len(found), -1) if found.ndim == 1 else found
        for place in range(1, len(rows)):
            rows[place] = self(rows[place - 1], rows[place])
        return np.moveaxis(found, 0, axis)

    def at(self, words: Ints, places: Ints, values: Any) -> None:
        """Add each value to the word at its place, in this order."""
        if _are_small(words[places], values):
            np.add.at(words, places, values)
            return
        for place, value in zip(places.tolist(), values.tolist(), strict=True):
            held = int(words[place])
            total = held + value
            words[place] = BEYOND if BEYOND in (held, value) or not BEYOND < total < -BEYOND else total


WHOLE_SUM = WholeSum()


def _are_small(*parts: Any) -> bool:
    return sum(float(np.abs(part, dtype=np.float64).sum()) for part in parts) < _SAFE
