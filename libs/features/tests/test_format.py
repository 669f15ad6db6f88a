"""Stored bytes are what they were: rings of format version 1 are read as they lie, and folded on."""

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import column_of
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import LayoutError
from tidemill_features.plan import compile_view
from tidemill_features.reader import Lookup, Reader

SECOND = 1_000_000
TOPIC_ID = bytes(range(16))
TYPES = {
    "payer": definition.FIELD_TYPE_STRING,
    "amount": definition.FIELD_TYPE_FLOAT64,
    "units": definition.FIELD_TYPE_INT64,
    "note": definition.FIELD_TYPE_STRING,
    "at": definition.FIELD_TYPE_TIMESTAMP,
}
STREAM = definition.Stream(
    name="paid",
    fields=[definition.Field(name=n, type=t, nullable=n in ("amount", "note")) for n, t in TYPES.items()],
    key_field="payer",
    time_field="at",
    partitions=2,
)


def aggregation(name: str, function: str, expression: str = "", **options: object) -> definition.Aggregation:
    return definition.Aggregation(
        name=name,
        function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
        expression=expression,
        window_ms=3_000,
        type=definition.FIELD_TYPE_FLOAT64 if expression in ("", "amount") else TYPES[expression],
        **options,  # type: ignore[arg-type]
    )


def integer(one: definition.Aggregation) -> definition.Aggregation:
    one.type = definition.FIELD_TYPE_INT64
    return one


# Every aggregate that format version 1 began with.
FEATURES = [
    integer(aggregation("n", "COUNT")),
    integer(aggregation("big", "COUNT", where="amount > 1")),
    aggregation("mean", "MEAN", "amount"),
    aggregation("units", "SUM", "units"),
    aggregation("least", "MIN", "amount"),
    aggregation("most", "MAX", "units"),
    aggregation("newest", "LAST", "amount"),
    aggregation("note", "LAST", "note"),
]
PLAN = compile_view(definition.View(name="golden", stream="paid", entity=["payer"], features=FEATURES), STREAM)
# A shard of `ann` in partition 0, written by the first release from ROWS, everything before offset 8 included.
KEY = b"tm1:{p:237192ee32e70ca6:ann}:1:0"
GOLDEN = bytes.fromhex(
    """
    544d524701000000000102030405060708090a0b0c0d0e0f0000000005000000080000000000000040548900000000004f1c875ec3bd4d68
    040000000f000000000000000000008000000000000000800000000000000000000000000000000000000000000000000000000000000000
    0000000000000000000000000000f07f00000000000000800000000000000080ffffffffffffffff00000000000000000000000000000080
    ffffffffffffffff0000000000000000010000000000000040420f000000000001000000000000000100000000000000000000000000f83f
    01000000000000000200000000000000000000000000f83f020000000000000040420f00000000000300000000000000000000000000f83f
    40420f000000000003000000000000000000000003000000020000000000000085841e000000000002000000000000000000000000000000
    000000000000d0bf01000000000000000400000000000000000000000000d0bf070000000000000084841e00000000000600000000000000
    000000000000d0bf84841e000000000006000000000000000300000000000000000000000000008000000000000000800000000000000000
    0000000000000000000000000000000000000000000000000000000000000000000000000000f07f00000000000000800000000000000080
    ffffffffffffffff00000000000000000000000000000080ffffffffffffffff000000000000000009000000000000004054890000000000
    0100000000000000010000000000000000000000000044400100000000000000010000000000000000000000000044400100000000000000
    40548900000000000700000000000000000000000000444040548900000000000700000000000000030000000100000068c3a97a
    """
)
ROWS = [
    (3, 1 * SECOND, 1.5, 2, "hé"),
    (4, 2 * SECOND + 5, None, 7, None),
    (6, 2 * SECOND + 4, -0.25, -3, ""),
    (7, 9 * SECOND, 40.0, 1, "z"),
]


def events_of(rows: list[tuple[int, int, float | None, int, str | None]]) -> Events:
    """Return rows as events."""
    offsets, times, amounts, units, notes = zip(*rows, strict=True)
    columns = {
        "payer": column_of(["ann"] * len(rows), TYPES["payer"]),
        "amount": column_of(amounts, TYPES["amount"]),
        "units": column_of(units, TYPES["units"]),
        "note": column_of(notes, TYPES["note"]),
    }
    return Events(np.zeros(len(rows), np.int64), np.array(offsets), np.array(times), columns)


def folded(rows: list[tuple[int, int, float | None, int, str | None]], raw: bytes | None, next_offset: int) -> bytes:
    """Return the shard after more rows."""
    shards, events = ViewShards(PLAN, "p", 8), events_of(rows)
    found = shards.find(events)
    assert found.missing == {0: ["ann"]}
    assert found.keys == [KEY]
    shards.fold(events, shards.load(found, [raw], lambda _: TOPIC_ID))
    ((key, value),) = shards.dirty({0: next_offset})
    assert key == KEY
    return value


def test_shards_are_written_as_the_first_release_wrote_them() -> None:
    assert folded(ROWS, None, 8) == GOLDEN


def test_shards_of_the_first_release_are_folded_on() -> None:
    first = folded(ROWS[:2], None, 5)
    assert folded(ROWS[2:], first, 8) == GOLDEN
    # What the header includes is skipped.
    assert folded(ROWS, GOLDEN, 8) == GOLDEN


def test_shards_of_the_first_release_are_read() -> None:
    reader = Reader([PLAN], project="p")
    request = reader.request([Lookup("golden", [("ann",)])])
    raws = [GOLDEN if key == KEY else None for key in request.keys]
    values = {f.name: f.values[0] for f in reader.values(request, raws, 9 * SECOND).views[0].features}
    assert values == {
        "n": 1, "big": 1, "mean": 40.0, "units": 1, "least": 40.0, "most": 1, "newest": 40.0, "note": "z"
    }  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        aggregation("newest", "FIRST", "amount"),
        aggregation("newest", "LAST_K", "amount", k=2),
        aggregation("newest", "SKEW", "amount"),
        aggregation("newest", "EWMA", "amount", half_life_ms=1_000),
        aggregation("newest", "EWMA", "amount", half_life_ms=2_000),
        integer(aggregation("newest", "APPROX_DISTINCT", "amount")),
        integer(aggregation("newest", "HISTOGRAM", "amount", edges=[1.0])),
    ],
)
def test_every_other_layout_has_another_fingerprint_and_refuses_these_bytes(changed: definition.Aggregation) -> None:
    features = [changed if one.name == "newest" else one for one in FEATURES]
    other = compile_view(definition.View(name="golden", stream="paid", entity=["payer"], features=features), STREAM)
    assert other.hash != PLAN.hash
    assert other.rings[0].fingerprint != PLAN.rings[0].fingerprint
    reader = Reader([other], project="p")
    request = reader.request([Lookup("golden", [("ann",)])])
    with pytest.raises(LayoutError):
        reader.values(request, [GOLDEN, *[None] * (len(request.keys) - 1)], 9 * SECOND)
    shards = ViewShards(other, "p", 8)
    with pytest.raises(LayoutError):
        shards.load(shards.find(events_of(ROWS)), [GOLDEN], lambda _: TOPIC_ID)
