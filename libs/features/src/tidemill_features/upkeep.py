"""What is to be done for a table of the offline log: which files to merge, which snapshots to let go; pure."""

from collections.abc import Sequence
from dataclasses import dataclass

# Files of a like size that make one; each row is then rewritten once per power of eight in size.
FAN_IN = 8
_SMALLEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Upkeep:
    """Bounds of one round of upkeep of one table.

    `merge_bytes`: no merged file is larger, and no round rewrites more. Snapshots are kept while they are among the
    newest `keep_snapshots`, and for `keep_s` after another took their place, so that who reads them can finish; never
    more than `most_snapshots`. `orphan_s`: a file that no snapshot names is deleted when it is older. `piece_rows`: so
    many rows are put together at a time while files are merged, and make one row group; the row groups that they come
    from are read whole.
    """

    merge_bytes: int = 128 * 1024 * 1024
    keep_snapshots: int = 20
    keep_s: float = 900.0
    most_snapshots: int = 200
    orphan_s: float = 3_600.0
    most_deletions: int = 1_000
    piece_rows: int = 16_384


@dataclass(frozen=True, slots=True)
class Done:
    """What one round did."""

    merged_files: int = 0
    expired_snapshots: int = 0
    deleted_files: int = 0


def to_merge(sizes: Sequence[int], most_bytes: int) -> list[int]:
    """Return the places of the files to merge into one, smallest tier first; none where no tier is full.

    >>> to_merge([100] * 9 + [10**6], 10**9) == list(range(9)), to_merge([100] * 7, 10**9), to_merge([100] * 9, 300)
    (True, [], [0, 1, 2])
    """
    tiers: dict[int, list[int]] = {}
    for place, size in enumerate(sizes):
        if size * 2 <= most_bytes:
            tiers.setdefault((size // _SMALLEST_BYTES).bit_length() // 3, []).append(place)
    for _, places in sorted(tiers.items()):
        if len(places) < FAN_IN:
            continue
        taken, total = [], 0
        for place in sorted(places, key=lambda place: (sizes[place], place)):
            total += sizes[place]
            if total > most_bytes:
                break
            taken.append(place)
        if len(taken) > 1:
            return taken
    return []


def to_expire(snapshots: Sequence[tuple[int, int]], now_ms: int, limits: Upkeep) -> list[int]:
    """Return the ids of the snapshots to let go, given (made at, id) of all; the newest always stays.

    >>> some = [(0, 7), (10, 8), (20, 9)]
    >>> to_expire(some, 1_012, Upkeep(keep_snapshots=1, keep_s=1.0)), to_expire(some, 1_000, Upkeep(keep_snapshots=1))
    ([7], [])
    """
    ordered = sorted(snapshots)
    found = []
    for place, (_, snapshot) in enumerate(ordered[:-1]):
        replaced_ms = ordered[place + 1][0]
        newer = len(ordered) - place
        over = newer > limits.keep_snapshots and replaced_ms < now_ms - limits.keep_s * 1000
        if over or newer > limits.most_snapshots:
            found.append(snapshot)
    return found
