"""Remembers what was accepted lately, so that a producer's repeat is told so; a courtesy, bounded in memory.

Whoever folds events decides by identity itself: a restart forgets this window, and a second replica never saw it.
"""

Identity = tuple[str, str]


class Recent:
    """The newest (source, id) of one stream, with their event times; the oldest accepted leave first."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._times_us: dict[Identity, int] = {}

    def __len__(self) -> int:
        return len(self._times_us)

    def holds(self, identity: Identity, time_us: int, window_us: int) -> bool:
        """Return whether this identity was accepted with an event time within `window_us`."""
        seen_us = self._times_us.get(identity)
        return seen_us is not None and abs(time_us - seen_us) <= window_us

    def add(self, identity: Identity, time_us: int) -> None:
        """Remember an accepted event."""
        self._times_us.pop(identity, None)
        self._times_us[identity] = time_us
        if len(self._times_us) > self._capacity:
            del self._times_us[next(iter(self._times_us))]
