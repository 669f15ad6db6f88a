"""Weights that halve with every half-life, with the same bits on every machine.

A slot's values are weighted by their age at the end of its bucket, its *anchor*; a read weights the slot by the
anchor's age. Weights multiply, so that each value is weighted by its own age, whatever hop it fell into.
"""

from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# The head bucket is weighted by up to 2^(hop / half-life).
MAX_HALF_LIVES_PER_HOP = 64
# Of a window and its hop, which are as old as what is merged may be. Below 2^-1022 floats lose digits, then vanish.
MAX_HALF_LIVES = 1_000
_LN_2 = 0.6931471805599453
# 2^f = Σ (f ln 2)^k / k!; for |f| ≤ 1/2 the terms left out lie below 2^-56. Highest first.
_TAYLOR = list(accumulate(range(1, 14), lambda term, power: term * _LN_2 / power, initial=1.0))[::-1]


def exp2(x: Any) -> Floats:
    """Return 2^x to about an ulp, from additions and multiplications alone.

    `numpy.exp2` takes whatever the processor and the C library offer, so that its last bit may differ between the
    machine that serves and the one that trains.

    >>> exp2(np.array([-1.0, 0.0, 0.5, 10.0])).tolist()
    [0.5, 1.0, 1.414213562373095, 1024.0]
    """
    clipped = np.clip(np.asarray(x, np.float64), -1100.0, 1000.0)
    whole = np.rint(clipped)
    part = clipped - whole
    value = np.full_like(part, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        value = value * part + coefficient
    return np.asarray(np.ldexp(value, whole.astype(np.int64)), np.float64)


def decays(event_us: Any, hop_us: int, half_life_us: int) -> Floats:
    """Return the weights of events at the ends of their buckets."""
    anchor_us = (event_us // hop_us + 1) * hop_us
    return weights(anchor_us - event_us, half_life_us)


def weights(age_us: Any, half_life_us: int) -> Floats:
    """Return 2^(−age / half-life); of instants that lie ahead more than 1."""
    return exp2(-(np.asarray(age_us, np.float64) / float(half_life_us)))
