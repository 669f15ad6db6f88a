"""SQL scalar expressions: parsed once, checked against a schema, evaluated by column or by row with equal results.

Types are bool, int64, float64, string and timestamp (microseconds since the epoch, UTC). What every form agrees on:

- NULL propagates; AND, OR and NOT follow three-valued logic; CASE takes a branch only where its condition is true;
  CONCAT, LEAST and GREATEST are NULL when any argument is.
- Integers and floats mix by widening to float64. `/` always gives float64; `DIV` and `%` truncate towards zero.
- Division by zero, an int64 overflow and a float that is not finite, field or result, are NULL.
- ROUND takes ties to the even number. HOUR, MINUTE, MONTH and DOW read UTC; DOW counts from Sunday = 0.
- Strings compare by code point.

Functions whose last bit depends on the platform (EXP, LN, POWER) are left out: live and offline would differ.

>>> schema = schema_of([definition.Field(name="delay", type=definition.FIELD_TYPE_FLOAT64, nullable=True)])
>>> expression = compile_expression("delay>15", schema)
>>> expression.canonical, expression.evaluate_row({"delay": 20.0}), expression.evaluate_row({"delay": None})
('delay > 15.0', True, None)
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.expressions_checker import Schema, Scope
from tidemill_features.expressions_errors import ExpressionError
from tidemill_features.expressions_parse import parse
from tidemill_features.expressions_row import build
from tidemill_features.expressions_tree import TYPE_NAMES, FieldRef, Node, Scalar, Type, render, walk
from tidemill_features.expressions_vector import Column, evaluate, load

__all__ = [
    "TYPE_NAMES",
    "Column",
    "Expression",
    "ExpressionError",
    "Scalar",
    "Schema",
    "compile_expression",
    "load",
    "schema_of",
]


class Expression:
    """A checked expression; immutable and free of state, so that threads may share it."""

    def __init__(self, text: str, tree: Node) -> None:
        self.text = text
        self._tree = tree
        self._by_row = build(tree)
        # The one text of every way to write this expression: what is hashed.
        self.canonical = render(tree)

    @property
    def type(self) -> Type:
        return self._tree.type

    @property
    def nullable(self) -> bool:
        """Whether the value can be NULL: by a field, or by arithmetic that has no answer."""
        return self._tree.nullable

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields that it reads, sorted."""
        return tuple(sorted({node.name for node in walk(self._tree) if isinstance(node, FieldRef) and not node.source}))

    @property
    def features(self) -> tuple[str, ...]:
        """The features of views that it reads, as "source.feature", sorted."""
        return tuple(sorted({node.key for node in walk(self._tree) if isinstance(node, FieldRef) and node.source}))

    def evaluate(self, columns: Mapping[str, Column], rows: int | None = None) -> Column:
        """Return the value of every row; `columns` by field, and by "source.feature" what is read of views.

        `rows` is needed where `columns` is empty. Raises `KeyError` for a column that is not there.
        """
        if rows is None:
            rows = len(next(iter(columns.values())).nulls)
        return evaluate(self._tree, columns, rows)

    def evaluate_row(self, row: Mapping[str, Any]) -> Scalar:
        """Return the value of one row; a field that is absent or None is NULL, a timestamp is in microseconds."""
        value: Scalar = self._by_row(row)
        return value

    def __repr__(self) -> str:
        return f"Expression({self.canonical!r})"


def schema_of(fields: Iterable[definition.Field]) -> dict[str, definition.Field]:
    """Return fields by name, as of `Stream.fields`."""
    return {field.name: field for field in fields}


def compile_expression(
    text: str, schema: Schema, *, owner: str = "", views: Mapping[str, Schema] = MappingProxyType({})
) -> Expression:
    """Return `text` ready to be evaluated over rows of `schema`, whose name in messages is `owner`.

    `views`: features that it may read beside, written "source.feature", by the source under which a view is looked up.

    Raises `ExpressionError`, which points into the text: a syntax error, an unknown field, a type error, a function
    that is not deterministic.
    """
    return Expression(text, parse(text, Scope(schema, owner, views)))
