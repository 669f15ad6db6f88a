"""A view's expressions over a batch: what its partials accumulate, on the live and on the offline path."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.expressions import Column, Expression
from tidemill_features.partials import Input
from tidemill_features.plan import ViewPlan

Bools = NDArray[np.bool_]


class Values(NamedTuple):
    """One input: `values` int64, float64 or object (None: only events are counted); `present` None means every row."""

    values: Any
    present: Bools | None

    def take(self, rows: Any) -> "Values":
        """Return the values of some rows."""
        values = None if self.values is None else self.values[rows]
        return Values(values, None if self.present is None else self.present[rows])


def evaluate_inputs(plan: ViewPlan, columns: Mapping[str, Column], rows: int) -> list[Values]:
    """Return every input of a view, in the plan's order, over `rows` events."""
    known: dict[str, Column] = {}
    return [_evaluate(part, columns, rows, known) for part in plan.inputs]


def _evaluate(part: Input, columns: Mapping[str, Column], rows: int, known: dict[str, Column]) -> Values:
    values: Any = None
    absent: Any = None
    if part.expression is not None:
        column = _once(part.expression, columns, rows, known)
        values, absent = _accumulable(column, part.expression), column.nulls
    if part.where is not None:
        chosen = _once(part.where, columns, rows, known)
        refused = ~chosen.values | chosen.nulls
        absent = refused if absent is None else absent | refused
    for bound, outside in ((part.low, np.less), (part.high, np.greater_equal)):
        if bound is not None:
            beyond = outside(values, bound)
            absent = beyond if absent is None else absent | beyond
    return Values(values, None if absent is None or not absent.any() else ~absent)


def _once(expression: Expression, columns: Mapping[str, Column], rows: int, known: dict[str, Column]) -> Column:
    """Return an expression's values, evaluated once for all inputs that share it."""
    text = expression.canonical
    if text not in known:
        known[text] = expression.evaluate(columns, rows)
    return known[text]


def _accumulable(column: Column, expression: Expression) -> Any:
    """Return the values as a partial takes them: bools as 0 and 1, and no negative zero, whose order would show."""
    if expression.type == definition.FIELD_TYPE_FLOAT64:
        return column.values + 0.0
    if expression.type == definition.FIELD_TYPE_BOOL:
        return column.values.astype(np.int64)
    return column.values
