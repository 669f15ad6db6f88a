"""One partition's past, folded again: pure. The same judging and folding as live, over records or archived rows."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tidemill_features.admission import Admission, Admitted, Repeats, rules_of
from tidemill_features.archive import identity_text
from tidemill_features.columns import Coded
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import Checkpoint
from tidemill_runtime.batches import Record
from tidemill_runtime.positions import Partition

from tidemill_feature.decode import StreamDecoder
from tidemill_feature.online import Folding

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next events of one partition, in offset order, duplicates and late ones too; `end`: what was read up to.

    `columns`: the fields that views read; `coded`: some of them by their words, too. `repeats`: None where nobody has
    looked for them.
    """

    offset: Ints
    event_us: Ints
    identities: Sequence[str]
    columns: Mapping[str, Column]
    end: int
    repeats: Repeats | None = None
    coded: Mapping[str, Coded] = field(default_factory=dict)

    def part(self, first: int, following: int) -> "Chunk":
        """Return some of the events."""
        rows = slice(first, following)
        end = int(self.offset[following]) if following < len(self.offset) else self.end
        columns = {name: Column(one.values[rows], one.nulls[rows]) for name, one in self.columns.items()}
        repeats = None if self.repeats is None else self.repeats.part(rows)
        coded = _taken(self.coded, rows)
        return Chunk(self.offset[rows], self.event_us[rows], self.identities[rows], columns, end, repeats, coded)

    def pieces(self, size: int) -> Iterator["Chunk"]:
        """Yield the chunk in pieces of so many events; one of its own where it has none."""
        for first in range(0, max(1, len(self.offset)), size):
            yield self.part(first, first + size)


def _taken(coded: Mapping[str, Coded], rows: Any) -> dict[str, Coded]:
    return {name: Coded(words, codes[rows]) for name, (words, codes) in coded.items()}


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
        self.columns = tuple(sorted({name for view in views for name in view.plan.columns}))

    def decode(self, records: Sequence[Record], end: int) -> Chunk:
        """Return the events among records of the log; what is poison was refused when it was first read."""
        decoded = self._decoder.decode(records)
        identities = [identity_text(one) for one in decoded.identities]
        columns = self._decoder.columns(decoded.values, self.columns)
        return Chunk(decoded.offset, decoded.event_us, identities, columns, end)

    def take(self, chunk: Chunk) -> Folding | None:
        """Take in a chunk; return what is to be folded, None where nothing is."""
        old = int(np.searchsorted(chunk.offset, self.next_offset))
        self.read, self.next_offset = chunk.end, max(self.next_offset, chunk.end)
        if old:
            self._admitted(chunk.part(0, old))
            chunk = chunk.part(old, len(chunk.offset))
        verdict = self._admitted(chunk)
        keep = ~verdict.duplicate
        if not self._admission.rules.late_counts:
            keep &= ~verdict.late
        if not keep.any():
            return None
        offset, event_us, columns, coded = chunk.offset, chunk.event_us, chunk.columns, chunk.coded
        if not keep.all():
            coded = _taken(coded, keep)
            offset, event_us = offset[keep], event_us[keep]
            columns = {name: Column(one.values[keep], one.nulls[keep]) for name, one in columns.items()}
        partition = np.full(len(offset), self._partition.number, np.int64)
        return Folding(self._partition.topic, self.views, Events(partition, offset, event_us, columns, coded))

    def _admitted(self, chunk: Chunk) -> Admitted:
        if chunk.repeats is None:
            return self._admission.admit(chunk.offset, chunk.event_us, chunk.identities)
        return self._admission.admit_known(chunk.offset, chunk.event_us, chunk.identities, chunk.repeats)

    def skip_to(self, offset: int) -> None:
        """Go on from a later offset: neither log holds what lies before."""
        self.read, self.next_offset = max(self.read, offset), max(self.next_offset, offset)

    def checkpoint(self) -> Checkpoint:
        """Return how far it has come."""
        # While identities are remembered again, the rest of them is still to be read.
        low = self._admission.low_offset(min(self.next_offset, self.read))
        newest_us = self._admission.newest_us
        return Checkpoint(self._point.topic_id, self.next_offset, low, newest_us, self._builds, self._point.partitions)
