"""How much of a log a set of rows needs, so that leaving out the rest changes nothing; pure.

Values need the events at most a view's reach older than the earliest row. Whether such an event counts (it is neither a
duplicate nor late) needs the records of its partition from a little earlier on, and those are found by offset: a time
alone would miss the record that an event repeats, where the producer gave the two different times.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.admission import Rules, duplicate_mask, late_mask, newest_so_far

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Horizon(NamedTuple):
    """Of one partition: the lowest offset to read, and the lowest whose record is judged as with the whole log."""

    read_from: int
    judged_from: int


def horizon(offset: Ints, event_us: Ints, from_us: int, dedup_window_us: int) -> Horizon | None:
    """Return from where one partition must be read, so that every event at `from_us` or later is judged rightly.

    `offset` (rising), `event_us`: every record of the partition. None where no event is as new as that.

    All those events lie at or behind the first of them. Before it, the newest event time was some M; a record that an
    event repeats within the window has an event time of at least M - window. Nothing needs to be read where the newest
    event time was still below that.

    >>> horizon(np.array([3, 4, 7, 9]), np.array([10, 50, 40, 60]), 55, 20)
    Horizon(read_from=4, judged_from=9)
    """
    newest = np.maximum.accumulate(event_us) if len(event_us) else event_us
    first = int(np.searchsorted(newest, from_us))
    if first == len(newest):
        return None
    if first == 0:
        return Horizon(int(offset[0]), int(offset[0]))
    needed = int(np.searchsorted(newest, newest[first - 1] - dedup_window_us))
    return Horizon(int(offset[needed]), int(offset[first]))


class Records(NamedTuple):
    """Records of some partitions: `partition`, `offset`, `event_us`, in offset order within each."""

    partition: Ints
    offset: Ints
    event_us: Ints


def not_late(log: Records, lateness_us: int) -> Bools:
    """Return which records are not late; the log must begin at its beginning."""
    kept = np.ones(len(log.partition), np.bool_)
    for number in np.unique(log.partition):
        mine = np.flatnonzero(log.partition == number)
        kept[mine] = ~late_mask(log.event_us[mine], newest_so_far(log.event_us[mine]), lateness_us)
    return kept


def repeated(log: Records, rows: Ints, identity: Ints, rules: Rules) -> Bools:
    """Return which of some records are duplicates.

    `rows`: the places of all records that have one of certain identities; `identity`: a number per row for its own.
    """
    found = np.zeros(len(rows), np.bool_)
    for number in np.unique(log.partition[rows]):
        whole = np.flatnonzero(log.partition == number)
        mine = np.flatnonzero(log.partition[rows] == number)
        newest = newest_so_far(log.event_us[whole])[np.searchsorted(whole, rows[mine])]
        found[mine] = duplicate_mask(identity[mine], log.offset[rows[mine]], log.event_us[rows[mine]], newest, rules)
    return found
