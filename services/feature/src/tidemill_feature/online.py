"""What the online role does with a batch: pure. Decode, judge, and say which events go into which rings.

Per partition the worker knows from the checkpoint how far the rings have come (`applied`); records before that are only
read to remember their identities again. Views that the checkpoint does not cover are built beside (`building`), from
the log's beginning. Once they have almost caught up the partition is read again from where they are: rings that are
ahead skip what they include, and the checkpoint moves on when it is passed.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from typing import Any

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason
from tidemill_features.admission import Admission
from tidemill_features.columns import concatenate
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import Checkpoint
from tidemill_runtime.batches import Batch, Record, Refused, Step
from tidemill_runtime.errors import Poison
from tidemill_runtime.positions import Partition

from tidemill_feature.decode import Decoded, StreamDecoder

_OFFSET = attrgetter("offset")


@dataclass(slots=True)
class StreamCounts:
    """What became of a stream's records since the assignment; `left_out`: those of the late that were not folded."""

    events: int = 0
    duplicates: int = 0
    late: int = 0
    left_out: int = 0
    refused: int = 0


@dataclass(slots=True)
class PartitionState:
    """One partition: `stored` is what Redis holds; `applied` where effects begin; `next_offset` what was taken in.

    `views`: the builds that are folded. `read`: what was read, which is less while identities are remembered again.
    `seen`: what was judged before, so that poison is not refused again. `held_until`: the checkpoint stays where it is
    until rings that were behind are there too.
    """

    topic_id: bytes
    stored: Checkpoint | None
    applied: int
    next_offset: int
    admission: Admission
    views: frozenset[bytes]
    partitions: int = 0
    read: int = 0
    seen: int = 0
    held_until: int = 0
    ready_from: int = 0

    def checkpoint(self) -> Checkpoint | None:
        """Return what the next flush writes; None while some rings are behind others."""
        if self.next_offset < self.held_until:
            return None
        # While identities are remembered again, the rest of them is still to be read.
        low = self.admission.low_offset(min(self.next_offset, self.read))
        newest_us = self.admission.newest_us
        return Checkpoint(self.topic_id, self.next_offset, low, newest_us, self.views, self.partitions, self.ready_from)


@dataclass(slots=True)
class StreamState:
    """One stream: its decoder, its views' shards in memory by build, and counts."""

    stream: definition.Stream
    decoder: StreamDecoder
    shards: dict[bytes, ViewShards]
    # The fields that the views read.
    columns: tuple[str, ...]
    counts: StreamCounts = field(default_factory=StreamCounts)


@dataclass(slots=True)
class OnlineState:
    """Everything the worker holds for its assignment; `step` changes it in place."""

    # Which definitions it was built from; another number means that it must be built anew.
    revision: int
    streams: dict[str, StreamState]
    partitions: dict[Partition, PartitionState]
    # What was taken in since the last flush.
    unwritten: set[Partition] = field(default_factory=set)

    def dirty(self) -> Iterator[tuple[bytes, bytes]]:
        """Return the shards to be written, by key; they then include everything that was taken in."""
        ends: dict[str, dict[int, int]] = {partition.topic: {} for partition in sorted(self.unwritten)}
        for partition, place in self.partitions.items():
            if partition.topic in ends:
                ends[partition.topic][partition.number] = place.next_offset
        return chain.from_iterable(
            view.dirty(until)
            for topic, until in ends.items()
            for view in self.streams[topic.removeprefix("events.")].shards.values()
        )

    def written(self) -> int:
        """Take note that what `dirty` returned is stored; return how many shards that were."""
        count = 0
        for partition in self.unwritten:
            for view in self.streams[partition.topic.removeprefix("events.")].shards.values():
                count += view.written()
        self.unwritten.clear()
        return count

    def has_room(self, records: int) -> bool:
        """Return whether so many records more can be folded before something must be written."""
        return all(view.has_room(records) for stream in self.streams.values() for view in stream.shards.values())


@dataclass(slots=True)
class Folding:
    """Events of partitions of one topic that are to be folded into the same views."""

    topic: str
    shards: Sequence[ViewShards]
    events: Events


