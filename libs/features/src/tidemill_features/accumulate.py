"""How a batch of events goes into the partials of their slots, one function per kind."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.area import Area
from tidemill_features.decay import decays
from tidemill_features.layout import EMPTY
from tidemill_features.moments import Moments
from tidemill_features.newest import Newest
from tidemill_features.partials import Dtype, Kind, Partial
from tidemill_features.sequential import runs_of, states
from tidemill_features.sketches import add_values
from tidemill_features.whole_sums import WHOLE_SUM

Ints = NDArray[np.int64]


class Memory(NamedTuple):
    """The words of all shards, the same as floats, and what they point to."""

    words: Ints
    floats: NDArray[np.float64]
    area: Area

    def typed(self, dtype: Dtype) -> Any:
        """Return the words as numbers of a type."""
        return self.floats if dtype is Dtype.FLOAT else self.words


class Batch(NamedTuple):
    """Values that count, in offset order within each slot.

    `at`: the partial's first word; `values`: None where only events count; `beside`: the word of the count beside.
    """

    at: Ints
    event_us: Ints
    offsets: Ints
    values: Any
    beside: Ints | None
    hop_us: int


def _count(memory: Memory, _: Partial, batch: Batch) -> None:
    np.add.at(memory.words, batch.at, 1)


def _sum(memory: Memory, partial: Partial, batch: Batch) -> None:
    if partial.dtype is Dtype.INT:
        WHOLE_SUM.at(memory.words, batch.at, batch.values)
    else:
        np.add.at(memory.floats, batch.at, batch.values)


def _min(memory: Memory, partial: Partial, batch: Batch) -> None:
    np.minimum.at(memory.typed(partial.dtype), batch.at, batch.values)


def _max(memory: Memory, partial: Partial, batch: Batch) -> None:
    np.maximum.at(memory.typed(partial.dtype), batch.at, batch.values)


def _newest(memory: Memory, _: Partial, batch: Batch) -> None:
    np.maximum.at(memory.words, batch.at, batch.event_us)


def _last(memory: Memory, partial: Partial, batch: Batch) -> None:
    """Keep, per slot, the value of the newest event; of equal times that with the highest offset."""
    words, at = memory.words, batch.at
    np.maximum.at(words, at, batch.event_us)
    newest = np.flatnonzero(batch.event_us == words[at])
    at = at[newest]
    # Offsets rise within a shard, so the last write of a slot is the one that stays.
    words[at + 1] = batch.offsets[newest]
    _put(memory, partial, at + 2, batch.values[newest])


def _first(memory: Memory, partial: Partial, batch: Batch) -> None:
    """Keep, per slot, the value of the oldest event; of equal times that with the lowest offset."""
    words, at = memory.words, batch.at
    before = words[at]
    np.minimum.at(words, at, batch.event_us)
    # Backwards, so that the first write of a slot is the one that stays; what was there before goes before it.
    oldest = np.flatnonzero((batch.event_us == words[at]) & (batch.event_us < before))[::-1]
    _put(memory, partial, at[oldest] + 1, batch.values[oldest])


def _put(memory: Memory, partial: Partial, at: Ints, values: Any) -> None:
    if partial.dtype is Dtype.STRING:
        for place, value in zip(at.tolist(), values, strict=True):
            memory.area.put(place, value.encode("utf-8", "surrogatepass"))
    else:
        memory.typed(partial.dtype)[at] = values


def _moments(memory: Memory, partial: Partial, batch: Batch) -> None:
    assert batch.beside is not None
    order, start, end = runs_of(batch.at)
    first = batch.at[order][start]
    counts = memory.words[batch.beside[order][start]].astype(np.float64)
    initial = [counts, *(memory.floats[first + word] for word in range(partial.size))]
    values = np.asarray(batch.values, np.float64)[order]
    found = states(start, end, initial, [values], Moments())
    for word in range(partial.size):
        memory.floats[first + word] = found[word + 1][end - 1]


def _decayed(memory: Memory, partial: Partial, batch: Batch) -> None:
    weight = decays(batch.event_us, batch.hop_us, partial.half_life_us)
    # A product may be a negative zero, whose place in a sum would show.
    np.add.at(memory.floats, batch.at, batch.values * weight + 0.0)


def _decayed_count(memory: Memory, partial: Partial, batch: Batch) -> None:
    np.add.at(memory.floats, batch.at, decays(batch.event_us, batch.hop_us, partial.half_life_us))


def _last_k(memory: Memory, partial: Partial, batch: Batch) -> None:
    """Keep, per slot, the newest k; payloads name an event, or as −1 − place what was at that place before."""
    size = partial.size
    order, start, end = runs_of(batch.at)
    times = batch.at[order][start][:, None] + 2 * np.arange(size)
    old = np.broadcast_to(-1 - np.arange(size), times.shape)
    keys, payloads = (
        part[end - 1]
        for part in states(start, end, [memory.words[times], old], [batch.event_us[order], order], Newest(size))
    )
    memory.words[times] = keys
    places = times + 1
    is_new = payloads >= 0
    kept = np.take_along_axis(places, np.where(is_new, 0, -1 - payloads), axis=1)
    if partial.dtype is Dtype.STRING:
        _put_strings(memory.area, batch.values, (places, payloads, kept, keys))
        return
    typed = memory.typed(partial.dtype)
    moved = typed[kept]
    moved[is_new] = batch.values[payloads[is_new]]
    typed[places] = moved


def _put_strings(area: Area, values: Any, moves: tuple[Ints, Ints, Ints, Ints]) -> None:
    """Write the strings of last-k; all are read before any is written."""
    found: list[tuple[int, bytes | None]] = []
    for place, payload, kept, key in zip(*(part.ravel().tolist() for part in moves), strict=True):
        if payload >= 0:
            found.append((place, values[payload].encode("utf-8", "surrogatepass")))
        else:
            found.append((place, area.get(kept) if key != EMPTY else None))
    for place, raw in found:
        if raw is not None:
            area.put(place, raw)


def _sketch(memory: Memory, partial: Partial, batch: Batch) -> None:
    order, start, end = runs_of(batch.at)
    values = add_values(partial, batch.values)[order].tolist()
    places = batch.at[order][start].tolist()
    for place, first, last in zip(places, start.tolist(), end.tolist(), strict=True):
        memory.area.sketch(place, partial).add(values[first:last])


ACCUMULATE: dict[Kind, Callable[[Memory, Partial, Batch], None]] = {
    Kind.COUNT: _count,
    Kind.SUM: _sum,
    Kind.MIN: _min,
    Kind.MAX: _max,
    Kind.LAST: _last,
    Kind.FIRST: _first,
    Kind.NEWEST: _newest,
    Kind.MOMENTS: _moments,
    Kind.DECAYED: _decayed,
    Kind.DECAYED_COUNT: _decayed_count,
    Kind.LAST_K: _last_k,
    Kind.DISTINCT: _sketch,
    Kind.QUANTILES: _sketch,
    Kind.HEAVY: _sketch,
}
