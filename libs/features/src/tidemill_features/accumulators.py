"""The offline twin's merge: for many rows at once, one slot after the other, in the order of a read.

Each accumulator holds what a partial has come to over the slots merged so far, one entry per row.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tidemill_features import moments
from tidemill_features.decay import weights
from tidemill_features.inputs import Values
from tidemill_features.partials import Dtype, Kind, Partial
from tidemill_features.segments import Segments, identity_of, ufunc_of
from tidemill_features.sketches import add_values, blank, merge

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Slot:
    """One slot for each of `rows`, which are distinct: its state is the one at `place` of what runs.

    `age_us`: how old the end of its bucket is at the row's `as_of`; `running`: by partial its states, None of a sketch,
    which is built from the events up to `place` when it is asked for.
    """

    rows: Ints
    place: Ints
    age_us: Ints
    running: Mapping[int, Any]


class Accumulator(Protocol):
    """What a partial has come to, by row."""

    def add(self, slot: Slot) -> None:
        """Merge one slot into each of its rows."""

    def result(self) -> Any:
        """Return what the rows have come to."""


class Simple:
    """A number that merges by one operation."""

    def __init__(self, partial: Partial, index: int, rows: int) -> None:
        self._merged: Any = ufunc_of(partial.kind, partial.dtype)
        self.index = index
        floating = partial.dtype is Dtype.FLOAT and partial.kind not in (Kind.LAST, Kind.FIRST)
        dtype = np.float64 if floating else np.int64
        self.held = np.full(rows, identity_of(partial.kind, partial.dtype), dtype)

    def add(self, slot: Slot) -> None:
        """Merge one slot into each of its rows."""
        self.held[slot.rows] = self._merged(self.held[slot.rows], slot.running[self.index][slot.place])

    def result(self) -> Any:
        """Return the numbers."""
        return self.held


class Decayed:
    """A sum whose slots are weighted by their age."""

    def __init__(self, partial: Partial, index: int, rows: int) -> None:
        self._half_life_us = partial.half_life_us
        self._index = index
        self._held = np.zeros(rows)

    def add(self, slot: Slot) -> None:
        """Merge one slot into each of its rows."""
        value = slot.running[self._index][slot.place]
        self._held[slot.rows] += value * weights(slot.age_us, self._half_life_us) + 0.0

    def result(self) -> Any:
        """Return the sums."""
        return self._held


class MomentsHeld:
    """Mean and moments; their count is merged after them."""

    def __init__(self, partial: Partial, index: int, count: Simple, rows: int) -> None:
        self._index = index
        self._count = count
        self._held = [np.zeros(rows) for _ in range(partial.size)]

    def add(self, slot: Slot) -> None:
        """Merge one slot into each of its rows."""
        before = self._count.held[slot.rows].astype(np.float64)
        more = slot.running[self._count.index][slot.place].astype(np.float64)
        first = (before, *(part[slot.rows] for part in self._held))
        second = (more, *(part[slot.place] for part in slot.running[self._index]))
        for held, part in zip(self._held, moments.merged(first, second)[1:], strict=True):
            held[slot.rows] = part

    def result(self) -> Any:
        """Return the states, counts first."""
        return (self._count.held.astype(np.float64), *self._held)


class NewestK:
    """The ranks of the newest k events, falling; −1 where there are fewer."""

    def __init__(self, partial: Partial, index: int, rows: int) -> None:
        self._index = index
        self._held = np.full((rows, partial.size), -1)

    def add(self, slot: Slot) -> None:
        """Merge one slot into each of its rows."""
        both = np.concatenate((self._held[slot.rows], slot.running[self._index][slot.place]), axis=1)
        self._held[slot.rows] = np.sort(both, axis=1)[:, ::-1][:, : self._held.shape[1]]

    def result(self) -> Any:
        """Return the ranks."""
        return self._held


class SketchesHeld:
    """Sketches, built only where a row asks for one: every slot is walked once, as far as the furthest row sees."""

    def __init__(self, partial: Partial, index: int, part: Values, segments: Segments, rows: int) -> None:
        self._partial = partial
        self._index = index
        self._part = part
        self._segments = segments
        self._rows = rows
        # Rows, and of each the place of a slot's state, or as -1 - number one of those that came built.
        self._asked: list[tuple[Ints, Ints]] = []
        self._built_before: list[bytes] = []

    def add(self, slot: Slot) -> None:
        """Take note of what each row asks for."""
        place, built = slot.place, slot.running[self._index]
        if built is not None:
            place = -1 - len(self._built_before) - np.arange(len(slot.rows))
            self._built_before += [built[at] for at in slot.place.tolist()]
        self._asked.append((slot.rows, place))

    def result(self) -> Any:
        """Return what each row's sketches say together."""
        nothing = merge(self._partial, [])
        found = np.empty(self._rows, object)
        for number in range(self._rows):
            found[number] = nothing
        if not any(len(rows) for rows, _ in self._asked):
            return found
        row, place = (np.concatenate(part) for part in zip(*self._asked, strict=True))
        sketches = dict(zip(range(-1, -1 - len(self._built_before), -1), self._built_before, strict=True))
        sketches |= self._built(np.unique(place[place >= 0]))
        # Stable, so that a row's slots stay in their order.
        order = np.argsort(row, kind="stable")
        row, place = row[order], place[order]
        start = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1])))
        for first, end in zip(start.tolist(), [*start[1:].tolist(), len(row)], strict=True):
            found[row[first]] = merge(self._partial, [sketches[at] for at in place[first:end].tolist()])
        return found

    def _built(self, places: Ints) -> dict[int, bytes]:
        """Return the sketch after each of the places, which rise."""
        partial, order = self._partial, self._segments.order
        values = add_values(partial, self._part.values)
        segment = np.searchsorted(self._segments.start, places, side="right") - 1
        found: dict[int, bytes] = {}
        current, at = -1, 0
        sketch = blank(partial)
        for number, place in zip(segment.tolist(), places.tolist(), strict=True):
            if number != current:
                current, at, sketch = number, int(self._segments.start[number]), blank(partial)
            sketch.add(_taken(values, self._part, order[at : place + 1]))
            at = place + 1
            found[place] = sketch.pack()
        return found


def sketch_of(partial: Partial, part: Values, events: Ints) -> bytes:
    """Return the sketch of some events, which are in offset order."""
    sketch = blank(partial)
    sketch.add(_taken(add_values(partial, part.values), part, events))
    return sketch.pack()


def _taken(values: Any, part: Values, events: Ints) -> list[Any]:
    if part.present is not None:
        events = events[part.present[events]]
    found: list[Any] = values[events].tolist()
    return found
