"""Up to which offset of each partition a training row may see events, so that it sees what its prediction saw.

A logged prediction names its cut: the positions that its rings held. A row without one is cut, in offset order, before
the first record whose event time lies after its `as_of`, or that came to the log after it, and before its own record.
"""

import numpy as np
from numpy.typing import NDArray

from tidemill_features.layout import INT64_MAX

Ints = NDArray[np.int64]

# The cut of a partition that holds nothing after `as_of`: everything that was read counts.
EVERYTHING = INT64_MAX


def cuts_by_time(partition: Ints, offset: Ints, time_us: Ints, as_of_us: Ints, partitions: int) -> Ints:
    """Return int64[rows, partitions]: the offset of the first record after each row's `as_of`.

    `partition`, `offset`, `time_us`: every archived record of the stream, duplicates and late ones too, in offset
    order within each partition, and its event time, or when it came to the log.

    >>> one = np.array([0, 0, 0]), np.array([4, 5, 9]), np.array([10, 30, 20])
    >>> cuts_by_time(*one, np.array([9, 10, 29, 30]), 1)[:, 0].tolist() == [4, 5, 5, EVERYTHING]
    True
    """
    cuts = np.full((len(as_of_us), partitions), EVERYTHING, np.int64)
    for number in range(partitions):
        mine = np.flatnonzero(partition == number)
        if not len(mine):
            continue
        offsets, newest = offset[mine], np.maximum.accumulate(time_us[mine])
        first = np.searchsorted(newest, as_of_us, side="right")
        inside = first < len(mine)
        cuts[inside, number] = offsets[first[inside]]
    return cuts
