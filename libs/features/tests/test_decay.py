"""Weights of decaying aggregates: right to an ulp or two, over all that they may be asked for."""

import math

import numpy as np
import pytest
from tidemill_features.decay import exp2, weights


def test_powers_of_two_are_right_to_two_units_in_the_last_place() -> None:
    x = np.concatenate([np.linspace(-1_020.0, 1_000.0, 20_011), np.linspace(-2.0, 2.0, 4_001)])
    wanted = np.array([math.exp2(one) for one in x.tolist()])
    assert np.all(np.abs(exp2(x) - wanted) <= 2 * np.spacing(wanted))


@pytest.mark.parametrize("whole", [-1_074, -1_023, -1_022, -64, 0, 64, 1_000])
def test_whole_powers_are_exact_down_to_the_smallest_float(whole: int) -> None:
    assert exp2(float(whole)) == math.ldexp(1.0, whole)


def test_what_is_older_than_floats_go_weighs_nothing() -> None:
    assert exp2(-2_000.0) == 0.0
    assert weights(np.array([0, 1_000, 3_000]), 1_000).tolist() == [1.0, 0.5, 0.125]