@dataclass(slots=True)
class Work:
    """The effects of one batch; `folded` keeps a repeated attempt from folding twice.

    `backwards`: a partition whose offsets fell, so that nothing of the batch was looked at.
    """

    state: OnlineState
    foldings: list[Folding]
    partitions: list[Partition]
    folded: bool = False
    backwards: Partition | None = None


def step(state: OnlineState, batch: Batch) -> Step[OnlineState, Work]:
    """Take in a batch; the effects are events to fold, the refused are poison."""
    for partition, records in batch.partitions.items():
        if records[0].offset < state.partitions[partition].read:
            return Step(state, Work(state, [], [], backwards=partition))
    refused: list[Refused] = []
    by_views: dict[tuple[str, frozenset[bytes]], list[tuple[Partition, Decoded, Any]]] = {}
    for partition, records in batch.partitions.items():
        stream = partition.topic.removeprefix("events.")
        place, source = state.partitions[partition], state.streams[stream]
        first_new = bisect_left(records, place.applied, key=_OFFSET)
        if old := records[:first_new]:
            known = source.decoder.decode(old)
            place.admission.remember(known.offset, known.event_us, known.identities)
        if fresh := records[first_new:]:
            decoded, counts = _admitted(source, place, fresh, refused)
            by_views.setdefault((stream, place.views), []).append((partition, decoded, counts))
    # Also where nothing of what was read is for this group: its dead letters, what is sent again for others.
    for partition, offset in batch.next_offsets.items():
        place = state.partitions[partition]
        place.next_offset, place.read = max(place.next_offset, offset), offset
    foldings = [_folding(state.streams[stream], views, parts) for (stream, views), parts in by_views.items() if views]
    work = Work(state, [folding for folding in foldings if len(folding.events)], list(batch.next_offsets))
    return Step(state, work, refused)


def _admitted(
    source: StreamState, place: PartitionState, records: Sequence[Record], refused: list[Refused]
) -> tuple[Decoded, Any]:
    """Return the events of new records and which of them count."""
    decoded = source.decoder.decode(records)
    verdict = place.admission.admit(decoded.offset, decoded.event_us, decoded.identities)
    late = verdict.late & ~verdict.duplicate
    poison = decoded.refused
    if source.stream.late_policy == definition.LATE_POLICY_DEAD_LETTER and late.any():
        by_offset = {record.offset: record for record in records}
        poison = poison + [_too_late(by_offset[offset]) for offset in decoded.offset[late].tolist()]
    # What is read again was dead-lettered when it was read first.
    poison = [one for one in poison if one.record.offset >= place.seen]
    refused.extend(poison)
    counts = source.counts
    counts.events += len(decoded.values)
    counts.duplicates += int(verdict.duplicate.sum())
    counts.late += int(late.sum())
    counts.refused += len(poison)
    keep = ~verdict.duplicate
    if not place.admission.rules.late_counts:
        keep &= ~late
        counts.left_out += int(late.sum())
    return decoded, keep


def _too_late(record: Record) -> Refused:
    return Refused(record, Poison(Reason.TOO_LATE, "the event lies further behind than the stream's lateness allows"))


def _folding(source: StreamState, views: frozenset[bytes], parts: Sequence[tuple[Partition, Decoded, Any]]) -> Folding:
    """Put the counting events of some partitions of a stream together."""
    columns: dict[str, list[Column]] = {name: [] for name in source.columns}
    partitions, offsets, times = [], [], []
    for partition, decoded, keep in parts:
        values = decoded.values
        if not keep.all():
            values = [value for value, kept in zip(values, keep.tolist(), strict=True) if kept]
        offsets.append(decoded.offset[keep])
        times.append(decoded.event_us[keep])
        partitions.append(np.full(len(values), partition.number, np.int64))
        for name, column in source.decoder.columns(values, source.columns).items():
            columns[name].append(column)
    joined: Mapping[str, Column] = {name: concatenate(found) for name, found in columns.items()}
    events = Events(np.concatenate(partitions), np.concatenate(offsets), np.concatenate(times), joined)
    return Folding(parts[0][0].topic, [source.shards[view] for view in sorted(views)], events)
