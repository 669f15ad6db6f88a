"""Keys that come by their words lead to the same shards as keys that are looked at one by one."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import Coded
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.log_columns import LogRows
from tidemill_features.plan import HEADER_WORDS, WORD_BYTES, ViewPlan, compile_view

STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING, nullable=True),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=1,
)
COUNT = definition.Aggregation(
    name="count",
    function=definition.AGGREGATION_FUNCTION_COUNT,
    window_ms=60_000,
    type=definition.FIELD_TYPE_INT64,
)
PLAN, PAIRS = (
    compile_view(definition.View(name="payer", stream="paid", entity=entity, features=[COUNT]), STREAM)
    for entity in (["payer"], ["payer", "at"])
)
PIECE = 3
Keys = Sequence[str | None]


def columns(keys: Keys) -> tuple[Column, Coded | None]:
    """Return a chunk's column as the offline log gives it."""
    numbers = np.arange(len(keys))
    table = pa.table({"_partition": numbers * 0, "_offset": numbers, "payer": pa.array(keys, pa.string())})
    return LogRows.before(table, {}).texts("payer")


def shards(chunks: Sequence[Keys], capacity: int, *, coded: bool, plan: ViewPlan = PLAN) -> dict[bytes, bytes]:
    """Return what is stored once chunks were folded in pieces; written before every piece that has no room."""
    view, stored, first = ViewShards(plan, "p", capacity), dict[bytes, bytes](), 0
    for keys in chunks:
        column, words = columns(keys)
        assert words is not None
        for at in range(0, len(keys), PIECE):
            rows = slice(at, at + PIECE)
            values = column.values[rows]
            offsets = np.arange(first + at, first + at + len(values))
            part = {
                "payer": Column(values, column.nulls[rows]),
                "at": Column(offsets % 2, np.zeros(len(values), np.bool_)),
            }
            by_words = {"payer": Coded(words.words, words.codes[rows])} if coded else {}
            if not view.has_room(len(values)):
                stored.update(view.dirty({0: first + at}))
                view.written()
            events = Events(np.zeros(len(values), np.int64), offsets, offsets * 1_000_000, part, by_words)
            found = view.find(events)
            view.fold(events, view.load(found, [stored.get(key) for key in found.keys], lambda _: bytes(16)))
        first += len(keys)
    stored.update(view.dirty({0: first}))
    return stored


CHUNK = st.lists(st.one_of(st.none(), st.sampled_from(["", *"abcdefghijklmnop"])), min_size=1, max_size=20)


def slots(stored: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return shards without their headers, which say when each was last written."""
    return {key: raw[HEADER_WORDS * WORD_BYTES :] for key, raw in stored.items()}


@pytest.mark.parametrize("capacity", [PIECE, 8, 100])
@settings(deadline=None, max_examples=50)
@given(chunks=st.lists(CHUNK, max_size=4))
# Of eight, two are to give way, and but one is neither unwritten nor needed.
@example(chunks=[list("ipfledecmffhjdbga")])
def test_shards_are_the_same_whether_keys_come_by_their_words_or_one_by_one_and_whatever_gives_way(
    capacity: int, chunks: list[list[str | None]]
) -> None:
    found = shards(chunks, capacity, coded=True)
    assert found == shards(chunks, capacity, coded=False)
    assert slots(found) == slots(shards(chunks, 100, coded=False))


def test_a_key_of_several_fields_is_not_found_by_the_words_of_its_first() -> None:
    found = shards([["a"] * 9], 100, coded=True, plan=PAIRS)
    assert len(found) == 2
    assert found == shards([["a"] * 9], 100, coded=False, plan=PAIRS)


def test_a_key_that_has_a_row_is_not_looked_at_again() -> None:
    view, (column, coded) = ViewShards(PLAN, "p", 100), columns(["a", "b", "a"])
    assert coded is not None
    offsets = np.arange(3)
    events = Events(offsets * 0, offsets, offsets, {"payer": column}, {"payer": coded})
    for missing in (2, 0, 0):
        found = view.find(events)
        assert len(found) == missing
        view.fold(events, view.load(found, [None] * len(found.keys), lambda _: bytes(16)))
    unseen = {"payer": Column(np.array([None] * 3), column.nulls)}
    assert view.find(Events(offsets * 0, offsets, offsets, unseen, {"payer": coded})).keys == []
    nobody = {"payer": Column(column.values, ~column.nulls)}
    events = Events(offsets * 0, offsets, offsets, nobody, {"payer": coded})
    view.fold(events, view.load(view.find(events), [], lambda _: bytes(16)))
    assert (view.counts.folded, view.counts.null_keys) == (9, 3)
