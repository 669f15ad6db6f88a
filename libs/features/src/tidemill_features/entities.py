"""Numbers for entities: equal for equal keys, found again for a column of keys without work per row in Python."""

from collections.abc import Sequence
from itertools import count, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_features.expressions import Column

Ints = NDArray[np.int64]

UNKNOWN = -1


class Entities:
    """The distinct keys of some events, a column per field; `codes`: int64[events], UNKNOWN where a part is null."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._parts = [_index(column) for column in columns]
        # Keys of several fields: the distinct numbers after each further field, ascending.
        self._levels: list[Ints] = []
        numbers = self._part(0, columns[0])
        for place in range(1, len(columns)):
            pairs = self._paired(numbers, place, columns[place])
            self._levels.append(np.unique(pairs[pairs >= 0]))
            numbers = _places(self._levels[-1], pairs)
        self.codes = numbers

    def find(self, columns: Sequence[Column]) -> Ints:
        """Return the numbers of other keys; UNKNOWN for one that no event has, or with a null part."""
        numbers = self._part(0, columns[0])
        for place in range(1, len(columns)):
            numbers = _places(self._levels[place - 1], self._paired(numbers, place, columns[place]))
        return numbers

    def _part(self, place: int, column: Column) -> Ints:
        """Return the number of each value of one field."""
        index = self._parts[place]
        if isinstance(index, dict):
            # The loop runs inside `fromiter` and `map`, a tenth of what a comprehension takes.
            found = np.fromiter(map(index.get, column.values.tolist(), repeat(UNKNOWN)), np.int64, len(column.values))
        else:
            found = _places(index, column.values)
        found[column.nulls] = UNKNOWN
        return found

    def _paired(self, numbers: Ints, place: int, column: Column) -> Ints:
        """Return one number for (number so far, value of the next field), UNKNOWN where either is."""
        part = self._part(place, column)
        # Both factors are counts of distinct values, at most the number of events: their product fits.
        pairs = numbers * max(1, len(self._parts[place])) + part
        pairs[(numbers < 0) | (part < 0)] = UNKNOWN
        return pairs


def _index(column: Column) -> Any:
    """Return what finds a value's number: a dictionary for strings, else the distinct values, ascending."""
    values = column.values[~column.nulls]
    if values.dtype == np.object_:
        return dict(zip(dict.fromkeys(values.tolist()), count(), strict=False))
    return np.unique(values)


def _places(known: Any, values: Any) -> Ints:
    """Return the place of each value among the known ones, UNKNOWN for others."""
    if not len(known):
        return np.full(len(values), UNKNOWN, np.int64)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[places] == values, places, UNKNOWN)
