"""Sketches keep their stated bounds, and say the same however their values were cut, stored and merged."""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tidemill_features.partials import Dtype, Kind, Partial
from tidemill_features.sketch_heavy import Heavy
from tidemill_features.sketch_quantiles import MergedQuantiles
from tidemill_features.sketches import add_values, blank, max_bytes, merge, unpack
from tidemill_testkit.effort import examples

DISTINCT = Partial(Kind.DISTINCT, Dtype.STRING, 0, 0)
QUANTILES = Partial(Kind.QUANTILES, Dtype.FLOAT, 0, 0)
HEAVY = Partial(Kind.HEAVY, Dtype.INT, 0, 0, size=32)


def sketched(partial: Partial, values: Sequence[Any], splits: Sequence[int] = ()) -> bytes:
    """Return the stored sketch of values, stored and taken up again at each split."""
    sketch, first = blank(partial), 0
    for end in [*sorted(split for split in splits if split < len(values)), len(values)]:
        sketch.add(add_values(partial, np.array(values[first:end])).tolist())
        sketch, first = unpack(partial, sketch.pack()), end
    return sketch.pack()


def quantile(raw: bytes, q: float) -> float:
    merged = merge(QUANTILES, [raw])
    assert isinstance(merged, MergedQuantiles)
    return merged.quantile(q)


def counts_of(raw: bytes) -> dict[int, int]:
    return Heavy.unpack(raw, HEAVY.size, strings=False).counts


@pytest.mark.parametrize("count", [0, 1, 7, 100, 191, 193, 1_000, 20_000])
def test_distinct_counts_stay_within_four_standard_errors_and_do_not_hang_on_order_or_storage(count: int) -> None:
    values = [f"user-{number}" for number in range(count)] * 2
    random.Random(count).shuffle(values)
    whole = merge(DISTINCT, [sketched(DISTINCT, values)])
    shuffled = sorted(values)
    assert whole == merge(DISTINCT, [sketched(DISTINCT, shuffled, range(0, len(values), max(1, len(values) // 9)))])
    assert isinstance(whole, int)
    assert abs(whole - count) <= (4 * 0.023 * count if count > 190 else 0)
    halves = [sketched(DISTINCT, values[::2]), sketched(DISTINCT, values[1::2])]
    assert abs(int(merge(DISTINCT, halves)) - count) <= 4 * 0.023 * count  # type: ignore[arg-type]


@settings(max_examples=examples(60), deadline=None)
@given(seed=st.integers(0, 2**32))
@example(seed=1)
def test_a_distinct_count_of_many_small_slots_does_not_hang_on_batches_nor_on_the_order_of_slots(seed: int) -> None:
    # Each slot is an exact set of hashes; together they are more than a set holds.
    chance = random.Random(seed)
    slots = [
        [chance.randrange(10**9) for _ in range(chance.randrange(30, 191))] for _ in range(chance.randrange(2, 27))
    ]
    whole = [sketched(DISTINCT, values) for values in slots]
    split = [sketched(DISTINCT, values, chance.choices(range(190), k=9)) for values in slots]
    mixed = chance.sample(split, len(split))
    assert merge(DISTINCT, whole) == merge(DISTINCT, split) == merge(DISTINCT, mixed)


def test_an_empty_string_is_a_value_and_one_is_no_number() -> None:
    assert merge(DISTINCT, [sketched(DISTINCT, ["", "1", "\ud800"])]) == 3


FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(values=st.lists(FLOATS, min_size=1, max_size=60), q=st.floats(0, 1), splits=st.lists(st.integers(0, 60)))
def test_quantiles_are_within_one_per_cent_of_any_floats_and_do_not_hang_on_order_or_storage(
    values: list[float], q: float, splits: list[int]
) -> None:
    sketch = sketched(QUANTILES, values, splits)
    assert sketch == sketched(QUANTILES, sorted(values))
    exact = sorted(values)[int(q * (len(values) - 1))]
    assert abs(quantile(sketch, q) - exact) <= 0.010001 * abs(exact) + 1e-322


def test_quantiles_of_more_bins_than_fit_are_right_for_the_larger_values_in_any_order() -> None:
    chance = random.Random(3)
    values = [sign * 10 ** chance.uniform(-100, 100) for _ in range(4_000) for sign in (1, -1)]
    sketch = sketched(QUANTILES, values, range(0, 8_000, 700))
    assert sketch == sketched(QUANTILES, sorted(values))
    assert len(sketch) <= max_bytes(QUANTILES)
    for q in (0.0, 0.02, 0.97, 1.0):
        exact = sorted(values)[int(q * 7_999)]
        assert abs(quantile(sketch, q) - exact) <= 0.010001 * abs(exact)


@pytest.mark.parametrize("exponent", [1.1, 1.5])
def test_frequent_values_are_found_and_counts_are_too_low_by_a_known_bound(exponent: float) -> None:
    chance = np.random.default_rng(5)
    values = chance.zipf(exponent, 30_000).clip(0, 10_000).tolist()
    sketches = [sketched(HEAVY, values[part::4], [100, 5_000]) for part in range(4)]
    found = merge(HEAVY, sketches)
    assert isinstance(found, list)
    counts = Counter(values)
    bound = len(values) / (HEAVY.size + 1)
    assert all(value in found for value, count in counts.items() if count > bound)
    whole = counts_of(sketched(HEAVY, values, [17, 9_000]))
    assert all(counts[value] - bound <= count <= counts[value] for value, count in whole.items())
    assert whole == counts_of(sketched(HEAVY, values))


def test_up_to_its_counters_a_top_k_is_exact_with_ties_by_value() -> None:
    sketches = [sketched(HEAVY, [3, 1, 2, 2]), sketched(HEAVY, [3, 9])]
    assert merge(HEAVY, sketches) == [2, 3, 1, 9]


@pytest.mark.parametrize("partial", [DISTINCT, QUANTILES, HEAVY, Partial(Kind.HEAVY, Dtype.STRING, 0, 0, size=32)])
def test_bytes_that_are_no_sketch_are_refused(partial: Partial) -> None:
    values = ["a", "b"] if partial.dtype is Dtype.STRING else [1, 2]
    good = sketched(partial, values)
    for raw in (good[:-1], good[:3], b"\xff" * len(good), b""):
        with pytest.raises(ValueError):
            unpack(partial, raw)
