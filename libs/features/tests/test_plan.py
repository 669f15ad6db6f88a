"""What a view is compiled to: hops, shared partials, memory; and what is refused, by name."""

from typing import Any

import numpy as np
import pytest
from tidemill_contracts.bounds import MAX_EDGES, MAX_K
from tidemill_contracts.definition.v1 import definition_pb2 as definition
from tidemill_features.hops import hop_ms, slots_of
from tidemill_features.layout import (
    Checkpoint,
    LayoutError,
    checkpoint_key,
    empty_shard,
    entity_key,
    shard_prefix,
    shard_suffix,
    to_words,
)
from tidemill_features.plan import PlanError, compile_view

STREAM = definition.Stream(
    name="paid",
    fields=[
        definition.Field(name="payer", type=definition.FIELD_TYPE_STRING),
        definition.Field(name="amount", type=definition.FIELD_TYPE_FLOAT64),
        definition.Field(name="tip", type=definition.FIELD_TYPE_FLOAT64, nullable=True),
        definition.Field(name="at", type=definition.FIELD_TYPE_TIMESTAMP),
    ],
    key_field="payer",
    time_field="at",
    partitions=2,
)
F = definition.AggregationFunction.Value


def view(*aggregations: tuple[str, str, str, int], max_age_ms: int = 0, entity: str = "payer") -> definition.View:
    return definition.View(
        name="v",
        stream="paid",
        entity=[entity],
        max_age_ms=max_age_ms,
        features=[
            definition.Aggregation(
                name=name,
                function=F(f"AGGREGATION_FUNCTION_{function}"),
                expression=text,
                window_ms=hours * 3_600_000,
                type=definition.FIELD_TYPE_FLOAT64,
            )
            for name, function, text, hours in aggregations
        ],
    )


