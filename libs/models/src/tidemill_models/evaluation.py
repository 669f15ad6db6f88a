"""How good probabilities of a binary label are; numpy only, so that monitoring may use it.

Everywhere `y`: float64[n] of 0 and 1, `p`: float64[n] in [0, 1].
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Where one sure and wrong prediction stops costing more: ln(1e-15) is 34.5.
EPSILON = 1e-15
CALIBRATION_BINS = 15
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "calibration_error"})
HIGHER_IS_BETTER = frozenset({"roc_auc"})
METRICS = LOWER_IS_BETTER | HIGHER_IS_BETTER


def losses(y: Floats, p: Floats) -> Floats:
    """Return the log loss of each row.

    >>> losses(np.array([1.0, 0.0]), np.array([0.5, 0.5])).round(4).tolist()
    [0.6931, 0.6931]
    """
    bounded = np.clip(p, EPSILON, 1.0 - EPSILON)
    return -(y * np.log(bounded) + (1.0 - y) * np.log1p(-bounded))


def log_loss(y: Floats, p: Floats) -> float:
    """Return the mean log loss; NaN without rows."""
    return float(losses(y, p).mean()) if len(y) else float("nan")


def brier(y: Floats, p: Floats) -> float:
    """Return the mean squared error of the probabilities (Brier 1950); NaN without rows."""
    return float(np.square(p - y).mean()) if len(y) else float("nan")


def roc_auc(y: Floats, p: Floats) -> float:
    """Return the share of (positive, negative) pairs ranked rightly, ties counting half; NaN with one class only.

    By the rank sum of Mann and Whitney (1947).

    >>> roc_auc(np.array([0.0, 1.0, 1.0]), np.array([0.2, 0.2, 0.9]))
    0.75
    """
    positives = int(np.count_nonzero(y > 0))
    negatives = len(y) - positives
    if not positives or not negatives:
        return float("nan")
    _, group, sizes = np.unique(p, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(sizes) - (sizes - 1) / 2.0
    rank_sum = float(mean_ranks[group][y > 0].sum())
    return (rank_sum - positives * (positives + 1) / 2.0) / (positives * negatives)


def calibration_error(y: Floats, p: Floats, bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error over bins of equal width (Naeini et al. 2015); NaN without rows."""
    if not len(y):
        return float("nan")
    places = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    predicted = np.bincount(places, weights=p, minlength=bins)
    observed = np.bincount(places, weights=y, minlength=bins)
    return float(np.abs(predicted - observed).sum() / len(y))


def evaluate(y: Floats, p: Floats) -> dict[str, float]:
    """Return every metric that these rows define, with `rows`, `label_rate` and `prediction_mean`."""
    found = {
        "rows": float(len(y)),
        "log_loss": log_loss(y, p),
        "roc_auc": roc_auc(y, p),
        "brier": brier(y, p),
        "calibration_error": calibration_error(y, p),
        "label_rate": float(y.mean()) if len(y) else float("nan"),
        "prediction_mean": float(p.mean()) if len(y) else float("nan"),
    }
    return {name: value for name, value in found.items() if np.isfinite(value)}


def evaluate_slices(y: Floats, p: Floats, values: Sequence[str | None]) -> Mapping[str, dict[str, float]]:
    """Return the metrics of each value of a category, by value; null is the slice ""."""
    # As objects: numpy's strings are all as long as the longest, and lose a NUL at their end.
    names, group = np.unique(np.array([value or "" for value in values], dtype=np.object_), return_inverse=True)
    return {name: evaluate(y[group == place], p[group == place]) for place, name in enumerate(names)}
