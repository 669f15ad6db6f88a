"""How far a stream's records are applied, how far that is durable, and when it must be made so."""

from collections.abc import Iterable
from time import monotonic

from tidemill_runtime.batches import StreamOptions
from tidemill_runtime.positions import Offsets, Partition, Positions


class Flushing:
    """What a flush would make durable, and whether it is time for one."""

    def __init__(self, topics: Iterable[str], options: StreamOptions) -> None:
        self.applied = Positions(topics)
        self.durable = Positions(topics)
        self._options = options
        self._flushed_s = monotonic()
        # Whether there was more to read when the last batch was handed over.
        self.behind = False

    def follow(self, topics: Iterable[str]) -> None:
        """Replace the topics that count."""
        for positions in (self.applied, self.durable):
            positions.follow(topics)

    def reset(self, offsets: Offsets) -> None:
        """Begin anew at what is durable, after an assignment."""
        for positions in (self.applied, self.durable):
            positions.reset(offsets)

    def is_due(self) -> bool:
        """Say whether the interval is over; of a stream that is behind, a longer one."""
        wait_ms = max(self._options.flush_every_ms, self._options.behind_flush_ms if self.behind else 0)
        return (monotonic() - self._flushed_s) * 1000 >= wait_ms

    def flushed(self) -> dict[Partition, int]:
        """Take note that what is applied is durable; return the positions that moved."""
        self._flushed_s = monotonic()
        durable = self.durable.next
        moved = {place: offset for place, offset in self.applied.next.items() if durable.get(place) != offset}
        self.durable.advance(moved)
        return moved
