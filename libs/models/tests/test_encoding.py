"""Columns to matrix: the same for training and serving."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_models.encoding import (
    FIRST_KNOWN,
    MAX_CATEGORIES,
    MIN_ROWS,
    NULL,
    UNSEEN,
    Column,
    Encoding,
    learn_encoding,
)

COLUMNS = (Column("delay", False), Column("carrier", True))


def test_a_number_that_is_missing_or_not_finite_becomes_nan() -> None:
    encoding = Encoding((Column("a", False),), {})
    matrix = encoding.encode({"a": np.array([1.5, np.nan, np.inf, -np.inf, 1e300])}, {})
    assert matrix.dtype == np.float32
    assert matrix[0, 0] == 1.5
    assert np.isnan(matrix[1:, 0]).all()


def test_null_unseen_and_known_categories_have_their_own_codes() -> None:
    encoding = Encoding(COLUMNS, {"carrier": ("AA", "UA")})
    matrix = encoding.encode({"delay": np.zeros(5)}, {"carrier": [None, "", "ZZ", "AA", "UA"]})
    assert matrix[:, 1].tolist() == [NULL, NULL, UNSEEN, FIRST_KNOWN, FIRST_KNOWN + 1]


def test_a_rare_category_is_left_to_the_unseen_bin() -> None:
    values = ["AA"] * MIN_ROWS + ["rare"] * (MIN_ROWS - 1)
    encoding = learn_encoding(COLUMNS, {"carrier": values}, np.zeros(len(values)))
    assert encoding.vocabularies["carrier"] == ("AA",)


def test_of_too_many_categories_the_most_frequent_are_known() -> None:
    values = ["AA"] * (MIN_ROWS + 1) + [f"c{row % MAX_CATEGORIES:04}" for row in range(MAX_CATEGORIES * MIN_ROWS)]
    known = learn_encoding(COLUMNS, {"carrier": values}, np.zeros(len(values))).vocabularies["carrier"]
    assert (len(known), known[0], known[-1]) == (MAX_CATEGORIES, "AA", "c0998")


def test_vocabularies_are_ordered_by_label_rate() -> None:
    values = ["late"] * 50 + ["early"] * 50
    encoding = learn_encoding(COLUMNS, {"carrier": values}, np.array([1.0] * 50 + [0.0] * 50))
    assert encoding.vocabularies["carrier"] == ("early", "late")


def test_a_category_of_few_rows_lies_near_the_overall_rate_not_at_the_ends_by_luck() -> None:
    values = ["rare"] * MIN_ROWS + ["often"] * 1_000
    labels = np.array([1.0] * MIN_ROWS + [1.0] * 950 + [0.0] * 50)
    assert learn_encoding(COLUMNS, {"carrier": values}, labels).vocabularies["carrier"] == ("often", "rare")
    labels[0] = labels[1] = 0.0
    assert learn_encoding(COLUMNS, {"carrier": values}, labels).vocabularies["carrier"] == ("rare", "often")


def test_a_column_that_is_not_given_is_an_error_and_an_unknown_one_is_not_read() -> None:
    encoding = Encoding((Column("a", False),), {})
    assert encoding.encode({"a": np.zeros(1), "b": np.zeros(7)}, {}).shape == (1, 1)
    with pytest.raises(KeyError):
        encoding.encode({"b": np.zeros(1)}, {})


def test_columns_without_vocabulary_or_twice_are_refused() -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Encoding(COLUMNS, {})
    with pytest.raises(ValueError, match="distinct"):
        Encoding((Column("a", False), Column("a", False)), {})


@given(st.lists(st.tuples(st.floats(), st.one_of(st.none(), st.text(max_size=3))), min_size=1, max_size=60))
def test_one_row_at_a_time_encodes_as_all_at_once_and_survives_storing(rows: list[tuple[float, str | None]]) -> None:
    numbers = np.array([number for number, _ in rows])
    categories = [category for _, category in rows]
    learned = learn_encoding(COLUMNS, {"carrier": categories * 20}, np.ones(len(rows) * 20))
    encoding = Encoding.from_dict(learned.to_dict())
    whole = encoding.encode({"delay": numbers}, {"carrier": categories})
    for place in range(len(rows)):
        one = encoding.encode({"delay": numbers[place : place + 1]}, {"carrier": [categories[place]]})
        np.testing.assert_array_equal(one[0], whole[place])
