"""From scores and feature columns to what is answered and what is logged; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
from tidemill_contracts.feature.v1 import feature_pb2 as feature
from tidemill_contracts.serving.v1 import records_pb2 as records
from tidemill_contracts.serving.v1 import serving_pb2 as messages
from tidemill_features.finalise import HEAD_EXCLUDED_BIT
from tidemill_features.vector import VectorRows
from tidemill_models.encoding import Encoding

from tidemill_serving.identity import prediction_id
from tidemill_serving.prediction_log import Scored
from tidemill_serving.request import Values
from tidemill_serving.served import Served, Version

_STATUS_BITS = HEAD_EXCLUDED_BIT - 1


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that passed its schema."""

    values: Values
    # Empty: derived from pipeline, join key and as_of.
    prediction_id: str


class Answers:
    """The rows of one read of one pipeline at one instant."""

    def __init__(self, served: Served, rows: VectorRows, scores: Mapping[int, Sequence[float]], as_of_us: int) -> None:
        self._served = served
        self._rows = rows
        self._scores = scores
        self._as_of_us = as_of_us
        self._served_features: dict[int, _FeatureLog] = {}

    def scored(self, row: int, request: Checked) -> Scored:
        """Return one request as it is logged."""
        served = self._served
        join_key = served.schema.join_key(request.values)
        name = request.prediction_id or prediction_id(served.pipeline, join_key, self._as_of_us)
        version = served.answering(name)
        return Scored(
            prediction_id=name,
            join_key=join_key,
            as_of_us=self._as_of_us,
            model_version=version.number,
            probability=self._scores[version.number][row],
            scores=[
                records.Score(model_version=one.number, probability=self._scores[one.number][row], role=one.role)
                for one in served.versions
            ],
            features=self._features(version).row(row),
            request_json=served.schema.to_json(request.values),
        )

    def prediction(self, row: int, scored: Scored, *, with_features: bool) -> messages.Prediction:
        """Return one request as it is answered."""
        return messages.Prediction(
            prediction_id=scored.prediction_id,
            pipeline=self._served.pipeline,
            model_version=scored.model_version,
            probability=scored.probability,
            as_of_us=scored.as_of_us,
            features=self._used(row) if with_features else (),
        )

    def _features(self, version: Version) -> "_FeatureLog":
        found = self._served_features.get(version.number)
        if found is None:
            found = self._served_features[version.number] = _FeatureLog(self._rows, version.encoding)
        return found

    def _used(self, row: int) -> list[messages.UsedFeature]:
        rows = self._rows
        status = rows.status[row].tolist()
        event_us = rows.event_us[row].tolist()
        used = []
        for place, (name, category) in enumerate(zip(rows.names, rows.category, strict=True)):
            value: Any = rows.categories[name][row] if category else rows.numbers[name][row]
            used.append(
                messages.UsedFeature(
                    name=name,
                    value=feature.FeatureValue(
                        value=_scalar(value),
                        status=status[place] & _STATUS_BITS,
                        event_time_us=event_us[place],
                        head_excluded=status[place] >= HEAD_EXCLUDED_BIT,
                    ),
                )
            )
        return used


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


def _scalar(value: Any) -> feature.Scalar:
    if value is None:
        return feature.Scalar()
    if isinstance(value, str):
        return feature.Scalar(string_value=value)
    return feature.Scalar() if isnan(value) else feature.Scalar(float64_value=value)
