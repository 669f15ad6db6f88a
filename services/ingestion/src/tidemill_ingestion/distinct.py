"""How many distinct values there were, about, in constant memory: exact while they are few, then HyperLogLog; pure.

Source: Flajolet, Fusy, Gandouet, Meunier, "HyperLogLog", AofA 2007, figure 3, with 64-bit hashes instead of its
correction for large ranges. With 1,024 registers the standard error is 1.04 / sqrt(1024) = 3.3 %.
"""

from collections.abc import Hashable, Sequence

import numpy as np

_EXACT = 256
_INDEX_BITS = 10
_REGISTERS = 1 << _INDEX_BITS
_REST_BITS = 64 - _INDEX_BITS - 1
_ALPHA = 0.7213 / (1 + 1.079 / _REGISTERS)
_REST = np.uint64((1 << _REST_BITS) - 1)


class Distinct:
    """Counts the distinct among values that come in batches."""

    __slots__ = ("_few", "_registers")

    def __init__(self) -> None:
        self._few: set[int] = set()
        self._registers: np.ndarray[tuple[int], np.dtype[np.int8]] | None = None

    def add(self, values: Sequence[Hashable]) -> None:
        """Take in values; hashes decide, so that numbers that are equal are one."""
        if self._registers is None:
            self._few.update(map(hash, values))
            if len(self._few) <= _EXACT:
                return
            self._registers = np.zeros(_REGISTERS, np.int8)
            hashes = np.fromiter(self._few, np.int64, len(self._few))
            self._few.clear()
        else:
            hashes = np.fromiter(map(hash, values), np.int64, len(values))
        mixed = _mix(hashes.view(np.uint64))
        # The exponent of a whole number is its length in bits; a number has to be below 2**53 for it to be exact.
        length = np.frexp((mixed & _REST).astype(np.float64))[1]
        np.maximum.at(self._registers, mixed >> np.uint64(64 - _INDEX_BITS), (_REST_BITS + 1 - length).astype(np.int8))

    def estimate(self) -> float:
        """Return the number of distinct values, exact up to 256."""
        if self._registers is None:
            return float(len(self._few))
        empty = int(np.count_nonzero(self._registers == 0))
        estimate = _ALPHA * _REGISTERS**2 / float(np.sum(np.exp2(-self._registers.astype(np.float64))))
        if estimate <= 2.5 * _REGISTERS and empty:
            return _REGISTERS * float(np.log(_REGISTERS / empty))
        return estimate


def _mix(hashes: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Spread hashes over 64 bits: Python's hash of a whole number is that number (splitmix64, Steele et al. 2014)."""
    mixed = hashes + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
