"""Sums of integers are Python's as long as they fit into int64, and beyond from where they do not."""

import random

import numpy as np
import pytest
from tidemill_features.whole_sums import BEYOND, WHOLE_SUM

LARGE = [2**63 - 1, -(2**63) + 1, 2**62, -(2**62), 2**61]
# Values of one size: those of which no sum leaves the range, those of which one just may, and those of which most do.
SIZES = {"small": [0, 1, -1, 5, 10**9], "near": [0, 1, -1, 2**58, -(2**58)], "large": [0, 1, -1, *LARGE, BEYOND]}


def plainly(values: list[int]) -> list[int]:
    """Return the running sums; one that has left the range stays beyond."""
    total, found = 0, []
    for value in values:
        total = BEYOND if BEYOND in (total, value) or abs(total + value) >= 2**63 else total + value
        found.append(total)
    return found


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(40))
def test_running_sums_are_those_of_plain_python_along_either_axis(seed: int, size: str) -> None:
    dice = random.Random(f"{seed} {size}")
    rows = [dice.choices(SIZES[size], k=30) for _ in range(dice.choice([1, 4]))]
    table = np.array(rows, np.int64)
    wanted = [plainly(row) for row in rows]
    assert WHOLE_SUM.accumulate(table, axis=1).tolist() == wanted
    assert WHOLE_SUM.accumulate(np.ascontiguousarray(table.T)).T.tolist() == wanted
    assert WHOLE_SUM.accumulate(table[0]).tolist() == wanted[0]
    assert table.tolist() == rows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(40))
def test_values_are_added_to_their_places_in_their_order(seed: int, size: str) -> None:
    dice = random.Random(f"{seed} {size}")
    places, values = dice.choices(range(4), k=60), dice.choices(SIZES[size], k=60)
    words = np.zeros(6, np.int64)
    for first in range(0, 60, 20):
        batch = slice(first, first + 20)
        WHOLE_SUM.at(words, np.array(places[batch]), np.array(values[batch], np.int64))
    mine = [[value for place, value in zip(places, values, strict=True) if place == one] for one in range(6)]
    assert words.tolist() == [(plainly(one) or [0])[-1] for one in mine]
