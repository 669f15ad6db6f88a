"""What a version's rows, predictions and labels looked like: the JSON of VersionRecord.reference.

Edges are inner bounds: k edges make k + 1 bins, bin i holds `edges[i - 1] <= value < edges[i]`, and the outer bins are
open, so that every number has a bin. Monitoring counts its own rows by the same bins.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill_models.encoding import Categories, Column, Floats
from tidemill_models.evaluation import log_loss

MAX_BINS = 20
MAX_CATEGORIES = 50
# The profile travels in one Kafka record with all features': a longer category is not told from others.
MAX_CATEGORY_CHARS = 200
OTHER = "__other__"
# Predictions get bins of equal width, 0.05.
PREDICTION_EDGES = tuple(round(step / MAX_BINS, 2) for step in range(1, MAX_BINS))


@dataclass(frozen=True)
class Rows:
    """Feature columns by name, of the rows that the profile describes."""

    columns: tuple[Column, ...]
    numbers: Mapping[str, Floats]
    categories: Mapping[str, Categories]
    labels: Floats


def reference_profile(rows: Rows, evaluated: tuple[Floats, Floats]) -> dict[str, Any]:
    """Return the profile: features and label rate of `rows`, predictions and log loss of the `evaluated` (y, p)."""
    labels, predictions = evaluated
    return {
        "features": {column.name: _feature(column, rows) for column in rows.columns},
        "prediction": {
            "edges": list(PREDICTION_EDGES),
            "counts": histogram(np.array(PREDICTION_EDGES), predictions),
        },
        "label_rate": float(rows.labels.mean()),
        "rows": len(rows.labels),
        "log_loss": log_loss(labels, predictions),
    }


def histogram(edges: Floats, values: Floats) -> list[int]:
    """Return len(edges) + 1 counts of the values that are no NaN.

    >>> histogram(np.array([1.0, 2.0]), np.array([0.5, 1.0, 9.0, np.nan]))
    [1, 1, 1]
    """
    present = values[~np.isnan(values)]
    places = np.searchsorted(edges, present, side="right")
    return [int(count) for count in np.bincount(places, minlength=len(edges) + 1)]


def category_counts(values: Categories) -> tuple[dict[str, int], int]:
    """Return (counts, nulls); those beyond the most frequent, and those too long to be named, are `__other__`."""
    found = Counter(value for value in values if value)
    nulls = len(values) - found.total()
    named = [item for item in found.items() if len(item[0]) <= MAX_CATEGORY_CHARS and item[0] != OTHER]
    kept = dict(sorted(named, key=lambda item: (-item[1], item[0]))[:MAX_CATEGORIES])
    return {**kept, OTHER: found.total() - sum(kept.values())}, nulls


def _feature(column: Column, rows: Rows) -> dict[str, Any]:
    if column.category:
        counts, nulls = category_counts(rows.categories[column.name])
        return {"kind": "category", "counts": counts, "nulls": nulls}
    values = np.where(np.isfinite(rows.numbers[column.name]), rows.numbers[column.name], np.nan)
    edges = _quantile_edges(values)
    nulls = int(np.count_nonzero(np.isnan(values)))
    return {"kind": "number", "edges": edges.tolist(), "counts": histogram(edges, values), "nulls": nulls}


def _quantile_edges(values: Floats) -> Floats:
    """Return at most 19 distinct inner bounds that share the rows out evenly; fewer where values repeat."""
    present = values[~np.isnan(values)]
    if not len(present):
        return np.empty(0, dtype=np.float64)
    shares = np.arange(1, MAX_BINS) / MAX_BINS
    found: Floats = np.unique(np.quantile(present, shares, method="inverted_cdf"))
    return found
