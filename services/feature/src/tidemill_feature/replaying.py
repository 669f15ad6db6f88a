"""One partition's past, folded again: pure. The same judging and folding as live, over records or archived rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tidemill_features.admission import Admission, rules_of
from tidemill_features.archive import identity_text
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import Checkpoint
from tidemill_runtime.batches import Record
from tidemill_runtime.positions import Partition

from tidemill_feature.decode import StreamDecoder
from tidemill_feature.online import Folding

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next events of one partition, in offset order, duplicates and late ones too; `end`: what was read up to.

    `columns`: from which of them count, and names, to fields.
    """

    offset: Ints
    event_us: Ints
    identities: Sequence[str]
    columns: Callable[[Bools, Sequence[str]], Mapping[str, Column]]
    end: int

    def pieces(self, size: int) -> Iterator["Chunk"]:
        """Yield the chunk in pieces of so many events; one of its own where it has none."""
        count = len(self.offset)
        for first in range(0, max(1, count), size):
            following = first + size
            end = int(self.offset[following]) if following < count else self.end
            part = slice(first, following)
            columns = _Part(self, first)
            yield Chunk(self.offset[part], self.event_us[part], self.identities[part], columns.columns, end)


@dataclass(frozen=True, slots=True)
class _Part:
    """The columns of a piece, taken out of its chunk's."""

    chunk: Chunk
    first: int

    def columns(self, keep: Bools, names: Sequence[str]) -> Mapping[str, Column]:
        whole = np.zeros(len(self.chunk.offset), np.bool_)
        whole[self.first : self.first + len(keep)] = keep
        return self.chunk.columns(whole, names)


class Replay:
    """A partition that is read from some checkpoint on, for a few views."""

    def __init__(
        self,
        partition: Partition,
        decoder: StreamDecoder,
        views: Sequence[ViewShards],
        point: Checkpoint,
        builds: frozenset[bytes],
    ) -> None:
        self.next_offset = point.next_offset
        # From here on it is read: identities within the window are to be remembered again.
        self.read = min(point.dedup_low_offset, point.next_offset)
        self._partition = partition
        self._decoder = decoder
        self.views = views
        self._point = point
        self._builds = builds
        self._admission = Admission(rules_of(decoder.stream), point.newest_event_us)
        self._columns = tuple(sorted({name for view in views for name in view.plan.columns}))

    def decode(self, records: Sequence[Record], end: int) -> Chunk:
        """Return the events among records of the log; what is poison was refused when it was first read."""
        decoded = self._decoder.decode(records)

        def columns(keep: Bools, names: Sequence[str]) -> Mapping[str, Column]:
            values = [value for value, kept in zip(decoded.values, keep.tolist(), strict=True) if kept]
            return self._decoder.columns(values, names)

        return Chunk(decoded.offset, decoded.event_us, [identity_text(one) for one in decoded.identities], columns, end)

    def take(self, chunk: Chunk) -> Folding | None:
        """Take in a chunk; return what is to be folded, None where nothing is."""
        fresh = chunk.offset >= self.next_offset
        old = int(len(fresh) - fresh.sum())
        if old:
            self._admission.remember(chunk.offset[:old], chunk.event_us[:old], chunk.identities[:old])
        self.read, self.next_offset = chunk.end, max(self.next_offset, chunk.end)
        if old == len(fresh):
            return None
        identities = chunk.identities[old:] if old else chunk.identities
        verdict = self._admission.admit(chunk.offset[old:], chunk.event_us[old:], identities)
        counts = ~verdict.duplicate
        if not self._admission.rules.late_counts:
            counts &= ~verdict.late
        keep = np.concatenate((np.zeros(old, np.bool_), counts))
        if not keep.any():
            return None
        partition = np.full(int(keep.sum()), self._partition.number, np.int64)
        columns = chunk.columns(keep, self._columns)
        return Folding(
            self._partition.topic, self.views, Events(partition, chunk.offset[keep], chunk.event_us[keep], columns)
        )

    def skip_to(self, offset: int) -> None:
        """Go on from a later offset: neither log holds what lies before."""
        self.read, self.next_offset = max(self.read, offset), max(self.next_offset, offset)

    def checkpoint(self) -> Checkpoint:
        """Return how far it has come."""
        # While identities are remembered again, the rest of them is still to be read.
        low = self._admission.low_offset(min(self.next_offset, self.read))
        newest_us = self._admission.newest_us
        return Checkpoint(self._point.topic_id, self.next_offset, low, newest_us, self._builds, self._point.partitions)
