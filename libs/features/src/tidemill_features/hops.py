"""How a window is cut: its hop class, and the slots that a ring needs.

A read covers the buckets from the one that holds `as_of − window` to the one that holds `as_of`: never less than the
window, and at most one hop more. So `accuracy="hop"` means: the tail lies between W and W + hop, where hop is at most
W / 12 for windows of 12 s and more (1 s below). Of an exact window `edges` cuts the first and the last bucket.
"""

SECOND_MS = 1_000
MINUTE_MS = 60 * SECOND_MS
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS

# The hop classes. Few of them, so that windows of one view share rings.
HOPS_MS = (
    SECOND_MS,
    5 * SECOND_MS,
    10 * SECOND_MS,
    30 * SECOND_MS,
    MINUTE_MS,
    5 * MINUTE_MS,
    15 * MINUTE_MS,
    30 * MINUTE_MS,
    HOUR_MS,
    6 * HOUR_MS,
    DAY_MS,
)
HOPS_PER_WINDOW = 12
# A year of days fits.
MAX_SLOTS = 400


def hop_ms(window_ms: int) -> int:
    """Return the hop class of a window: the largest hop that divides it in at least twelve.

    >>> [hop_ms(hours * 3_600_000) // 60_000 for hours in (2, 6, 24, 168)]
    [5, 30, 60, 360]
    """
    return max((hop for hop in HOPS_MS if hop * HOPS_PER_WINDOW <= window_ms), default=HOPS_MS[0])


def slots_of(window_us: int, hop_us: int) -> int:
    """Return the slots of a ring: the window's buckets with the head, and one to spare for events just after a read."""
    return -(-window_us // hop_us) + 2
