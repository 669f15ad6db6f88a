"""Where a partition begins after an assignment, and what must be built first: pure.

Three things are known of a partition: the checkpoint of the rings that are folded, the checkpoint of those that are
being built beside them, and what its log holds. Nothing is taken for granted: a checkpoint of another log (a topic
that was made anew) or beyond the log's end (a log that lost acknowledged records) counts for nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum

from tidemill_features.admission import Admission, rules_of
from tidemill_features.layout import EMPTY, NO_TOPIC_ID, Checkpoint
from tidemill_features.plan import ViewPlan

from tidemill_feature.online import PartitionState
from tidemill_feature.registered import RegisteredStream


class Fault(IntEnum):
    """What is wrong with the log that rings were folded from; the greater, the worse."""

    NONE = 0
    # Another topic of the same name has taken its place.
    MADE_ANEW = 1
    # It ends before what the rings include.
    LOST_END = 2


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a partition: checkpoints, the topic's id and partitions, the log's first and next offset.

    `built`: how far the views have come that are built beside the folded ones.
    """

    stored: Checkpoint | None
    built: Checkpoint | None
    topic_id: bytes
    partitions: int
    begin: int
    end: int

    @property
    def fault(self) -> Fault:
        """Whether the rings were folded from this log."""
        if self.stored is None:
            return Fault.NONE
        if self.topic_id not in (self.stored.topic_id, NO_TOPIC_ID):
            return Fault.MADE_ANEW
        return Fault.LOST_END if self.stored.next_offset > self.end else Fault.NONE


@dataclass(frozen=True, slots=True)
class Start:
    """How a partition begins: `offset` to read from; `live` what is folded and `missing` what is built, by build.

    `point`: a checkpoint to be written at once, for those who read: nothing may come to be folded for a long time.
    """

    state: PartitionState
    offset: int
    live: Mapping[bytes, ViewPlan]
    missing: Mapping[bytes, ViewPlan]
    point: Checkpoint | None


def start_partition(registered: RegisteredStream, found: Found, join_records: int) -> Start:
    """Return a partition's state and the offset to read from.

    Views that are at most `join_records` behind the others are read together with them.
    """
    if found.stored is None or found.fault:
        return _anew(registered, found)
    stored = found.stored
    live, missing = registered.folded(stored.views)
    behind = _behind(found, frozenset(missing), join_records)
    lower, held_until = stored, stored.next_offset
    if behind is not None:
        live, missing = {**live, **missing}, {}
        lower = min(stored, behind, key=lambda point: point.next_offset)
        held_until = max(held_until, behind.next_offset)
    offset = max(found.begin, min(lower.dedup_low_offset, lower.next_offset))
    # With nothing to be read again, what is folded from here on includes everything before.
    views = frozenset(live) if lower.next_offset == held_until else stored.views
    point = replace(stored, views=views, partitions=found.partitions)
    state = PartitionState(
        topic_id=found.topic_id,
        stored=stored,
        applied=lower.next_offset,
        next_offset=lower.next_offset,
        admission=Admission(rules_of(registered.stream), lower.newest_event_us),
        views=frozenset(live),
        partitions=found.partitions,
        read=offset,
        seen=stored.next_offset,
        held_until=held_until,
        ready_from=stored.ready_from,
    )
    return Start(state, offset, live, missing, None if point == stored else point)


def _anew(registered: RegisteredStream, found: Found) -> Start:
    """Begin with the log's first record, all views at once; where that is not the first ever, they are built beside."""
    begin = found.begin
    covered = frozenset() if begin else frozenset(registered.folded(frozenset())[1])
    point = Checkpoint(found.topic_id, begin, begin, EMPTY, covered, found.partitions, found.end)
    live, missing = registered.folded(covered)
    state = PartitionState(
        topic_id=found.topic_id,
        stored=found.stored,
        applied=begin,
        next_offset=begin,
        admission=Admission(rules_of(registered.stream), EMPTY),
        views=covered,
        partitions=found.partitions,
        read=begin,
        ready_from=found.end,
    )
    return Start(state, begin, live, missing, None if found.stored is None and not found.end else point)


def _behind(found: Found, missing: frozenset[bytes], join_records: int) -> Checkpoint | None:
    """Return from where the missing views can be folded together with the others, if they are near enough."""
    stored = found.stored
    if stored is None or not missing:
        return None
    built = resumable(found, missing) or Checkpoint(found.topic_id, 0, 0, EMPTY, missing)
    if built.next_offset < found.begin:
        # What lies between is in the offline log alone.
        return None
    return built if stored.next_offset - built.next_offset <= join_records else None


def resumable(found: Found, missing: frozenset[bytes]) -> Checkpoint | None:
    """Return where the missing views were left, if they were built from this log, all of them, to the same record."""
    built = found.built
    if built is None or built.topic_id != found.topic_id or built.next_offset > found.end:
        return None
    return built if missing <= built.views else None
