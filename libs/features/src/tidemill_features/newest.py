"""The newest k of a slot, newest first: by event time, of equal times the higher offset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Newest:
    """One event into the newest k, as a sequential step.

    A state is (keys int64[slots, k], payloads int64[slots, k]), keys falling; events come in offset order, so that of
    equal keys the later goes in front.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._places = np.arange(size)

    def many(self, state: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        """Return the states of many slots after an event each."""
        keys, payloads = state
        place = (keys > values[0][:, None]).sum(axis=1)[:, None]
        return [
            np.where(self._places < place, held, np.where(self._places == place, new[:, None], _moved(held)))
            for held, new in ((keys, values[0]), (payloads, values[1]))
        ]

    def run(self, state: Sequence[Any], values: Sequence[Any]) -> Sequence[Any]:
        """Return the states of one slot after each of its events."""
        keys, payloads, size = state[0].tolist(), state[1].tolist(), self._size
        found_keys, found_payloads = [], []
        for key, payload in zip(values[0].tolist(), values[1].tolist(), strict=True):
            if key >= keys[-1]:
                place = size - 1
                while place and keys[place - 1] <= key:
                    place -= 1
                keys.insert(place, key)
                payloads.insert(place, payload)
                del keys[size:], payloads[size:]
            found_keys.append(tuple(keys))
            found_payloads.append(tuple(payloads))
        shape = (len(found_keys), size)
        return [np.array(found, np.int64).reshape(shape) for found in (found_keys, found_payloads)]


def _moved(held: Ints) -> Ints:
    """Return every entry one place further back; the last falls out."""
    return np.concatenate((held[:, :1], held[:, :-1]), axis=1)