@pytest.mark.parametrize(
    ("window_s", "hop_s"),
    [(1, 1), (60, 5), (120, 10), (600, 30), (7_200, 300), (21_600, 1_800), (86_400, 3_600), (604_800, 21_600)],
)
def test_a_hop_divides_its_window_in_at_least_twelve(window_s: int, hop_s: int) -> None:
    assert hop_ms(window_s * 1000) == hop_s * 1000
    assert slots_of(window_s, hop_s) == -(-window_s // hop_s) + 2


def test_windows_of_one_hop_class_share_a_ring_and_what_they_count() -> None:
    plan = compile_view(view(("a", "MEAN", "amount", 1), ("b", "SUM", "amount", 1), ("c", "COUNT", "", 1)), STREAM)
    assert len(plan.rings) == 1
    # Amount is never null: its values are counted by the events, and mean and sum share their sum.
    assert len(plan.rings[0].partials) == 2
    assert plan.bytes_per_key == (8 + plan.rings[0].slots * 4) * 8


def test_a_view_reads_its_entity_its_expressions_and_their_conditions() -> None:
    declared = view(("a", "SUM", "amount", 1))
    declared.features[0].where = "tip > 0"
    assert compile_view(declared, STREAM).columns == ("amount", "payer", "tip")


def test_without_an_age_of_its_own_a_view_is_held_to_its_longest_window() -> None:
    plans = [
        compile_view(view(("a", "COUNT", "", 24), ("b", "COUNT", "", 1), max_age_ms=age), STREAM) for age in (0, 7)
    ]
    assert [plan.max_age_us for plan in plans] == [24 * 3_600_000_000, 7_000]


def test_a_nullable_column_is_counted_by_itself() -> None:
    plan = compile_view(view(("a", "MEAN", "tip", 2), ("c", "COUNT", "", 2)), STREAM)
    assert len(plan.rings[0].partials) == 3


@pytest.mark.parametrize(
    ("declared", "why"),
    [
        (view(("a", "SUM", "payer", 1)), "no number"),
        (view(("a", "MAX", "payer", 1)), "orders strings"),
        (view(("a", "MEAN", "", 1)), "needs an expression"),
        (view(("a", "COUNT", "", 0)), "has no window"),
        (view(("a", "LAST", "amount", 0)), "has no window"),
        (view(("a", "COUNT", "", 24 * 800)), "slots"),
        (view(("a", "COUNT", "", 1), entity="amount"), "is a float"),
        (view(("a", "COUNT", "", 1), entity="nobody"), "no field"),
    ],
)
def test_what_cannot_be_computed_is_refused_with_the_reason(declared: definition.View, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        compile_view(declared, STREAM)


@pytest.mark.parametrize("function", ["EWMA", "DECAYED_SUM"])
def test_a_window_and_its_hop_span_at_most_a_thousand_half_lives(function: str) -> None:
    declared = view(("a", function, "amount", 1))
    # 940 s and a hop of 60 s.
    declared.features[0].window_ms, declared.features[0].half_life_ms = 940_000, 1_000
    compile_view(declared, STREAM)
    declared.features[0].half_life_ms = 999
    with pytest.raises(
        PlanError, match="feature 'a' has a window that spans, with its hop, more than 1,000 half-lives"
    ):
        compile_view(declared, STREAM)


def test_a_hop_spans_at_most_64_half_lives() -> None:
    # Windows of six hours move in hops of half an hour.
    declared = view(("a", "EWMA", "amount", 6))
    declared.features[0].half_life_ms = 1_800_000 // 64
    compile_view(declared, STREAM)
    for half_life_ms, why in (
        (1_800_000 // 64 - 1, "has a half-life below its hop of 1800 s / 64"),
        (0, "needs a half"),
    ):
        declared.features[0].half_life_ms = half_life_ms
        with pytest.raises(PlanError, match=f"feature 'a' {why}"):
            compile_view(declared, STREAM)


@pytest.mark.parametrize(
    ("function", "fits", "refused", "why"),
    [
        ("HISTOGRAM", {"edges": range(MAX_EDGES)}, {"edges": range(MAX_EDGES + 1)}, "takes 1 to 64 edges that rise"),
        ("HISTOGRAM", {"edges": [1]}, {"edges": []}, "takes 1 to 64 edges that rise"),
        ("HISTOGRAM", {"edges": [1, 2]}, {"edges": [1, 1]}, "takes 1 to 64 edges that rise"),
        ("LAST_K", {"k": MAX_K}, {"k": MAX_K + 1}, "takes a k from 1 to 32"),
        ("LAST_K", {"k": 1}, {"k": 0}, "takes a k from 1 to 32"),
        ("QUANTILE", {"quantile": 1.0}, {"quantile": 1.0001}, "takes a quantile from 0 to 1"),
        ("QUANTILE", {"quantile": 0.0}, {"quantile": -0.0001}, "takes a quantile from 0 to 1"),
    ],
)
def test_numbers_of_aggregates_are_held_to_their_bounds(
    function: str, fits: dict[str, Any], refused: dict[str, Any], why: str
) -> None:
    def declared(numbers: dict[str, Any]) -> definition.View:
        wanted = view(("a", function, "amount", 1))
        wanted.budget_bytes = 1_000_000
        wanted.features[0].MergeFrom(definition.Aggregation(**numbers))
        return wanted

    compile_view(declared(fits), STREAM)
    with pytest.raises(PlanError, match=f"feature 'a' {why}"):
        compile_view(declared(refused), STREAM)


def test_keys_are_what_they_were() -> None:
    """A golden: another byte here is another format."""
    ring = compile_view(view(("a", "COUNT", "", 2)), STREAM).rings[0]
    assert shard_prefix("p", "sha256:00112233445566778899") + b"JFK" + shard_suffix(ring, 3) == (
        b"tm1:{p:0011223344556677:JFK}:300:3"
    )
    assert checkpoint_key("p", "g", "events.paid", 1) == b"tm1:checkpoint:{p:g}:events.paid:1"


@pytest.mark.parametrize("pair", [(["a", "b"], ["ab", ""]), (["1:a", "b"], ["1", "a:b"]), (["a", 1], ["a1", ""])])
def test_different_composite_keys_have_different_bytes(pair: tuple[list[str | int], list[str | int]]) -> None:
    assert entity_key(pair[0]) != entity_key(pair[1])


def test_a_checkpoint_survives_its_bytes() -> None:
    point = Checkpoint(bytes(range(16)), 7, 3, -5, frozenset({b"12345678", b"abcdefgh"}))
    assert Checkpoint.unpack(point.pack()) == point
    for wrong in (b"", point.pack()[:-1], point.pack() + b"\0", b"X" + point.pack()[1:]):
        with pytest.raises(LayoutError):
            Checkpoint.unpack(wrong)


def test_a_shard_of_another_layout_is_refused_and_never_misread() -> None:
    ring = compile_view(view(("a", "COUNT", "", 2)), STREAM).rings[0]
    other = compile_view(view(("a", "SUM", "tip", 2)), STREAM).rings[0]
    blank = empty_shard(ring, bytes(16), 0).tobytes()
    assert np.array_equal(to_words([None, blank], ring, blank)[0], to_words([blank], ring, blank)[0])
    for raw in (empty_shard(other, bytes(16), 0).tobytes(), blank[:-8], b"\0" * len(blank)):
        with pytest.raises(LayoutError):
            to_words([raw], ring, blank)
