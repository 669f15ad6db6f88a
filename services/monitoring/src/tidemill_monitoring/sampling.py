"""Served features as columns, for their histograms."""

from collections.abc import Sequence

import numpy as np
from tidemill_contracts.registry.v1 import records_pb2 as registry
from tidemill_contracts.serving.v1 import records_pb2 as serving

from tidemill_monitoring.profiles import Sample
from tidemill_monitoring.scores import CHAMPION


def sample_of(
    served: Sequence[serving.PredictionRecord], columns: Sequence[registry.FeatureColumn], version: int
) -> Sample:
    """Return what a champion version was fed and what it answered; rows of other shapes or champions are left out."""
    numeric = [column.name for column in columns if not column.category]
    named = [column.name for column in columns if column.category]
    rows = [
        (record.features, probability)
        for record in served
        if len(record.features.numbers) == len(numeric)
        and len(record.features.categories) == len(named)
        and (probability := _champion(record, version)) is not None
    ]
    matrix = np.array([list(features.numbers) for features, _ in rows], np.float64).reshape(len(rows), len(numeric))
    texts = list(zip(*(features.categories for features, _ in rows), strict=True)) or [()] * len(named)
    return Sample(
        {name: matrix[:, place] for place, name in enumerate(numeric)},
        dict(zip(named, texts, strict=True)),
        np.array([probability for _, probability in rows], np.float64),
    )


def _champion(record: serving.PredictionRecord, version: int) -> float | None:
    for score in record.scores:
        if score.role == CHAMPION:
            return score.probability if score.model_version == version else None
    return record.probability if not record.scores and record.model_version == version else None
