"""The names and bounds of the online role: pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Whose rings, and how much at once.

    `cache_bytes` bounds the shards in memory over all views; `join_records` is how near a view that is built beside the
    others must come to be folded with them.
    """

    project: str
    group: str
    cache_bytes: int
    batch_records: int
    join_records: int

    @property
    def near_records(self) -> int:
        """How near a built view comes before it is taken over: live events wait while so many are read again."""
        return min(self.join_records // 2, max(self.batch_records, self.join_records // 10))
