"""Entities' numbers: equal for equal keys and nothing else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import column_of
from tidemill_features.entities import UNKNOWN, Entities
from tidemill_features.expressions import Column

TEXT, INT, BOOL = definition.FIELD_TYPE_STRING, definition.FIELD_TYPE_INT64, definition.FIELD_TYPE_BOOL
PARTS: dict[int, st.SearchStrategy[Any]] = {
    TEXT: st.one_of(st.none(), st.sampled_from(["", "a", "b", "a\0"])),
    INT: st.one_of(st.none(), st.sampled_from([0, 1, -(2**63), 2**63 - 1])),
    BOOL: st.one_of(st.none(), st.booleans()),
}


def columns(keys: list[tuple[object, ...]], kinds: tuple[int, ...]) -> list[Column]:
    return [column_of([key[place] for key in keys], kind) for place, kind in enumerate(kinds)]  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [(TEXT,), (INT,), (TEXT, INT), (BOOL, TEXT, INT)])
@given(data=st.data())
def test_numbers_are_equal_exactly_where_keys_are_and_null_parts_are_unknown(
    kinds: tuple[int, ...], data: st.DataObject
) -> None:
    keys = st.lists(st.tuples(*(PARTS[kind] for kind in kinds)), max_size=12)
    known, asked = data.draw(keys), data.draw(keys)
    entities = Entities(columns(known, kinds))
    numbers = dict(zip(known, entities.codes.tolist(), strict=True))
    whole = [key for key in numbers if None not in key]
    assert all(numbers[key] == UNKNOWN for key in numbers if None in key)
    assert len({numbers[key] for key in whole}) == len(whole)
    assert UNKNOWN not in {numbers[key] for key in whole}
    found = entities.find(columns(asked, kinds)).tolist()
    assert found == [numbers.get(key, UNKNOWN) for key in asked]


def test_no_events_know_nobody() -> None:
    empty = Entities([column_of([], TEXT), column_of([], INT)])
    assert not len(empty.codes)
    assert empty.find([column_of(["a"], TEXT), column_of([1], INT)]).tolist() == [UNKNOWN]
    assert empty.codes.dtype == np.int64
