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


def champion_of(served: Sequence[serving.PredictionRecord]) -> int:
    """Return the version that answered the newest of these requests as champion; 0 where none did."""
    answered = [(record.as_of_us, found[0]) for record in served if (found := _answer(record)) is not None]
    return max(answered, default=(0, 0))[1]


def _champion(record: serving.PredictionRecord, version: int) -> float | None:
    found = _answer(record)
    return found[1] if found is not None and found[0] == version else None


def _answer(record: serving.PredictionRecord) -> tuple[int, float] | None:
    """Return the champion's version and probability."""
    for score in record.scores:
        if score.role == CHAMPION:
            return score.model_version, score.probability
    return None if record.scores else (record.model_version, record.probability)
