"""The most frequent values: Misra–Gries counters.

J. Misra, D. Gries, "Finding repeated elements", Science of Computer Programming 2(2), 1982; merged as by P. Agarwal et
al., "Mergeable Summaries", PODS 2012, §2. With m counters, of n values, every count is too low by at most n / (m + 1),
so a value more frequent than that is always found; up to m different values everything is exact. The frequent-items
sketch of Apache DataSketches would not do: what it forgets hangs on the layout of its hash table, which storing and
loading changes.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Any

# How many counters stand behind each value asked for, and at least.
COUNTERS_PER_VALUE = 8
MIN_COUNTERS = 32
# Length assumed of strings when memory is estimated.
NOMINAL_STRING_BYTES = 32

_COUNT = struct.Struct("<I")
_STRING = struct.Struct("<II")
_NUMBER = struct.Struct("<qI")


def counters_of(k: int) -> int:
    """Return how many counters a top-k keeps in each slot."""
    return max(MIN_COUNTERS, COUNTERS_PER_VALUE * k)


def max_bytes(size: int, *, strings: bool) -> int:
    """Return the most that a slot takes."""
    return _COUNT.size + size * (_STRING.size + NOMINAL_STRING_BYTES if strings else _NUMBER.size)


class Heavy:
    """Counts of at most `size` values."""

    def __init__(self, size: int, counts: dict[Any, int] | None = None) -> None:
        self._size = size
        self.counts = counts if counts is not None else {}

    def add(self, values: Sequence[Any]) -> None:
        """Take in values, in offset order; one that finds no counter free takes one off every count."""
        counts, size = self.counts, self._size
        for value in values:
            if value in counts:
                counts[value] += 1
            elif len(counts) < size:
                counts[value] = 1
            else:
                for held in list(counts):
                    counts[held] -= 1
                    if not counts[held]:
                        del counts[held]

    def pack(self) -> bytes:
        """Return the stored bytes, by rising value: equal counts, equal bytes."""
        parts = [_COUNT.pack(len(self.counts))]
        for value, count in sorted(self.counts.items()):
            if isinstance(value, str):
                raw = value.encode("utf-8", "surrogatepass")
                parts.append(_STRING.pack(count, len(raw)) + raw)
            else:
                parts.append(_NUMBER.pack(value, count))
        return b"".join(parts)

    @classmethod
    def unpack(cls, raw: bytes, size: int, *, strings: bool) -> "Heavy":
        """Return a stored sketch. Raises `ValueError`."""
        counts: dict[Any, int] = {}
        try:
            (held,) = _COUNT.unpack_from(raw)
            at = _COUNT.size
            for _ in range(held):
                if strings:
                    count, length = _STRING.unpack_from(raw, at)
                    at += _STRING.size + length
                    counts[raw[at - length : at].decode("utf-8", "surrogatepass")] = count
                else:
                    value, count = _NUMBER.unpack_from(raw, at)
                    at += _NUMBER.size
                    counts[value] = count
        except struct.error as error:
            raise ValueError(f"no counters: {error}") from error
        if at != len(raw) or len(counts) != held:
            raise ValueError("counters cut short")
        return cls(size, counts)


def most_frequent(sketches: Iterable[Heavy], size: int) -> list[Any]:
    """Return the values by falling count, of equal counts by rising value."""
    counts: dict[Any, int] = {}
    for sketch in sketches:
        for value, count in sketch.counts.items():
            counts[value] = counts.get(value, 0) + count
        if len(counts) > size:
            beyond = sorted(counts.values(), reverse=True)[size]
            counts = {value: count - beyond for value, count in counts.items() if count > beyond}
    return sorted(counts, key=lambda value: (-counts[value], value))
