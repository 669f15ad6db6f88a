"""Columns from plain values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.expressions import Column
from tidemill_features.expressions_tree import Type
from tidemill_features.expressions_vector import DTYPES, NEUTRAL


class Coded(NamedTuple):
    """A column's distinct words, and the place of every row's among them; where it is null, of the word
    that the column holds there."""

    words: NDArray[Any]
    codes: NDArray[np.int64]


def column_of(values: Sequence[Any], kind: Type) -> Column:
    """Return a column of values of one type, None for null; timestamps are microseconds.

    Raises `OverflowError` for an integer beyond int64, `TypeError` or `ValueError` for a value of another type.
    """
    count = len(values)
    if None in values:
        nulls = np.fromiter((value is None for value in values), np.bool_, count)
        neutral = NEUTRAL[kind]
        values = [neutral if value is None else value for value in values]
    else:
        nulls = np.zeros(count, np.bool_)
    array = np.empty(count, DTYPES[kind])
    array[:] = values
    return Column(array, nulls)


def concatenate(columns: Sequence[Column]) -> Column:
    """Return columns one behind the other; at least one."""
    if len(columns) == 1:
        return columns[0]
    return Column(
        np.concatenate([column.values for column in columns]), np.concatenate([column.nulls for column in columns])
    )
