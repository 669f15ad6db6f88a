"""Which records of a partition count: duplicates and late events, decided from the log alone so that it replays.

- A record is a *duplicate* when a record at a lower offset of its partition had its identity and an event time no older
  than the deduplication window behind the partition's newest event time so far.
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


@dataclass(frozen=True, slots=True)
class Rules:
    """What a stream's definition says about duplicates and late events."""

    dedup_window_us: int
    lateness_us: int
    policy: definition.LatePolicy.ValueType

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


class _Chunk(NamedTuple):
    first_offset: int
    newest_us: int
    identities: Sequence[Hashable]


class Admission:
    """What one partition remembers: its newest event time, and the identities within the deduplication window."""

    def __init__(self, rules: Rules, newest_us: int = EMPTY) -> None:
        self.rules = rules
        self.newest_us = newest_us
        self._seen: dict[Hashable, int] = {}
        self._chunks: deque[_Chunk] = deque()

    def admit(self, offsets: Sequence[int] | Ints, event_us: Ints, identities: Sequence[Hashable]) -> Admitted:
        """Judge the next records of the partition, in offset order, and remember them."""
        newest_before = newest_so_far(event_us, self.newest_us)
        late = late_mask(event_us, newest_before, self.rules.lateness_us)
        duplicate = self._duplicates(event_us, newest_before, identities)
        self.remember(offsets, event_us, identities)
        return Admitted(duplicate, late)

    def remember(self, offsets: Sequence[int] | Ints, event_us: Ints, identities: Sequence[Hashable]) -> None:
        """Take in records without judging them, as when the window is reread after an assignment."""
        if not len(event_us):
            return
        newest = int(event_us.max())
        self._seen.update(zip(identities, event_us.tolist(), strict=True))
        self._chunks.append(_Chunk(int(offsets[0]), newest, identities))
        self.newest_us = max(self.newest_us, newest)
        horizon = self.newest_us - self.rules.dedup_window_us
        while self._chunks and self._chunks[0].newest_us < horizon:
            for identity in self._chunks.popleft().identities:
                if self._seen.get(identity, horizon) < horizon:
                    del self._seen[identity]

    def low_offset(self, next_offset: int) -> int:
        """Return from where the log must be reread to remember the same identities."""
        return self._chunks[0].first_offset if self._chunks else next_offset

    @property
    def identities(self) -> int:
        """How many identities are remembered."""
        return len(self._seen)

    def _duplicates(self, event_us: Ints, newest_before: Ints, identities: Sequence[Hashable]) -> Bools:
        duplicate = np.zeros(len(event_us), np.bool_)
        seen = self._seen
        if len(set(identities)) == len(identities) and seen.keys().isdisjoint(identities):
            return duplicate
        batch: dict[Hashable, int] = {}
        window_us = self.rules.dedup_window_us
        for index, identity in enumerate(identities):
            previous = batch.get(identity, seen.get(identity))
            if previous is not None and previous >= int(newest_before[index]) - window_us:
                duplicate[index] = True
            batch[identity] = int(event_us[index])
        return duplicate


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


def duplicate_mask(identity_codes: Ints, event_us: Ints, newest_before: Ints, window_us: int) -> Bools:
    """Return which records of one partition are duplicates, for a whole log at once.

    `identity_codes`: equal numbers for equal identities, in offset order.
    """
    order = np.argsort(identity_codes, kind="stable")
    codes = identity_codes[order]
    repeats = np.flatnonzero(codes[1:] == codes[:-1])
    duplicate = np.zeros(len(codes), np.bool_)
    current, previous = order[repeats + 1], order[repeats]
    duplicate[current] = event_us[previous] >= newest_before[current] - window_us
    return duplicate
