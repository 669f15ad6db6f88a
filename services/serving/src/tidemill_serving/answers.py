"""From scores and feature columns to what is answered and what is logged; pure."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from math import isnan
from typing import Any, NamedTuple, cast

import numpy as np
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_features.finalise import HEAD_EXCLUDED_BIT, HOP_ACCURACY_BIT, STATUS_BITS
from tidemill_features.vector import VectorRows
from tidemill_models.encoding import Encoding

from tidemill_serving.identity import prediction_id
from tidemill_serving.request import Values
from tidemill_serving.served import Served, Version


class Checked(NamedTuple):
    """A request that passed its schema."""

    values: Values
    # Empty: derived from pipeline, join key and as_of.
    prediction_id: str


class Answers:
    """The rows of one read of one pipeline at one instant."""

    def __init__(self, served: Served, rows: VectorRows, scores: Mapping[int, Sequence[float]], as_of_us: int) -> None:
        self._served = served
        self._rows = rows
        self._scores = [(one.number, one.role, scores[one.number]) for one in served.versions]
        self._probabilities = scores
        self._as_of_us = as_of_us
        self._served_features: dict[int, _FeatureLog] = {}

    def record(self, row: int, request: Checked) -> records.PredictionRecord:
        """Return one request as it is logged, without what it shares with the others."""
        served = self._served
        join_key = served.schema.join_key(request.values)
        name = request.prediction_id or prediction_id(served.pipeline, join_key, self._as_of_us)
        version = served.answering(name)
        return records.PredictionRecord(
            prediction_id=name,
            join_key=join_key,
            model_version=version.number,
            probability=self._probabilities[version.number][row],
            scores=[
                records.Score(model_version=number, probability=probabilities[row], role=role)
                for number, role, probabilities in self._scores
            ],
            features=self._features(version).row(row),
            request_json=served.schema.to_json(request.values),
        )

    def prediction(self, row: int, record: records.PredictionRecord, *, with_features: bool) -> messages.Prediction:
        """Return one request as it is answered."""
        prediction = messages.Prediction(
            prediction_id=record.prediction_id,
            pipeline=self._served.pipeline,
            model_version=record.model_version,
            probability=record.probability,
            as_of_us=self._as_of_us,
        )
        if with_features:
            self._add_features(row, prediction)
        return prediction

    def _features(self, version: Version) -> "_FeatureLog":
        found = self._served_features.get(version.number)
        if found is None:
            found = self._served_features[version.number] = _FeatureLog(self._rows, version.encoding)
        return found

    def _add_features(self, row: int, prediction: messages.Prediction) -> None:
        # Filled in place: building each message and copying it into the list takes three times as long.
        add = prediction.features.add
        for name, value, status, event_us in zip(
            self._rows.names, self._values[row], self._status[row], self._event_us[row], strict=True
        ):
            used = add()
            used.name = name
            found = used.value
            if isinstance(value, str):
                found.value.string_value = value
            elif value is None or isnan(value):
                found.value.SetInParent()
            else:
                found.value.float64_value = value
            found.status = cast(feature.Status.ValueType, status & STATUS_BITS)
            if event_us:
                found.event_time_us = event_us
            if status > STATUS_BITS:
                found.head_excluded = bool(status & HEAD_EXCLUDED_BIT)
                found.hop_accuracy = bool(status & HOP_ACCURACY_BIT)

    @cached_property
    def _values(self) -> list[tuple[Any, ...]]:
        rows = self._rows
        columns = [
            rows.categories[name] if category else rows.numbers[name].tolist()
            for name, category in zip(rows.names, rows.category, strict=True)
        ]
        return list(zip(*columns, strict=True))

    @cached_property
    def _status(self) -> list[list[int]]:
        return cast(list[list[int]], self._rows.status.tolist())

    @cached_property
    def _event_us(self) -> list[list[int]]:
        return cast(list[list[int]], self._rows.event_us.tolist())


class _FeatureLog:
    """Feature values in the order of one version's schema, ready to be logged row by row."""

    def __init__(self, rows: VectorRows, encoding: Encoding) -> None:
        count = len(rows.status)
        numbers = [rows.numbers[name] for name in encoding.number_names]
        self._numbers: list[list[float]] = np.column_stack(numbers).tolist() if numbers else [[]] * count
        categories = [rows.categories[name] for name in encoding.category_names]
        self._categories = [[value or "" for value in row] for row in zip(*categories, strict=True)] or [[]] * count
        places = {name: place for place, name in enumerate(rows.names)}
        self._statuses = rows.status[:, [places[column.name] for column in encoding.columns]]

    def row(self, row: int) -> records.ServedFeatures:
        """Return one row."""
        return records.ServedFeatures(
            numbers=self._numbers[row], categories=self._categories[row], statuses=self._statuses[row].tobytes()
        )
