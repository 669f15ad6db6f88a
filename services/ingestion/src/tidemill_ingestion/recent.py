"""Remembers what was accepted lately, so that a producer's repeat is told so; a courtesy, bounded in memory.

Whoever folds events decides by identity itself: a restart forgets this window, and a second replica never saw it.
"""

from collections import OrderedDict

Identity = tuple[str, str]


class Recent:
    """The newest (source, id) of one stream, with their event times; the oldest accepted leave first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # A plain dict would walk over what it has forgotten to find its oldest entry.
        self._times_us: OrderedDict[Identity, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times_us)

    def holds(self, identity: Identity, time_us: int, window_us: int) -> bool:
        """Return whether this identity was accepted with an event time within `window_us`."""
        seen_us = self._times_us.get(identity)
        return seen_us is not None and abs(time_us - seen_us) <= window_us

    def add(self, identity: Identity, time_us: int) -> None:
        """Remember an accepted event."""
        self._times_us[identity] = time_us
        self._times_us.move_to_end(identity)
        if len(self._times_us) > self._capacity:
            self._times_us.popitem(last=False)
