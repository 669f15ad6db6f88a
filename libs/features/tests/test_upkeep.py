"""Which files of the offline log are merged, and which snapshots let go, at the edges of their bounds."""

from collections.abc import Sequence

import pytest
from tidemill_features.upkeep import FAN_IN, Upkeep, to_expire, to_merge

KIB = 1024
LARGE = 10**12


@pytest.mark.parametrize(
    ("sizes", "most_bytes", "merged"),
    [
        ([100] * FAN_IN, LARGE, range(FAN_IN)),
        ([100] * (FAN_IN - 1), LARGE, ()),
        # A tier spans a factor of eight: these are two, neither of them full.
        ([100] * (FAN_IN - 1) + [64 * KIB * 7], LARGE, ()),
        ([64 * KIB * 3] * (FAN_IN - 1) + [64 * KIB * 4], LARGE, ()),
        ([64 * KIB * 4] * (FAN_IN - 1) + [64 * KIB * 31], LARGE, range(FAN_IN)),
        # The small ones go first, wherever they stand.
        ([64 * KIB * 5] * FAN_IN + [100] * FAN_IN, LARGE, range(FAN_IN, 2 * FAN_IN)),
        # A file of half of what fits is still merged, a larger one never.
        ([400] * FAN_IN, 800, (0, 1)),
        ([401] * FAN_IN, 801, ()),
        # The smallest first, as many as fit.
        ([400, 300, 200, 100, 100, 100, 100, 100], 800, (3, 4, 5, 6, 7, 2)),
        ([400, 300, 200, 100, 100, 100, 100, 100], 699, ()),
    ],
)
def test_files_of_a_like_size_are_merged_once_there_are_enough(
    sizes: Sequence[int], most_bytes: int, merged: Sequence[int]
) -> None:
    assert to_merge(sizes, most_bytes) == list(merged)


@pytest.mark.parametrize(
    ("limits", "now_ms", "gone"),
    [
        # Beyond the newest two, and replaced longer ago than ten seconds.
        (Upkeep(keep_snapshots=2, keep_s=10.0), 60_000, [1, 2, 3]),
        (Upkeep(keep_snapshots=2, keep_s=10.0), 40_001, [1, 2]),
        (Upkeep(keep_snapshots=2, keep_s=10.0), 40_000, [1]),
        (Upkeep(keep_snapshots=5, keep_s=10.0), 60_000, []),
        (Upkeep(keep_snapshots=4, keep_s=10.0), 60_000, [1]),
        # However young, never more than the most.
        (Upkeep(keep_snapshots=2, keep_s=1_000.0, most_snapshots=3), 60_000, [1, 2]),
        (Upkeep(keep_snapshots=0, keep_s=0.0, most_snapshots=0), 60_000, [1, 2, 3, 4]),
    ],
)
def test_snapshots_go_once_they_are_old_and_others_are_there(limits: Upkeep, now_ms: int, gone: Sequence[int]) -> None:
    # Given in any order: (made at, id).
    assert to_expire([(30_000, 3), (10_000, 1), (50_000, 5), (20_000, 2), (40_000, 4)], now_ms, limits) == gone
