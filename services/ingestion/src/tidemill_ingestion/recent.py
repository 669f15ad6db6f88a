"""Remembers what was accepted lately, so that a producer's repeat is told so; a courtesy, bounded in memory.

Whoever folds events decides by identity itself: a restart forgets this window, and a second replica never saw it.
"""

from collections import OrderedDict

Identity = tuple[str, str]

# The place of what was accepted before the request.
BEFORE = -1
_NEVER_US = -(2**63)


class Recent:
    """The newest (source, id) of one stream, with their event times; the oldest accepted leave first.

    An identity leaves once the newest event time has moved on by more than the window since it was accepted, or when
    there is no room for it; `forgotten` counts the latter, whose repeats would be taken for new here.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        # Of each its event time, and the newest event time then, which never falls from one to the next. A plain dict
        # would walk over what it has forgotten to find its oldest entry.
        self._accepted: OrderedDict[Identity, tuple[int, int]] = OrderedDict()
        self.newest_us = _NEVER_US
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._accepted)

    def holds(self, identity: Identity, time_us: int, window_us: int, newest_us: int | None = None) -> bool:
        """Return whether this identity was accepted with an event time within `window_us`, and is not to be forgotten.

        `newest_us` is the newest event time by now, where that is ahead of what was accepted.
        """
        found = self._accepted.get(identity)
        if found is None:
            return False
        seen_us, then_us = found
        now_us = self.newest_us if newest_us is None else newest_us
        return abs(time_us - seen_us) <= window_us and now_us - then_us <= window_us

    def add(self, identity: Identity, time_us: int, window_us: int) -> None:
        """Remember an accepted event."""
        accepted = self._accepted
        if time_us > self.newest_us:
            self.newest_us = time_us
            self._expire(time_us - window_us)
        accepted[identity] = (time_us, self.newest_us)
        accepted.move_to_end(identity)
        if len(accepted) > self._capacity:
            accepted.popitem(last=False)
            self.forgotten += 1

    def forget(self) -> None:
        """Forget everything: what was accepted went to a log that is gone."""
        self._accepted.clear()
        self.newest_us = _NEVER_US

    def _expire(self, horizon_us: int) -> None:
        accepted = self._accepted
        while accepted and next(iter(accepted.values()))[1] < horizon_us:
            accepted.popitem(last=False)


class Request:
    """The identities of one request's events of a stream, on top of those accepted before it.

    Each event is judged as if those before it were accepted already, so that it makes no difference to the verdicts
    how events are split into requests.
    """

    def __init__(self, recent: Recent, window_us: int) -> None:
        self._recent = recent
        self._window_us = window_us
        self._newest_us = recent.newest_us
        # Of each its place in the request, its event time, and the newest event time then.
        self._taken: dict[Identity, tuple[int, int, int]] = {}
        # Of the event that is judged now, among the request's events of the stream.
        self.place = 0

    def take(self, identity: Identity, time_us: int) -> int | None:
        """Take the event at `place` for accepted, and return None, where it repeats no other.

        Else return the place of the one it repeats, `BEFORE` where that was accepted before the request.
        """
        taken, window_us = self._taken.get(identity), self._window_us
        if taken is None:
            if self._recent.holds(identity, time_us, window_us, self._newest_us):
                return BEFORE
        elif abs(time_us - taken[1]) <= window_us and self._newest_us - taken[2] <= window_us:
            return taken[0]
        if time_us > self._newest_us:
            self._newest_us = time_us
        self._taken[identity] = (self.place, time_us, self._newest_us)
        return None
