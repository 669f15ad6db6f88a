"""Metrics against scikit-learn's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from tidemill_models.evaluation import EPSILON, brier, calibration_error, evaluate, evaluate_slices, log_loss, roc_auc

ROWS = st.lists(
    st.tuples(st.booleans(), st.one_of(st.floats(1e-6, 1 - 1e-6), st.sampled_from([0.1, 0.5, 0.9]))),
    min_size=2,
    max_size=200,
)


@given(ROWS)
def test_log_loss_brier_and_auc_equal_scikit_learns(rows: list[tuple[bool, float]]) -> None:
    y = np.array([float(label) for label, _ in rows])
    p = np.array([probability for _, probability in rows])
    assert log_loss(y, p) == pytest.approx(metrics.log_loss(y, p, labels=[0.0, 1.0]), rel=1e-9)
    assert brier(y, p) == pytest.approx(metrics.brier_score_loss(y, p), rel=1e-9)
    if len(set(y)) == 2:
        assert roc_auc(y, p) == pytest.approx(metrics.roc_auc_score(y, p), abs=1e-12)
    else:
        assert np.isnan(roc_auc(y, p))


def test_a_sure_and_wrong_prediction_costs_a_bounded_loss() -> None:
    assert log_loss(np.array([1.0]), np.array([0.0])) == pytest.approx(-np.log(EPSILON))


def test_calibration_error_is_zero_for_true_probabilities_and_the_gap_for_false_ones() -> None:
    y = np.array([1.0] * 25 + [0.0] * 75)
    assert calibration_error(y, np.full(100, 0.25)) == pytest.approx(0.0)
    assert calibration_error(y, np.full(100, 0.65)) == pytest.approx(0.40)
    assert calibration_error(np.array([1.0]), np.array([1.0])) == 0.0


def test_metrics_that_the_rows_do_not_define_are_absent() -> None:
    assert evaluate(np.array([]), np.array([])) == {"rows": 0.0}
    assert "roc_auc" not in evaluate(np.ones(3), np.full(3, 0.9))


def test_slices_share_out_all_rows_with_null_as_the_empty_one() -> None:
    y, p = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.1, 0.8, 0.7, 0.4])
    found = evaluate_slices(y, p, ["AA", "AA", None, ""])
    assert {name: values["rows"] for name, values in found.items()} == {"": 2.0, "AA": 2.0}
    apart = evaluate_slices(y, p, ["AA", "AA\0", "AA", "x" * 60_000])
    assert {name[:3]: values["rows"] for name, values in apart.items()} == {"AA": 2.0, "AA\0": 1.0, "xxx": 1.0}
    assert found["AA"]["log_loss"] == pytest.approx(log_loss(y[:2], p[:2]))
