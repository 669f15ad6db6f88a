"""Mean and central moments, updated value by value and merged pairwise.

P. Pébay, "Formulas for Robust, One-Pass Parallel Computation of Covariances and Arbitrary-Order Statistical Moments",
Sandia report SAND2008-6212, 2008, eqs. 2.1 and 3.1; for the second moment the merge is that of T. Chan, G. Golub and
R. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979. Sums of squares, the
obvious way, lose every digit of the variance where the mean is large.

A state is (n, mean, M2) or (n, mean, M2, M3), n as float64. Only +, −, ×, / and √, so that every machine agrees.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

State = Sequence[Any]


def with_value(state: State, value: Any) -> tuple[Any, ...]:
    """Return the state with one value more; floats and arrays alike."""
    mean, second = state[1], state[2]
    n = state[0] + 1.0
    delta = value - mean
    part = delta / n
    term = delta * part * (n - 1.0)
    if len(state) == 3:
        return n, mean + part, second + term
    return n, mean + part, second + term, state[3] + (term * part * (n - 2.0) - 3.0 * part * second)


class Moments:
    """The update as a sequential step."""

    def many(self, state: State, values: State) -> State:
        """Return the states of many slots after a value each."""
        with np.errstate(over="ignore", invalid="ignore"):
            return with_value(state, values[0])

    def run(self, state: State, values: State) -> State:
        """Return the states of one slot after each of its values."""
        held: State = tuple(float(part) for part in state)
        found = []
        for value in values[0].tolist():
            held = with_value(held, value)
            found.append(held)
        return list(np.array(found, np.float64).reshape(len(found), len(state)).T)


def merged(first: State, second: State) -> tuple[Any, ...]:
    """Return the states of two sets of values as one; a set without values changes nothing.

    >>> one, two = (np.array([2.0]), np.array([1.5]), np.array([0.5])), (np.array([1.0]), np.array([4.5]), np.zeros(1))
    >>> [part.tolist() for part in merged(one, two)]
    [[3.0], [2.5], [6.5]]
    """
    n_1, n_2 = first[0], second[0]
    total = n_1 + n_2
    safe = np.maximum(total, 1.0)
    with np.errstate(over="ignore", invalid="ignore"):
        delta = second[1] - first[1]
        part = delta / safe
        joined = [first[1] + part * n_2, first[2] + second[2] + delta * part * n_1 * n_2]
        if len(first) == 4:
            third = first[3] + second[3] + delta * part * part * n_1 * n_2 * (n_1 - n_2)
            joined.append(third + 3.0 * part * (n_1 * second[2] - n_2 * first[2]))
    kept = [
        np.where(n_2 == 0, old, np.where(n_1 == 0, new, both))
        for old, new, both in zip(first[1:], second[1:], joined, strict=True)
    ]
    return total, *kept


def variance(state: State) -> Any:
    """Return the sample's variance, NaN below two values."""
    n = state[0]
    return np.where(n > 1, np.maximum(state[2], 0.0) / np.maximum(n - 1.0, 1.0), np.nan)


def skew(state: State) -> Any:
    """Return the population's skew g1 = √n M3 / M2^1.5, NaN where all values are equal."""
    n, second = state[0], state[2]
    spread = second > 0
    safe = np.where(spread, second, 1.0)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.where(spread, np.sqrt(n) * state[3] / (safe * np.sqrt(safe)), np.nan)
