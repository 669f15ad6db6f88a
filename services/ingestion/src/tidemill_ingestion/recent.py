"""Remembers what was accepted lately, so that a producer's repeat is told so; a courtesy, bounded in memory.

Whoever folds events decides by identity itself: a restart forgets this window, and a second replica never saw it.
"""

from collections import OrderedDict

Identity = tuple[str, str]


class Recent:
    """The newest (source, id) of one stream, with their event times; the oldest accepted leave first.

    An identity leaves when it is older than the window behind the newest event time, or when there is no room for it;
    `forgotten` counts the latter, whose repeats would be taken for new here.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # A plain dict would walk over what it has forgotten to find its oldest entry.
        self._times_us: OrderedDict[Identity, int] = OrderedDict()
        self._newest_us: int | None = None
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._times_us)

    def holds(self, identity: Identity, time_us: int, window_us: int) -> bool:
        """Return whether this identity was accepted with an event time within `window_us`."""
        seen_us = self._times_us.get(identity)
        return seen_us is not None and abs(time_us - seen_us) <= window_us

    def add(self, identity: Identity, time_us: int, window_us: int) -> None:
        """Remember an accepted event."""
        times_us = self._times_us
        times_us[identity] = time_us
        times_us.move_to_end(identity)
        if self._newest_us is None or time_us > self._newest_us:
            self._newest_us = time_us
            self._expire(time_us - window_us)
        if len(times_us) > self._capacity:
            times_us.popitem(last=False)
            self.forgotten += 1

    def _expire(self, horizon_us: int) -> None:
        """Drop from the oldest accepted on; one with a newer event time holds those behind it, within the capacity."""
        times_us = self._times_us
        while times_us and next(iter(times_us.values())) < horizon_us:
            times_us.popitem(last=False)
