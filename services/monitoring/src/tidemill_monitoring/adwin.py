"""ADWIN over block means: a window that is cut where its two parts differ by more than chance allows.

Source: Bifet and Gavaldà, "Learning from Time-Changing Data with Adaptive Windowing", SDM 2007, algorithm ADWIN0 (every
split is tried; at most `CAPACITY` blocks are held, so the exponential histogram of ADWIN2 would save nothing) with the
normal approximation of section 4.1:

    ε_cut = sqrt(2/m · σ²_W · ln(2/δ')),   1/m = 1/n₀ + 1/n₁,   δ' = δ / ln(n)

Three departures, all because consecutive losses are anything but independent (a stormy day makes a thousand of them
bad together; see ADR 0015). The elements are means over a day of event time, not single losses. The term
2/(3m)·ln(2/δ') is left out: it guards bounded single values, and for means of hundreds of rows it would forbid any
detection within two months. And all but one of the last `MIN_BLOCKS` blocks must have moved, since the mean of a few
follows a single one. What δ then yields is measured, not taken from the theorem.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CAPACITY = 60
# Each side of a cut needs this many blocks, of which one may be an exception: a spell of bad weather is shorter.
MIN_BLOCKS = 5


class Cut(NamedTuple):
    """Where the window changed: blocks before it and the means on both sides; `ratio` and `epsilon` are of the split by
    which the change was found, which may lie up to `MIN_BLOCKS` earlier."""

    before_blocks: int
    before: float
    after: float
    ratio: float
    epsilon: float


def best_cut(means: Sequence[float], delta: float, limit: float) -> Cut | None:
    """Return the clearest split whose means differ by more than chance (δ) and more than `limit`; None: no change.

    All but one of the last `MIN_BLOCKS` blocks lie by more than `limit` on the same side of the mean before.

    >>> best_cut([0.2, 0.3] * 10 + [0.7, 0.8] * 5, delta=0.05, limit=0.1).before_blocks
    20
    >>> best_cut([0.2, 0.3] * 15, delta=0.05, limit=0.1) is None
    True
    >>> best_cut([0.2, 0.3] * 15 + [3.0, 3.0], delta=0.05, limit=0.1) is None
    True
    """
    count = len(means)
    if count < 2 * MIN_BLOCKS:
        return None
    values = np.asarray(means, np.float64)
    variance = float(values.var(ddof=1))
    before_n = np.arange(MIN_BLOCKS, count - MIN_BLOCKS + 1)
    sums = np.cumsum(values)
    before = sums[before_n - 1] / before_n
    after = (sums[-1] - sums[before_n - 1]) / (count - before_n)
    harmonic = 1.0 / (1.0 / before_n + 1.0 / (count - before_n))
    epsilon = np.sqrt(2.0 / harmonic * variance * math.log(2.0 * math.log(count) / delta))
    moved = np.abs(after - before)
    last = np.sort(values[-MIN_BLOCKS:])
    lasting = np.where(after > before, last[1] - before, before - last[-2]) > limit
    ratio = np.where((moved > limit) & lasting & (epsilon > 0), moved / np.maximum(epsilon, 1e-300), 0.0)
    place = int(ratio.argmax())
    if ratio[place] <= 1.0:
        return None
    onset = _onset(sums, int(before_n[place]))
    return Cut(
        onset,
        float(sums[onset - 1] / onset),
        float((sums[-1] - sums[onset - 1]) / (count - onset)),
        float(ratio[place]),
        float(epsilon[place]),
    )


def _onset(sums: NDArray[np.float64], earliest: int) -> int:
    """Return the split, not before the one found, that explains most of the squares; each side keeps two blocks."""
    count = len(sums)
    before_n = np.arange(earliest, count - 1)
    gap = (sums[-1] - sums[before_n - 1]) / (count - before_n) - sums[before_n - 1] / before_n
    return int(before_n[(gap**2 * before_n * (count - before_n)).argmax()])
