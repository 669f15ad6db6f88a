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
from tidemill_features.sketch_heavy import Heavy, counters_of, most_frequent
from tidemill_features.sketch_quantiles import MAX_BINS, MergedQuantiles, Quantiles
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


def test_counters_are_as_many_as_the_values_asked_for_want_and_never_few() -> None:
    assert [counters_of(k) for k in (1, 4, 5, 10)] == [32, 32, 40, 80]


def test_a_value_that_finds_no_counter_free_takes_one_off_every_count() -> None:
    heavy = Heavy(2)
    heavy.add([1, 1, 2])
    assert heavy.counts == {1: 2, 2: 1}
    heavy.add([3])
    assert heavy.counts == {1: 1}


def test_merged_counters_lose_what_the_first_that_has_no_place_counts() -> None:
    slots = [Heavy(2, {1: 5, 2: 4}), Heavy(2, {3: 2})]
    assert most_frequent(slots, 2) == [1, 2]
    assert most_frequent([Heavy(2, {1: 5, 2: 2}), Heavy(2, {3: 2})], 2) == [1]
    assert most_frequent(slots, 3) == [1, 2, 3]


def test_of_equal_counts_the_lesser_value_comes_first() -> None:
    assert most_frequent([Heavy(32, {7: 2, 3: 2, 5: 9})], 32) == [5, 3, 7]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        Heavy(2, {1: 1, 2: 2}).pack()[:-1],
        Heavy(2, {1: 1}).pack() + b"x",
        # One value twice.
        b"\x02\0\0\0" + 2 * Heavy(2, {1: 1}).pack()[4:],
    ],
)
def test_counters_that_are_cut_or_doubled_are_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="counters"):
        Heavy.unpack(raw, 2, strings=False)


def test_a_bin_that_is_named_twice_is_refused() -> None:
    raw = sketched(QUANTILES, [1.5])
    with pytest.raises(ValueError, match="names a bin twice"):
        Quantiles.unpack(raw[:4] + b"\x02\0\0\0" + 2 * raw[8:])


def test_bins_of_each_sign_are_bounded_from_the_first_that_is_too_many() -> None:
    rising = [1.03**power for power in range(MAX_BINS + 1)]
    fits, one_more = sketched(QUANTILES, rising[:MAX_BINS]), sketched(QUANTILES, rising)
    assert len(fits) == len(one_more) == 8 + 8 * MAX_BINS
    # The two smallest lie together, where the bound does not hold.
    assert quantile(one_more, 0) == quantile(sketched(QUANTILES, rising[1:]), 0)
