"""Updates that must happen one after the other within a slot, vectorised across slots.

Events lie in segments, one per slot and in offset order within. The k-th events of all segments are taken in one
round; when few segments are left, each is run through on its own. The live fold takes the last state of a segment, the
offline twin every state, out of the same code: so their bits are equal.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

# With fewer long segments than this left, each is run on its own.
_FEW = 8


class Step(Protocol):
    """One event into a state, for many slots at once or for many events of one slot; both with the same arithmetic."""

    def many(self, state: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        """Return the states after one event each; first axis: slots."""

    def run(self, state: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        """Return the states after each of one slot's events; first axis: events."""


def states(start: Ints, end: Ints, initial: Sequence[Any], values: Sequence[Any], step: Step) -> list[Any]:
    """Return the state after every event, as one array per part of the state.

    `start`, `end`: of each segment, which follow one another; `initial`: the parts of each segment's state before its
    first event; `values`: the parts of each event.
    """
    events = len(values[0])
    out = [np.empty((events, *part.shape[1:]), part.dtype) for part in initial]
    lengths = end - start
    by_length = np.argsort(-lengths, kind="stable")
    starts, ends, falling = start[by_length], end[by_length], -lengths[by_length]
    state: Sequence[Any] = [part[by_length] for part in initial]
    rank = 0
    while True:
        active = int(np.searchsorted(falling, -rank))
        if active <= _FEW:
            break
        at = starts[:active] + rank
        state = step.many([part[:active] for part in state], [part[at] for part in values])
        for held, part in zip(out, state, strict=True):
            held[at] = part
        rank += 1
    for number in range(active):
        span = slice(int(starts[number]) + rank, int(ends[number]))
        found = step.run([part[number] for part in state], [part[span] for part in values])
        for held, part in zip(out, found, strict=True):
            held[span] = part
    return out


def runs_of(at: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the order that sorts events by slot, keeping theirs within it, and each slot's start and end."""
    order = np.argsort(at, kind="stable")
    sorted_at = at[order]
    start = np.flatnonzero(np.concatenate(([True], sorted_at[1:] != sorted_at[:-1])))
    return order, start, np.append(start[1:], len(at))
