"""Gradient boosted trees: XGBoost fits, ONNX serves, XGBoost's own JSON is kept beside it."""

from typing import Any, Self

import numpy as np
import xgboost
from onnxmltools.convert import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType

from tidemill_models.encoding import Encoding, Matrix
from tidemill_models.errors import ModelError, NotExportableError
from tidemill_models.learners.interface import Export, Floats, checked_parameters, checked_parity
from tidemill_models.manifest import Constructor
from tidemill_models.scorer import INPUT, ONNX, make_scorer

MODEL_FILE = "model.onnx"
NATIVE_FILE = "model.xgb.ubj"
_TREES = 200
_MAX_TREES = 5_000
_PARAMETERS: dict[str, type] = {
    "n_estimators": int,
    "max_depth": int,
    "max_leaves": int,
    "max_bin": int,
    "learning_rate": float,
    "min_child_weight": float,
    "subsample": float,
    "colsample_bytree": float,
    "reg_alpha": float,
    "reg_lambda": float,
    "gamma": float,
    "max_delta_step": float,
}
# The newest that the converter supports.
_OPSET = 15
# Two threads wait for each other at every node of a tree: of fewer rows one alone makes a model in less time.
_ROWS_FOR_TWO_THREADS = 200_000


class Boosted:
    """XGBoost's histogram trees for a binary label; the same rows give the same bytes on every machine."""

    def __init__(self, constructor: Constructor, encoding: Encoding, seed: int) -> None:
        if constructor.algorithm not in {"", "XGBClassifier"}:
            raise ModelError(f"xgboost has no {constructor.algorithm!r} here; leave the algorithm out")
        parameters: dict[str, Any] = checked_parameters(constructor.parameters, _PARAMETERS)
        self._rounds = parameters.pop("n_estimators", _TREES)
        if not 1 <= self._rounds <= _MAX_TREES:
            raise ModelError(f"n_estimators is {self._rounds}; 1 to {_MAX_TREES} are allowed")
        self._parameters = {
            **parameters,
            "objective": "binary:logistic",
            "tree_method": "hist",
            # XGBoost takes 31 bits.
            "seed": seed % (2**31),
            "verbosity": 0,
        }
        self._encoding = encoding
        self._booster: xgboost.Booster | None = None

    def fit(self, x: Matrix, y: Floats) -> Self:
        """Fit on x: float32[n, width], y: float64[n] of 0 and 1. Raises `ModelError` for a value out of its range."""
        # By the rows, not by the machine: each thread sums its share, and another number of them could round otherwise.
        threads = 1 if len(x) < _ROWS_FOR_TWO_THREADS else 2
        try:
            rows = xgboost.QuantileDMatrix(x, y, nthread=threads, max_bin=self._parameters.get("max_bin", 256))
            self._booster = xgboost.train({**self._parameters, "nthread": threads}, rows, num_boost_round=self._rounds)
        except xgboost.core.XGBoostError as error:
            raise ModelError(f"XGBoost refuses: {_first_line(str(error))}") from error
        return self

    def predict_proba(self, x: Matrix) -> Floats:
        """Return float64[n] by XGBoost itself."""
        answer: Floats = self._fitted().inplace_predict(x).astype(np.float64)
        return answer

    def export(self, x: Matrix) -> Export:
        """Return the ONNX form, proven on x. Raises `NotExportableError`."""
        booster = self._fitted()
        shape = [(INPUT, FloatTensorType([None, self._encoding.width]))]
        try:
            converted = convert_xgboost(booster, name="model", initial_types=shape, target_opset=_OPSET)
        except Exception as error:  # the converter raises whatever it stumbles on
            raise NotExportableError(f"XGBoost's model does not convert to ONNX: {error!r}") from error
        served = converted.SerializeToString(deterministic=True)
        scorer = make_scorer(ONNX, served, self._encoding)
        parity = checked_parity(self.predict_proba(x), scorer.predict_proba(x))
        native = bytes(booster.save_raw("ubj"))
        return Export(ONNX, MODEL_FILE, {MODEL_FILE: served, NATIVE_FILE: native}, parity)

    def _fitted(self) -> xgboost.Booster:
        if self._booster is None:
            raise ModelError("not fitted yet")
        return self._booster


def _first_line(message: str) -> str:
    """Return what an error of XGBoost says, without its time, file and C++ stack."""
    _, found, rest = message.partition("Check failed: ")
    text = (rest if found else message).partition("Stack trace")[0].strip()
    return text.partition("\n")[0]


build = Boosted
