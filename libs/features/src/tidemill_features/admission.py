"""Which records of a partition count: duplicates and late events, decided from the log alone so that it replays.

- A record is a *duplicate* when a record at a lower offset of its partition had its identity, an event time no older
  than the deduplication window behind the partition's newest event time so far, and a place at most `DEDUP_OFFSETS`
  before it. So much is to be remembered and no more, whatever the window and the rate.
- An event is *late* when it lies more than the stream's lateness behind the newest event time at lower offsets.

Both look at every record that is no poison and no watermark, whether it counted or not.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.layout import EMPTY

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


# How far back in its partition's log a record is compared. An offset, so that it replays; some 70 MB of identities.
DEDUP_OFFSETS = 262_144


@dataclass(frozen=True, slots=True)
class Rules:
    """What a stream's definition says about duplicates and late events; `dedup_offsets` is the same for all."""

    dedup_window_us: int
    lateness_us: int
    policy: definition.LatePolicy.ValueType
    dedup_offsets: int = DEDUP_OFFSETS

    @property
    def late_counts(self) -> bool:
        """Whether a late event is folded all the same, where a ring still holds its bucket."""
        return self.policy == definition.LATE_POLICY_CORRECT


def rules_of(stream: definition.Stream) -> Rules:
    """Return a stream's rules."""
    return Rules(stream.dedup_window_ms * 1000, stream.lateness_ms * 1000, stream.late_policy)


class Admitted(NamedTuple):
    """Masks over one batch of a partition."""

    duplicate: Bools
    late: Bools


class Repeats(NamedTuple):
    """Of each record: offset and event time of the last one before it with its identity; EMPTY where none is near."""

    offset: Ints
    event_us: Ints

    def part(self, rows: slice) -> "Repeats":
        """Return those of some records."""
        return Repeats(self.offset[rows], self.event_us[rows])


class _Chunk(NamedTuple):
    offsets: Ints
    event_us: Ints
    newest_us: int
    identities: Sequence[Hashable]


