"""Rolling metrics against plain formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidemill_monitoring.windows import Sums, Windows, losses, running_sum


def exact_auc(y: np.ndarray, p: np.ndarray) -> float:
    wins = (p[y == 1][:, None] > p[y == 0]) + 0.5 * (p[y == 1][:, None] == p[y == 0])
    return float(wins.mean())


@pytest.mark.parametrize("base", [0.5, 0.25, 0.002])
def test_metrics_of_a_window_match_their_definitions(base: float) -> None:
    rng = np.random.default_rng(7)
    p = rng.beta(2 * base, 2 * (1 - base), 20_000)
    y = (rng.random(20_000) < p).astype(float)
    sums = Sums()
    sums.add(y, p)
    sums.never = 5_000
    found = sums.values()
    assert found["log_loss"] == pytest.approx(float(losses(y, p).mean()), abs=1e-12)
    assert found["roc_auc"] == pytest.approx(exact_auc(y, p), abs=1e-3)
    assert found["label_rate"] == pytest.approx(y.mean())
    assert found["prediction_mean"] == pytest.approx(p.mean())
    assert found["coverage"] == 0.8
    bins = np.minimum((p * 15).astype(int), 14)
    gaps = [abs((p - y)[bins == one].sum()) for one in range(15)]
    assert found["calibration_error"] == pytest.approx(sum(gaps) / 20_000)


def test_what_has_no_meaning_is_absent() -> None:
    one_class = Sums()
    one_class.add(np.array([1.0]), np.array([0.5]))
    assert "roc_auc" not in one_class.values()
    unanswered = Sums(never=3)
    assert unanswered.values() == {"coverage": 0.0}
    assert Sums().values() == {}


@given(st.lists(st.floats(0, 10), max_size=30), st.integers(0, 30))
def test_a_running_sum_has_the_same_bits_however_it_is_cut(values: list[float], cut: int) -> None:
    whole = running_sum(0.0, np.array(values, float))
    parts = running_sum(running_sum(0.0, np.array(values[:cut], float)), np.array(values[cut:], float))
    assert whole == parts


def test_a_window_forgets_the_day_that_leaves_it() -> None:
    windows = Windows(days=2)
    for day, probability in enumerate((0.9, 0.5, 0.5)):
        windows.version(1).add(np.array([1.0]), np.array([probability]))
        merged = windows.close_day()
        assert merged[1].rows == min(day + 1, 2)
    assert merged[1].values()["log_loss"] == pytest.approx(math.log(2))


def test_a_snapshot_restores_the_same_window() -> None:
    windows = Windows(days=3)
    rng = np.random.default_rng(1)
    for _ in range(2):
        windows.version(3).add((rng.random(50) < 0.3).astype(float), rng.random(50))
        windows.version(3).role = "champion"
        windows.close_day()
    again = Windows(days=3)
    again.restore(windows.snapshot())
    assert again.close_day()[3].values() == windows.close_day()[3].values()
