"""River's logistic regression, learnt one row at a time in time order; served from plain JSON, never from a pickle."""

from typing import Any, Self

import numpy as np
from river import linear_model, optim, preprocessing

from tidemill_models.encoding import Encoding, Matrix
from tidemill_models.errors import ModelError
from tidemill_models.learners.interface import Export, Floats, checked_parameters, checked_parity
from tidemill_models.linear import CategoryTerm, LinearModel, NumberTerm
from tidemill_models.manifest import Constructor
from tidemill_models.scorer import LINEAR

MODEL_FILE = "model.linear.json"
_ALGORITHM = "linear_model.LogisticRegression"
_PARAMETERS: dict[str, type] = {
    "learning_rate": float,
    "l1": float,
    "l2": float,
    "intercept_lr": float,
    "clip_gradient": float,
}
_LEARNING_RATE = 0.01


class OnlineLogistic:
    """`StandardScaler` over the numbers, a flag per missing number, one-hot categories, `LogisticRegression`."""

    def __init__(self, constructor: Constructor, encoding: Encoding, seed: int) -> None:
        # River's logistic regression draws nothing at random: the seed has no part in it.
        del seed
        if constructor.algorithm != _ALGORITHM:
            raise ModelError(f"river's {constructor.algorithm!r} is not in this release; {_ALGORITHM} is")
        parameters: dict[str, Any] = checked_parameters(constructor.parameters, _PARAMETERS)
        if parameters.get("l1") and parameters.get("l2"):
            raise ModelError("river's logistic regression takes l1 or l2, not both")
        optimizer = optim.SGD(parameters.pop("learning_rate", _LEARNING_RATE))
        # River's methods carry no types.
        self._scaler: Any = preprocessing.StandardScaler()
        self._model: Any = linear_model.LogisticRegression(optimizer=optimizer, **parameters)
        self._encoding = encoding
        self._kinds = [column.category for column in encoding.columns]

    def learn_one(self, row: list[float], label: bool) -> None:
        """Learn one encoded row, after the scaler has seen it."""
        numbers, flags = self._split(row)
        self._scaler.learn_one(numbers)
        self._model.learn_one({**self._scaler.transform_one(numbers), **flags}, label)

    def predict_proba_one(self, row: list[float]) -> float:
        """Return the probability of the label for one encoded row."""
        numbers, flags = self._split(row)
        return float(self._model.predict_proba_one({**self._scaler.transform_one(numbers), **flags})[True])

    def fit(self, x: Matrix, y: Floats) -> Self:
        """Learn the rows of x: float32[n, width] in their order; y: float64[n] of 0 and 1."""
        for row, label in zip(x.tolist(), y.tolist(), strict=True):
            self.learn_one(row, label > 0)
        return self

    def predict_proba(self, x: Matrix) -> Floats:
        """Return float64[n] by river itself."""
        return np.array([self.predict_proba_one(row) for row in x.tolist()], dtype=np.float64)

    def export(self, x: Matrix) -> Export:
        """Return the JSON form, proven on x. Raises `NotExportableError`."""
        model = self._linear()
        parity = checked_parity(self.predict_proba(x), model.predict_proba(x))
        return Export(LINEAR, MODEL_FILE, {MODEL_FILE: model.to_bytes()}, parity)

    def _split(self, row: list[float]) -> tuple[dict[int, float], dict[str, int]]:
        """Return numbers by place and flags by name; a missing number is a flag and no number."""
        numbers: dict[int, float] = {}
        flags: dict[str, int] = {}
        for place, (value, category) in enumerate(zip(row, self._kinds, strict=True)):
            if category:
                flags[f"{place}={value:.0f}"] = 1
            elif value == value:  # NaN is not equal to itself
                numbers[place] = value
            else:
                flags[f"{place}?"] = 1
        return numbers, flags

    def _linear(self) -> LinearModel:
        weights = self._model.weights
        numbers, categories = [], []
        for place, column in enumerate(self._encoding.columns):
            if column.category:
                codes = len(self._encoding.vocabularies[column.name]) + 2
                terms = tuple(float(weights.get(f"{place}={code}", 0.0)) for code in range(codes))
                categories.append(CategoryTerm(place, terms))
            else:
                numbers.append(self._number(place, weights))
        return LinearModel(float(self._model.intercept), tuple(numbers), tuple(categories))

    def _number(self, place: int, weights: Any) -> NumberTerm:
        deviation = float(self._scaler.vars[place]) ** 0.5 if place in self._scaler.vars else 0.0
        return NumberTerm(
            place,
            float(self._scaler.means[place]) if place in self._scaler.means else 0.0,
            1.0 / deviation if deviation else 0.0,
            float(weights.get(place, 0.0)),
            float(weights.get(f"{place}?", 0.0)),
        )


build = OnlineLogistic
