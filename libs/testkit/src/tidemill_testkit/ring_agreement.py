"""Live rings, the offline twin and brute force, compared as of some moments."""

import struct
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.plan import EDGE_EVENTS, compile_view

from tidemill_testkit.agreement import agree
from tidemill_testkit.brute_force import Answer, Logged, Wanted
from tidemill_testkit.ring_world import RingWorld, answers

# What an expression says of an event's fields, by its text.
Meanings = Mapping[str, Callable[[dict[str, Any]], Any]]
NOTHING: Meanings = MappingProxyType({})


class Lived(NamedTuple):
    """How a worker came by its rings: sizes of batches, crashes, and by partition the offsets up to which it read."""

    sizes: Sequence[int]
    crashes: Sequence[str]
    cut: Sequence[int]


def wanted_of(declared: definition.View, stream: definition.Stream, meanings: Meanings = NOTHING) -> list[Wanted]:
    """Return what brute force is told of a view's features; a text without a meaning is the name of a field."""
    plan = compile_view(declared, stream)
    by_name = {part.name: part for part in declared.features}
    found = []
    for feature in plan.features:
        part, ring = by_name[feature.name.partition(".")[0]], plan.rings[feature.ring]
        found.append(
            Wanted(
                feature.name,
                definition.AggregationFunction.Name(part.function).removeprefix("AGGREGATION_FUNCTION_").lower(),
                feature.window_us,
                ring.hop_us,
                ring.slots,
                value=meanings.get(part.expression, itemgetter(part.expression)) if part.expression else None,
                where=meanings.get(part.where, itemgetter(part.where)) if part.where else None,
                exact_age=not part.window_ms,
                element=feature.element,
                edges=tuple(part.edges),
                quantile=part.quantile,
                half_life_us=part.half_life_ms * 1000,
                edge_events=(declared.edge_events or EDGE_EVENTS) if ring.raw else 0,
                ahead_us=stream.max_future_ms * 1000,
            )
        )
    return found


def assert_all_agree(world: RingWorld, log: Sequence[Logged], lived: Lived, moments: Sequence[int]) -> None:
    """Compare rings and offline twin bit for bit, and both with brute force, as of some moments."""
    seen = [record for record in log if record.offset < lived.cut[record.partition]]
    store = world.live(seen, lived.sizes, lived.crashes)
    for as_of_us in moments:
        read, twin = world.read_view(store, as_of_us), world.offline_view(log, as_of_us, lived.cut)
        assert read.head_excluded.tolist() == twin.head_excluded.tolist()
        live, offline = answers(read.features), answers(twin.features)
        assert [[_bits(one) for one in row] for row in live] == [[_bits(one) for one in row] for row in offline]
        for row, want in zip(live, world.expected(seen, as_of_us), strict=True):
            for wanted, got, answer in zip(world.wanted, row, want, strict=True):
                assert agree(wanted, got, answer), (wanted.name, as_of_us, got, answer)


def _bits(answer: Answer) -> tuple[str, bool, Any]:
    value = answer.value
    if isinstance(value, float):
        return answer.status, answer.coarse, struct.pack("<d", value)
    return answer.status, answer.coarse, value if value is None or isinstance(value, str) else int(value)