class Admission:
    """What one partition remembers: its newest event time, and the identities within the deduplication window.

    `cut_short`: identities that were forgotten within the window, since too many came after them.
    """

    def __init__(self, rules: Rules, newest_us: int = EMPTY) -> None:
        self.rules = rules
        self.newest_us = newest_us
        self.cut_short = 0
        # The last offset of each.
        self._seen: dict[Hashable, int] = {}
        self._chunks: deque[_Chunk] = deque()
        # Of these, the ones whose identities are not among the seen yet: the last.
        self._later: deque[_Chunk] = deque()

    def admit(self, offsets: Sequence[int] | Ints, event_us: Ints, identities: Sequence[Hashable]) -> Admitted:
        """Judge the next records of the partition, in offset order, and remember them."""
        newest_before = newest_so_far(event_us, self.newest_us)
        late = late_mask(event_us, newest_before, self.rules.lateness_us)
        places = np.asarray(offsets, np.int64)
        self._take_up()
        duplicate = self._duplicates(places, event_us, newest_before, identities)
        self.remember(places, event_us, identities)
        return Admitted(duplicate, late)

    def admit_known(self, offsets: Ints, event_us: Ints, identities: Sequence[Hashable], repeats: Repeats) -> Admitted:
        """Judge and remember as `admit` does, where others have looked for repeats: the identities are read later."""
        newest_before = newest_so_far(event_us, self.newest_us)
        late = late_mask(event_us, newest_before, self.rules.lateness_us)
        duplicate = np.zeros(len(event_us), np.bool_)
        again = np.flatnonzero(repeats.offset != EMPTY)
        if len(again):
            near = offsets[again] - repeats.offset[again] <= self.rules.dedup_offsets
            duplicate[again] = near & (repeats.event_us[again] >= newest_before[again] - self.rules.dedup_window_us)
        if len(event_us):
            chunk = _Chunk(offsets, event_us, int(event_us.max()), identities)
            self._later.append(chunk)
            self._append(chunk)
        return Admitted(duplicate, late)

    def remember(self, offsets: Sequence[int] | Ints, event_us: Ints, identities: Sequence[Hashable]) -> None:
        """Take in records without judging them, as when the window is reread after an assignment."""
        if not len(event_us):
            return
        newest, places = int(event_us.max()), np.asarray(offsets, np.int64)
        self._take_up()
        self._seen.update(zip(identities, places.tolist(), strict=True))
        self._append(_Chunk(places, event_us, newest, identities))

    def low_offset(self, next_offset: int) -> int:
        """Return from where the log must be reread to remember the same identities."""
        return int(self._chunks[0].offsets[0]) if self._chunks else next_offset

    @property
    def identities(self) -> int:
        """How many identities are remembered."""
        return len(self._seen)

    def _append(self, chunk: _Chunk) -> None:
        """Take in a chunk, and forget what it puts out of reach."""
        self._chunks.append(chunk)
        self.newest_us = max(self.newest_us, chunk.newest_us)
        horizon_us, lowest = (
            self.newest_us - self.rules.dedup_window_us,
            int(chunk.offsets[-1]) - self.rules.dedup_offsets,
        )
        while self._chunks and (self._chunks[0].newest_us < horizon_us or self._chunks[0].offsets[-1] <= lowest):
            self._forget(self._chunks.popleft(), horizon_us)

    def _take_up(self) -> None:
        """Read the identities that others have looked at so far."""
        while self._later:
            chunk = self._later.popleft()
            self._seen.update(zip(chunk.identities, chunk.offsets.tolist(), strict=True))

    def _forget(self, chunk: _Chunk, horizon_us: int) -> None:
        if chunk.newest_us >= horizon_us:
            self.cut_short += int((chunk.event_us >= horizon_us).sum())
        if self._later and self._later[0] is chunk:
            self._later.popleft()
            return
        last = int(chunk.offsets[-1])
        for identity in chunk.identities:
            if self._seen.get(identity, last + 1) <= last:
                del self._seen[identity]

    def _duplicates(self, offsets: Ints, event_us: Ints, newest_before: Ints, identities: Sequence[Hashable]) -> Bools:
        duplicate = np.zeros(len(event_us), np.bool_)
        seen = self._seen
        if len(set(identities)) == len(identities) and seen.keys().isdisjoint(identities):
            return duplicate
        batch: dict[Hashable, int] = {}
        window_us, reach = self.rules.dedup_window_us, self.rules.dedup_offsets
        for index, identity in enumerate(identities):
            place = batch.get(identity)
            if place is not None:
                before, at_us = int(offsets[place]), int(event_us[place])
            else:
                before, at_us = self._last(identity)
            batch[identity] = index
            near = int(offsets[index]) - before <= reach
            duplicate[index] = near and at_us >= int(newest_before[index]) - window_us
        return duplicate

    def _last(self, identity: Hashable) -> tuple[int, int]:
        """Return offset and event time of an identity's last record; EMPTY for one that is not remembered."""
        offset = self._seen.get(identity)
        if offset is None:
            return EMPTY, EMPTY
        for chunk in reversed(self._chunks):
            if chunk.offsets[0] <= offset:
                return offset, int(chunk.event_us[np.searchsorted(chunk.offsets, offset)])
        raise AssertionError("an identity without a chunk")


def newest_so_far(event_us: Ints, start_us: int = EMPTY) -> Ints:
    """Return, for each record in offset order, the newest event time at lower offsets (`start_us` before the first).

    Before the first record of a log there is none: its own time stands in, so that it is not late.
    """
    if not len(event_us):
        return event_us
    first = start_us if start_us != EMPTY else int(event_us[0])
    return np.maximum.accumulate(np.concatenate((np.array([first], np.int64), event_us[:-1])))


def late_mask(event_us: Ints, newest_before: Ints, lateness_us: int) -> Bools:
    """Return which events lie more than `lateness_us` behind the newest before them."""
    return event_us < newest_before - lateness_us


def duplicate_mask(identity_codes: Ints, offset: Ints, event_us: Ints, newest_before: Ints, rules: Rules) -> Bools:
    """Return which records of one partition are duplicates, for a whole log at once.

    `identity_codes`: equal numbers for equal identities, in offset order.
    """
    order = np.argsort(identity_codes, kind="stable")
    codes = identity_codes[order]
    repeats = np.flatnonzero(codes[1:] == codes[:-1])
    duplicate = np.zeros(len(codes), np.bool_)
    current, previous = order[repeats + 1], order[repeats]
    duplicate[current] = event_us[previous] >= newest_before[current] - rules.dedup_window_us
    duplicate[current] &= offset[current] - offset[previous] <= rules.dedup_offsets
    return duplicate
