"""A run's rows: the point-in-time training set, as a table that learners take; pure."""

from collections.abc import Mapping

import numpy as np
from tidemill_features.training_set import TrainingSet
from tidemill_features.vector import VectorRows
from tidemill_models.encoding import Categories, Column, Floats

from tidemill_training.experiment import Table


def table_of(rows: TrainingSet) -> Table:
    """Return all rows with their features."""
    parts = list(rows.parts())
    columns = tuple(Column(name, category) for name, category in zip(rows.names, rows.category, strict=True))
    return Table(columns, _numbers(parts), _categories(parts), rows.as_of_us, rows.labels)


def _numbers(parts: list[VectorRows]) -> Mapping[str, Floats]:
    return {name: np.concatenate([part.numbers[name] for part in parts]) for name in parts[0].numbers}


def _categories(parts: list[VectorRows]) -> Mapping[str, Categories]:
    return {name: [value for part in parts for value in part.categories[name]] for name in parts[0].categories}
