"""Served features and predictions against the reference of the version that served them: histograms, alert only.

The distance is the population stability index, PSI = Σ (q − r)·ln(q / r) over bins. With B bins and n live rows
against m reference rows its null is close to (1/n + 1/m)·χ²(B − 1), so a fixed cut-off is wrong by construction: a
signal counts as moved only beyond the practical limit *and* beyond the 99.9 % point of that null.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PSI_LIMIT = 0.25
# A signal that moved stays moved until it is well below the limit again: no alert per wobble.
CLEAR_RATIO = 0.7
MIN_ROWS = 500
OTHER = "__other__"
PREDICTION = "prediction"
_NORMAL_999 = 3.0902
_SMOOTHING = 0.5


class Sample(NamedTuple):
    """Served rows of one day: feature columns by name and the champion's probabilities."""

    numbers: Mapping[str, Floats]
    categories: Mapping[str, Sequence[str]]
    predictions: Floats


class Distance(NamedTuple):
    """One signal's distance from its reference."""

    signal: str
    psi: float
    noise: float
    rows: int
    moved: bool


def psi(live: Sequence[int], reference: Sequence[int]) -> float:
    """Return the population stability index of two histograms; half a row is added to every bin.

    >>> psi([10, 10], [100, 100])
    0.0
    """
    q = np.asarray(live, np.float64) + _SMOOTHING
    r = np.asarray(reference, np.float64) + _SMOOTHING
    q, r = q / q.sum(), r / r.sum()
    return float(((q - r) * np.log(q / r)).sum())


def noise_bound(bins: int, live_rows: int, reference_rows: int) -> float:
    """Return the 99.9 % point of PSI without any change (χ² by Wilson and Hilferty 1931).

    >>> 0.1 < noise_bound(10, 500, 500) < 0.12
    True
    """
    freedom = max(bins - 1, 1)
    spread = 2.0 / (9.0 * freedom)
    quantile = freedom * (1.0 - spread + _NORMAL_999 * math.sqrt(spread)) ** 3
    return quantile * (1.0 / max(live_rows, 1) + 1.0 / max(reference_rows, 1))


class Reference:
    """The profile of one version (VersionRecord.reference): what its training rows looked like."""

    def __init__(self, profile: Mapping[str, Any]) -> None:
        features: Mapping[str, Any] = profile.get("features", {})
        self._numbers = {f"feature:{n}": f for n, f in features.items() if f.get("kind") == "number"}
        self._categories = {f"feature:{n}": f for n, f in features.items() if f.get("kind") == "category"}
        if "edges" in profile.get(PREDICTION, {}):
            self._numbers[PREDICTION] = profile[PREDICTION]

    def signals(self) -> list[str]:
        """Return the names of what is compared."""
        return [*self._numbers, *self._categories]

    def expected(self, signal: str) -> list[int]:
        """Return the reference histogram of a signal, its nulls last."""
        found = self._numbers.get(signal) or self._categories[signal]
        counts = found["counts"]
        named = counts if signal in self._numbers else [counts[name] for name in sorted(counts)]
        return [int(count) for count in named] + [int(found.get("nulls", 0))]

    def count(self, sample: Sample) -> dict[str, list[int]]:
        """Return the same histograms of served rows."""
        counted = {
            signal: _numbers(profile, _column(signal, sample))
            for signal, profile in self._numbers.items()
            if _column(signal, sample) is not None
        }
        for signal, profile in self._categories.items():
            values = sample.categories.get(signal.removeprefix("feature:"))
            if values is not None:
                counted[signal] = _categories(profile["counts"], values)
        return counted


def _column(signal: str, sample: Sample) -> Floats | None:
    if signal == PREDICTION:
        return sample.predictions
    return sample.numbers.get(signal.removeprefix("feature:"))


def _numbers(profile: Mapping[str, Any], values: Floats | None) -> list[int]:
    """Return counts per bin and of nulls; edges are inner bounds, the outer bins are open."""
    assert values is not None
    finite = np.isfinite(values)
    places = np.searchsorted(np.asarray(profile["edges"], np.float64), values[finite], side="right")
    counts = np.bincount(places, minlength=len(profile["edges"]) + 1)
    return [*map(int, counts), int(np.count_nonzero(~finite))]


def _categories(known: Mapping[str, Any], values: Iterable[str]) -> list[int]:
    found = Counter(values)
    nulls = found.pop("", 0)
    outside = sum(count for name, count in found.items() if name not in known or name == OTHER)
    named = [outside if name == OTHER else found[name] for name in sorted(known)]
    return [*named, nulls]


class ProfileWatch:
    """Histograms of the last days, all served by one version; a new version begins anew."""

    def __init__(self, days: int, version: int = 0) -> None:
        self._days: deque[dict[str, list[int]]] = deque(maxlen=days)
        self.version = version
        self.moved: set[str] = set()

    def add_day(self, version: int, counts: Mapping[str, Sequence[int]]) -> None:
        """Take in one day's histograms."""
        if version != self.version:
            self._days.clear()
            self.moved.clear()
            self.version = version
        self._days.append({signal: list(found) for signal, found in counts.items()})

    def judge(self, reference: Reference) -> tuple[list[Distance], list[str]]:
        """Return every signal's distance, and the signals that have moved since the last look."""
        distances = [found for signal in reference.signals() if (found := self._judge(signal, reference))]
        moved = {found.signal for found in distances if found.moved}
        fresh = sorted(moved - self.moved)
        self.moved = moved
        return distances, fresh

    def _judge(self, signal: str, reference: Reference) -> Distance | None:
        expected = reference.expected(signal)
        days = [day[signal] for day in self._days if len(day.get(signal, ())) == len(expected)]
        live = [sum(counts) for counts in zip(*days, strict=True)]
        rows = sum(live)
        if rows < MIN_ROWS:
            return None
        distance, noise = psi(live, expected), noise_bound(len(expected), rows, sum(expected))
        limit = PSI_LIMIT * (CLEAR_RATIO if signal in self.moved else 1.0)
        return Distance(signal, distance, noise, rows, distance > max(limit, noise))

    def snapshot(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"version": self.version, "moved": sorted(self.moved), "days": list(self._days)}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Take back what `snapshot` gave."""
        self.version, self.moved = stored["version"], set(stored["moved"])
        self._days.clear()
        self._days.extend(stored["days"])
