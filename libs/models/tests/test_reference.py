"""The reference profile that monitoring compares with."""

import json

import numpy as np
from tidemill_models.encoding import Column
from tidemill_models.reference import (
    MAX_BINS,
    MAX_CATEGORIES,
    MAX_CATEGORY_CHARS,
    OTHER,
    Rows,
    category_counts,
    histogram,
    reference_profile,
)


def test_every_row_is_counted_once_in_bins_of_about_the_same_size() -> None:
    rng = np.random.default_rng(1)
    n = 4000
    delay = rng.normal(size=n)
    delay[:100] = np.nan
    delay[100] = np.inf
    words = [f"w{draw}" if draw else None for draw in rng.integers(0, 80, size=n)]
    rows = Rows(
        (Column("delay", False), Column("word", True)), {"delay": delay}, {"word": words}, rng.random(n).round()
    )
    profile = reference_profile(rows, (np.array([0.0, 1.0]), np.array([0.0, 1.0])))
    number, category = profile["features"]["delay"], profile["features"]["word"]
    assert sum(number["counts"]) + number["nulls"] == n == profile["rows"]
    assert len(number["counts"]) == len(number["edges"]) + 1 == MAX_BINS
    assert max(number["counts"]) - min(number["counts"]) <= 2
    assert sum(category["counts"].values()) + category["nulls"] == n
    assert len(category["counts"]) == MAX_CATEGORIES + 1
    assert profile["prediction"]["counts"][0] == profile["prediction"]["counts"][-1] == 1
    assert sum(profile["prediction"]["counts"]) == 2
    assert json.loads(json.dumps(profile)) == profile


def test_a_constant_or_absent_number_has_a_bin_for_every_value_to_come() -> None:
    rows = Rows(
        (Column("same", False), Column("none", False)), {"same": np.ones(9), "none": np.full(9, np.nan)}, {}, np.ones(9)
    )
    features = reference_profile(rows, (np.ones(1), np.ones(1)))["features"]
    assert features["same"]["edges"] == [1.0]
    assert features["same"]["counts"] == [0, 9]
    assert features["none"] == {"kind": "number", "edges": [], "counts": [0], "nulls": 9}
    assert histogram(np.array(features["same"]["edges"]), np.array([-5.0, 1.0, 7.0])) == [1, 2]


def test_nulls_and_empty_categories_are_counted_apart() -> None:
    assert category_counts(["AA", "ZZ", None, "", "AA"]) == ({"AA": 2, "ZZ": 1, OTHER: 0}, 2)


def test_a_category_too_long_to_be_named_and_one_of_the_reserved_name_are_others() -> None:
    long = "x" * (MAX_CATEGORY_CHARS + 1)
    assert category_counts(["AA", long, OTHER, "AA", long[1:]]) == ({"AA": 2, long[1:]: 1, OTHER: 2}, 0)
