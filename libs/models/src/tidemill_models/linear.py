"""The linear model that a bundle carries as plain JSON.

Answers `1 / (1 + exp(-(intercept + w·z)))`, where z is, per number, (x - mean) / scale, or 0 with a flag where it is
missing, and per category column an indicator of its code.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tidemill_models.encoding import Encoding, Matrix
from tidemill_models.errors import BundleRefusedError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class NumberTerm:
    """The share of one number column."""

    place: int
    mean: float
    # 0 where the training rows did not vary: the column then adds nothing.
    inverse_scale: float
    weight: float
    missing_weight: float


@dataclass(frozen=True, slots=True)
class CategoryTerm:
    """The share of one category column: a weight per code."""

    place: int
    weights: tuple[float, ...]


@dataclass(frozen=True)
class LinearModel:
    """A logistic regression over the encoded matrix."""

    intercept: float
    numbers: tuple[NumberTerm, ...]
    categories: tuple[CategoryTerm, ...]

    def predict_proba(self, x: Matrix) -> Floats:
        """Return float64[n] for x: float32[n, width]; the sum runs in column order whatever the batch."""
        total = np.full(len(x), self.intercept)
        for number in self.numbers:
            values = x[:, number.place].astype(np.float64)
            scaled = (values - number.mean) * number.inverse_scale * number.weight
            total += np.where(np.isnan(values), number.missing_weight, scaled)
        for category in self.categories:
            codes = np.clip(x[:, category.place].astype(np.int64), 0, len(category.weights) - 1)
            total += np.asarray(category.weights)[codes]
        answer: Floats = 1.0 / (1.0 + np.exp(-np.clip(total, -700.0, 700.0)))
        return answer

    def to_bytes(self) -> bytes:
        """Return the stored form; floats survive exactly."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True).encode()


def parse_linear(raw: bytes, encoding: Encoding) -> LinearModel:
    """Read a stored linear model. Raises `BundleRefusedError` where it does not fit the encoding."""
    try:
        model = _model(json.loads(raw))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleRefusedError(f"the linear model cannot be read: {error!r}") from error
    places = {term.place for term in model.numbers} | {term.place for term in model.categories}
    if not places <= set(range(encoding.width)):
        raise BundleRefusedError("the linear model names columns that the encoding does not have")
    return model


def _model(raw: Mapping[str, Any]) -> LinearModel:
    return LinearModel(
        float(raw["intercept"]),
        tuple(NumberTerm(**term) for term in raw["numbers"]),
        tuple(CategoryTerm(term["place"], tuple(map(float, term["weights"]))) for term in raw["categories"]),
    )
