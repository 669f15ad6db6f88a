"""What the online role does with a batch: pure. Decode, judge, and say which events go into which rings.

Per partition the worker knows from the checkpoint how far the rings have come (`applied`); records before that are only
read to remember their identities again. Where the checkpoint does not cover a view yet, the partition is read from the
log's beginning: rings that are ahead skip what they include, the new ones are built, and the checkpoint moves on when
it is passed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_contracts.reasons import Reason
from tidemill_features.admission import Admission, rules_of
from tidemill_features.columns import concatenate
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import EMPTY, NO_TOPIC_ID, Checkpoint, view_id
from tidemill_runtime.batches import Assignment, Batch, Record, Refused, Step
from tidemill_runtime.errors import Fatal, Poison
from tidemill_runtime.positions import Partition

from tidemill_feature.decode import Decoded, StreamDecoder
from tidemill_feature.registered import RegisteredStream


@dataclass(slots=True)
class StreamCounts:
    """What became of a stream's records since the assignment."""

    events: int = 0
    duplicates: int = 0
    late: int = 0
    refused: int = 0


@dataclass(slots=True)
class PartitionState:
    """One partition: `stored` is what Redis holds; `applied` where effects begin; `next_offset` what was taken in."""

    topic_id: bytes
    stored: Checkpoint | None
    applied: int
    next_offset: int
    admission: Admission
    views: frozenset[bytes]

    def checkpoint(self) -> Checkpoint | None:
        """Return what the next flush writes; None while a new view's rings are behind those that exist."""
        if self.stored is not None and self.next_offset < self.stored.next_offset:
            return None
        low = self.admission.low_offset(self.next_offset)
        return Checkpoint(self.topic_id, self.next_offset, low, self.admission.newest_us, self.views)


@dataclass(slots=True)
class StreamState:
    """One stream: its decoder, its views' shards in memory, and counts."""

    stream: definition.Stream
    decoder: StreamDecoder
    shards: list[ViewShards]
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


@dataclass(slots=True)
class Folding:
    """Events of one stream that are to be folded into its views."""

    state: StreamState
    events: Events


@dataclass(slots=True)
class Work:
    """The effects of one batch; `folded` keeps a repeated attempt from folding twice."""

    state: OnlineState
    foldings: list[Folding]
    partitions: list[Partition]
    folded: bool = False


def start_partition(
    partition: Partition, registered: RegisteredStream, stored: Checkpoint | None, topic_id: bytes, log: Assignment
) -> tuple[PartitionState, int]:
    """Return a partition's state and the offset to read from.

    Raises `Fatal` where the checkpoint belongs to another log: a re-created topic, or one that lost its end.
    """
    begin, end = log.begin[partition], log.end[partition]
    rules, views = rules_of(registered.stream), frozenset(view_id(plan.hash) for plan in registered.plans)
    if stored is not None:
        _check_log(partition, stored, topic_id, end)
        if views <= stored.views:
            admission = Admission(rules, stored.newest_event_us)
            state = PartitionState(topic_id, stored, stored.next_offset, stored.next_offset, admission, views)
            return state, max(begin, min(stored.dedup_low_offset, stored.next_offset))
    return PartitionState(topic_id, stored, begin, begin, Admission(rules, EMPTY), views), begin


def _check_log(partition: Partition, stored: Checkpoint, topic_id: bytes, end: int) -> None:
    place = f"{partition.topic}[{partition.number}]"
    if topic_id not in (stored.topic_id, NO_TOPIC_ID):
        raise Fatal(
            f"{place} is another topic than the rings were folded from: it was re-created; rebuild its features"
        )
    if stored.next_offset > end:
        raise Fatal(f"{place} ends at {end}, but the rings include {stored.next_offset}: the log lost its end")


def step(state: OnlineState, batch: Batch) -> Step[OnlineState, Work]:
    """Take in a batch; the effects are events to fold, the refused are poison."""
    refused: list[Refused] = []
    by_stream: dict[str, list[tuple[Partition, Decoded, Any]]] = {}
    for partition, records in batch.partitions.items():
        stream = partition.topic.removeprefix("events.")
        place, source = state.partitions[partition], state.streams[stream]
        old = [record for record in records if record.offset < place.applied]
        if old:
            known = source.decoder.decode(old)
            place.admission.remember(known.offset, known.event_us, known.identities)
        fresh = records[len(old) :]
        if fresh:
            decoded, counts = _admitted(source, place, fresh, refused)
            by_stream.setdefault(stream, []).append((partition, decoded, counts))
    # Also where nothing of what was read is for this group: its dead letters, what is sent again for others.
    for partition, offset in batch.next_offsets.items():
        place = state.partitions[partition]
        place.next_offset = max(place.next_offset, offset)
    foldings = [_folding(state.streams[stream], parts) for stream, parts in by_stream.items()]
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
    # What a catch-up reads again was dead-lettered when it was read first.
    seen = place.stored.next_offset if place.stored is not None else 0
    poison = [one for one in poison if one.record.offset >= seen]
    refused.extend(poison)
    counts = source.counts
    counts.events += len(decoded.values)
    counts.duplicates += int(verdict.duplicate.sum())
    counts.late += int(late.sum())
    counts.refused += len(poison)
    keep = ~verdict.duplicate
    if not place.admission.rules.late_counts:
        keep &= ~late
    return decoded, keep


def _too_late(record: Record) -> Refused:
    return Refused(record, Poison(Reason.TOO_LATE, "the event lies further behind than the stream's lateness allows"))


def _folding(source: StreamState, parts: Sequence[tuple[Partition, Decoded, Any]]) -> Folding:
    """Put the counting events of a stream's partitions together."""
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
    return Folding(source, events)
