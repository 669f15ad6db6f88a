"""Shards that are loaded, folded and dumped together are those of one at a time."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.columns import column_of
from tidemill_features.expressions import Column
from tidemill_features.fold import Events, ViewShards
from tidemill_features.layout import LayoutError
from tidemill_features.plan import ViewPlan, compile_view

TEXT = definition.FIELD_TYPE_STRING
STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=TEXT),
        definition.Field(name="note", type=TEXT),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=2,
)
TOPIC_IDS = {0: bytes(range(16)), 1: bytes(range(16, 32))}
# Dumped in several lots.
PAYERS = [f"payer-{number}" for number in range(1_000)]
SECOND = 1_000_000


def plan(function: str) -> ViewPlan:
    """Return a view of two rings; shards with strings are not all of one length."""
    view = definition.View(name="payer", stream="paid", entity=["payer"])
    for window_ms in (60_000, 86_400_000):
        view.features.add(
            name=f"{function.lower()}_{window_ms}",
            function=definition.AggregationFunction.Value(f"AGGREGATION_FUNCTION_{function}"),
            window_ms=window_ms,
            expression="note" if function == "LAST" else "",
            type=TEXT if function == "LAST" else definition.FIELD_TYPE_INT64,
        )
    return compile_view(view, STREAM)


def events(payers: Sequence[str], offset: int) -> Events:
    """Return an event of each, in partitions by turns."""
    offsets = np.arange(offset, offset + len(payers))
    notes = [f"{payer} {offset}"[: 6 + number % 9] for number, payer in enumerate(payers)]
    columns = {"payer": column_of(payers, TEXT), "note": column_of(notes, TEXT)}
    partition = np.fromiter((int(payer[-1]) % 2 for payer in payers), np.int64, len(payers))
    return Events(partition, offsets, offsets * SECOND, columns)


def take(shards: ViewShards, batch: Events, stored: Mapping[bytes, bytes], topics: Mapping[int, bytes]) -> None:
    """Load and fold."""
    found = shards.find(batch)
    shards.fold(batch, shards.load(found, [stored.get(key) for key in found.keys], topics.__getitem__))


def folded(view: ViewPlan, parts: Sequence[Events], stored: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return what is stored after some batches."""
    shards = ViewShards(view, "p", 2_000)
    for part in parts:
        take(shards, part, stored, TOPIC_IDS)
    return dict(shards.dirty({0: 5_000, 1: 5_000}))


def alone(batch: Events) -> list[Events]:
    """Return each event as a batch of its own."""
    found = []
    for number in range(len(batch)):
        at = slice(number, number + 1)
        columns = {name: Column(column.values[at], column.nulls[at]) for name, column in batch.columns.items()}
        found.append(Events(batch.partition[at], batch.offset[at], batch.event_us[at], columns))
    return found


@pytest.mark.parametrize("function", ["COUNT", "LAST"])
def test_shards_of_one_batch_are_those_of_its_events_one_by_one(function: str) -> None:
    view, first = plan(function), events(PAYERS, 0)
    stored = folded(view, [first], {})
    assert len(stored) == len(view.rings) * len(PAYERS)
    assert stored == folded(view, alone(first), {})
    # Some are stored, some are new.
    more = events([*PAYERS[::3], "other-0", "other-1"], 9_000)
    assert folded(view, [more], stored) == folded(view, alone(more), stored)


def test_a_shard_of_another_topic_among_many_is_refused_by_its_name() -> None:
    view, batch = plan("COUNT"), events(PAYERS, 0)
    stored = folded(view, [batch], {})
    with pytest.raises(LayoutError, match="'payer-1' in partition 1 was folded from another topic"):
        take(ViewShards(view, "p", 2_000), batch, stored, {**TOPIC_IDS, 1: TOPIC_IDS[1][:8] + bytes(8)})


def test_a_shard_cut_short_among_many_is_refused() -> None:
    for function in ("COUNT", "LAST"):
        view, batch = plan(function), events(PAYERS, 0)
        stored = folded(view, [batch], {})
        key = list(stored)[500]
        with pytest.raises(LayoutError, match="cut short"):
            take(ViewShards(view, "p", 2_000), batch, {**stored, key: stored[key][:-1]}, TOPIC_IDS)
