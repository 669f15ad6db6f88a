"""Rolling performance per version: mergeable sums per day, finalised over the last few days.

Everything is a sum, so memory does not grow with traffic: log loss and means are exact; the ranking (AUC) is kept as a
histogram of 1,024 bins evenly spaced in logit, where rows of one bin count as ties (error below 0.001 in tests).
"""

import base64
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Where one sure and wrong prediction stops costing more; the same bound as in training's evaluation.
EPSILON = 1e-15
CALIBRATION_BINS = 15
RANK_BINS = 1024
_LOGIT_LIMIT = 16.0


def losses(y: Floats, p: Floats) -> Floats:
    """Return the log loss of each row.

    >>> losses(np.array([1.0, 0.0]), np.array([0.5, 0.5])).round(4).tolist()
    [0.6931, 0.6931]
    """
    bounded = np.clip(p, EPSILON, 1.0 - EPSILON)
    return -(y * np.log(bounded) + (1.0 - y) * np.log1p(-bounded))


def running_sum(total: float, values: Floats) -> float:
    """Return total + v₀ + v₁ + …, added one after the other: the same bits however the values are cut into calls."""
    return float(np.cumsum(np.concatenate(((total,), values)))[-1])


def _zeros(*shape: int) -> Ints:
    return np.zeros(shape, np.int64)


@dataclass
class Sums:
    """One version's labelled rows of one day; `rank`: int64[2, 1024], negatives and positives by score."""

    role: str = ""
    rows: int = 0
    never: int = 0
    loss: float = 0.0
    labels: float = 0.0
    predictions: float = 0.0
    bin_rows: Ints = field(default_factory=lambda: _zeros(CALIBRATION_BINS))
    bin_gap: Floats = field(default_factory=lambda: np.zeros(CALIBRATION_BINS))
    rank: Ints = field(default_factory=lambda: _zeros(2, RANK_BINS))

    def add(self, y: Floats, p: Floats) -> None:
        """Take in rows: y float64[n] of 0 and 1, p float64[n] in [0, 1]."""
        self.rows += len(y)
        self.loss = running_sum(self.loss, losses(y, p))
        self.labels = running_sum(self.labels, y)
        self.predictions = running_sum(self.predictions, p)
        places = np.minimum((p * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
        np.add.at(self.bin_rows, places, 1)
        np.add.at(self.bin_gap, places, p - y)
        np.add.at(self.rank, ((y > 0).astype(np.int64), _rank_bin(p)), 1)

    def merge(self, other: "Sums") -> None:
        """Add another day."""
        self.role = other.role or self.role
        self.rows += other.rows
        self.never += other.never
        self.loss += other.loss
        self.labels += other.labels
        self.predictions += other.predictions
        self.bin_rows += other.bin_rows
        self.bin_gap += other.bin_gap
        self.rank += other.rank

    def values(self) -> dict[str, float]:
        """Return the metrics that have a meaning for these rows."""
        found: dict[str, float] = {}
        if self.rows + self.never:
            found["coverage"] = self.rows / (self.rows + self.never)
        if self.rows:
            found["log_loss"] = self.loss / self.rows
            found["label_rate"] = self.labels / self.rows
            found["prediction_mean"] = self.predictions / self.rows
            found["calibration_error"] = float(np.abs(self.bin_gap).sum()) / self.rows
        auc = _auc(self.rank)
        if auc is not None:
            found["roc_auc"] = auc
        return found

    def snapshot(self) -> dict[str, Any]:
        """Return the sums as JSON values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        return plain | {name: _pack(getattr(self, name)) for name in _ARRAYS}

    @classmethod
    def restore(cls, stored: Mapping[str, Any]) -> "Sums":
        """Return what `snapshot` gave."""
        made = cls(**{name: stored[name] for name in _PLAIN})
        made.bin_rows = _unpack(stored["bin_rows"], np.int64)
        made.bin_gap = _unpack(stored["bin_gap"], np.float64)
        made.rank = _unpack(stored["rank"], np.int64).reshape(2, RANK_BINS)
        return made


_PLAIN = ("role", "rows", "never", "loss", "labels", "predictions")
_ARRAYS = ("bin_rows", "bin_gap", "rank")


def _rank_bin(p: Floats) -> Ints:
    bounded = np.clip(p, EPSILON, 1.0 - EPSILON)
    logit = np.clip(np.log(bounded) - np.log1p(-bounded), -_LOGIT_LIMIT, _LOGIT_LIMIT)
    place = (logit + _LOGIT_LIMIT) / (2 * _LOGIT_LIMIT) * (RANK_BINS - 1)
    bins: Ints = np.rint(place).astype(np.int64)
    return bins


def _auc(rank: Ints) -> float | None:
    """Return the share of (positive, negative) pairs ranked rightly, ties counting half; None with one class only."""
    negatives, positives = rank
    pairs = int(negatives.sum()) * int(positives.sum())
    if not pairs:
        return None
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum()) / pairs


def _pack(values: Ints | Floats) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 1)).decode()


def _unpack(text: str, dtype: Any) -> Any:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype).copy()


class Windows:
    """Sums per version of the day under way and of the last `days - 1` closed ones."""

    def __init__(self, days: int) -> None:
        self._closed: deque[dict[int, Sums]] = deque(maxlen=days - 1)
        self._open: dict[int, Sums] = {}

    def version(self, version: int) -> Sums:
        """Return the open day's sums of a version."""
        return self._open.setdefault(version, Sums())

    def close_day(self) -> dict[int, Sums]:
        """Return the merged window by version, and begin a new day."""
        merged = {version: self._merged(version) for version in sorted(self._versions())}
        self._closed.append(self._open)
        self._open = {}
        return merged

    def _versions(self) -> set[int]:
        return {version for day in self._days() for version in day}

    def _days(self) -> Iterator[Mapping[int, Sums]]:
        yield from self._closed
        yield self._open

    def _merged(self, version: int) -> Sums:
        total = Sums()
        for day in self._days():
            if version in day:
                total.merge(day[version])
        return total

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the closed days; taken when a day has just closed, so that nothing is open."""
        return [{str(version): sums.snapshot() for version, sums in day.items()} for day in self._closed]

    def restore(self, stored: Sequence[Mapping[str, Any]]) -> None:
        """Take back what `snapshot` gave."""
        self._open = {}
        self._closed.clear()
        self._closed.extend({int(version): Sums.restore(sums) for version, sums in day.items()} for day in stored)
