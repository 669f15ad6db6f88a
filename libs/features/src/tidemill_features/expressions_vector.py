"""Expressions over whole columns: each operation takes and gives arrays with a mask of nulls."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidemill_features.expressions_tree import (
    BOOL,
    FLOAT64,
    INT64,
    INT64_MIN,
    STRING,
    TIMESTAMP,
    Call,
    FieldRef,
    Literal,
    Node,
)

Array = NDArray[Any]
Mask = NDArray[np.bool_]
# Values, and where the operation itself has no answer (None: everywhere it has one).
Result = tuple[Array, Mask | None]

DTYPES: dict[int, Any] = {
    BOOL: np.bool_,
    INT64: np.int64,
    FLOAT64: np.float64,
    STRING: np.object_,
    TIMESTAMP: np.int64,
}
NEUTRAL: dict[int, bool | int | float | str] = {BOOL: False, INT64: 0, FLOAT64: 0.0, STRING: "", TIMESTAMP: 0}


class Column(NamedTuple):
    """One column: `values` of the type's dtype (object for strings), `nulls` true where there is no value."""

    values: Array
    nulls: Mask


def evaluate(node: Node, columns: Mapping[str, Column], rows: int) -> Column:
    """Return the expression's value in every row; values under a null are neutral (0, False, "")."""
    with np.errstate(all="ignore"):
        values, nulls = _evaluate(node, columns, rows)
    neutral = NEUTRAL[node.type]
    return Column(np.where(nulls, neutral, values).astype(DTYPES[node.type], copy=False), nulls)


def _evaluate(node: Node, columns: Mapping[str, Column], rows: int) -> Column:
    if isinstance(node, FieldRef):
        return load(columns[node.key], node.type)
    if isinstance(node, Literal):
        return _constant(node, rows)
    arguments = [_evaluate(argument, columns, rows) for argument in node.args]
    combine = _COMBINING.get(node.op)
    if combine is not None:
        return combine(arguments)
    values, missing = _strict(node)(*(argument.values for argument in arguments))
    nulls = _any_null(arguments)
    return Column(values, nulls if missing is None else nulls | missing)


def load(column: Column, type_: int) -> Column:
    """Return a column in the form that operations expect: its dtype, nothing but finite floats and strings."""
    values, nulls = np.asarray(column.values), np.asarray(column.nulls, dtype=np.bool_)
    if type_ == FLOAT64:
        values = values.astype(np.float64, copy=False)
        return Column(values, nulls | ~np.isfinite(values))
    if type_ == STRING:
        return Column(np.where(nulls, "", values.astype(np.object_, copy=False)), nulls)
    return Column(values.astype(DTYPES[type_], copy=False), nulls)


def _constant(node: Literal, rows: int) -> Column:
    value = NEUTRAL[node.type] if node.value is None else node.value
    values = np.broadcast_to(np.array(value, dtype=DTYPES[node.type]), (rows,))
    return Column(values, np.broadcast_to(np.array(node.value is None), (rows,)))


def _any_null(arguments: list[Column]) -> Mask:
    nulls = arguments[0].nulls
    for argument in arguments[1:]:
        nulls = nulls | argument.nulls
    return nulls


def _and(arguments: list[Column]) -> Column:
    known_false = np.zeros(len(arguments[0].nulls), dtype=np.bool_)
    for values, nulls in arguments:
        known_false |= ~values & ~nulls
    nulls = _any_null(arguments) & ~known_false
    return Column(~known_false, nulls)


def _or(arguments: list[Column]) -> Column:
    known_true = np.zeros(len(arguments[0].nulls), dtype=np.bool_)
    for values, nulls in arguments:
        known_true |= values & ~nulls
    return Column(known_true, _any_null(arguments) & ~known_true)


def _is_null(arguments: list[Column]) -> Column:
    nulls = arguments[0].nulls
    return Column(nulls, np.zeros(len(nulls), dtype=np.bool_))


def _case(arguments: list[Column]) -> Column:
    values, nulls = arguments[-1]
    # Backwards, so that the first condition that holds has the last word.
    for index in range(len(arguments) - 3, -1, -2):
        condition, result = arguments[index], arguments[index + 1]
        chosen = condition.values & ~condition.nulls
        values, nulls = np.where(chosen, result.values, values), np.where(chosen, result.nulls, nulls)
    return Column(values, nulls)


def _coalesce(arguments: list[Column]) -> Column:
    values, nulls = arguments[0]
    for argument in arguments[1:]:
        values = np.where(nulls, argument.values, values)
        nulls = nulls & argument.nulls
    return Column(values, nulls)


_COMBINING: dict[str, Callable[[list[Column]], Column]] = {
    "and": _and,
    "or": _or,
    "is_null": _is_null,
    "case": _case,
    "coalesce": _coalesce,
}


def _finite(values: Array) -> Result:
    return values, ~np.isfinite(values)


def _int_add(left: Array, right: Array) -> Result:
    total = left + right
    return total, ((left ^ total) & (right ^ total)) < 0


def _int_sub(left: Array, right: Array) -> Result:
    difference = left - right
    return difference, ((left ^ right) & (left ^ difference)) < 0


def _int_mul(left: Array, right: Array) -> Result:
    product = left * right
    divisor = np.where(right == 0, 1, right)
    wrapped = (right != 0) & (product // divisor != left)
    return product, wrapped | ((left == INT64_MIN) & (right == -1)) | ((right == INT64_MIN) & (left == -1))


def _int_div(left: Array, right: Array) -> Result:
    missing = (right == 0) | ((left == INT64_MIN) & (right == -1))
    divisor = np.where(missing, 1, right)
    quotient = left // divisor
    # Floor to truncation: one up where the signs differ and something remains.
    quotient = quotient + ((left % divisor != 0) & ((left < 0) != (divisor < 0)))
    return quotient, missing


def _int_mod(left: Array, right: Array) -> Result:
    divisor = np.where((right == 0) | (right == -1), 1, right)
    return np.fmod(left, divisor), right == 0


def _float_div(left: Array, right: Array) -> Result:
    quotient = left / right
    return quotient, (right == 0) | ~np.isfinite(quotient)


def _float_mod(left: Array, right: Array) -> Result:
    return np.fmod(left, right), right == 0


def _to_int(values: Array) -> Result:
    if values.dtype == np.bool_:
        return values.astype(np.int64), None
    whole = np.trunc(values)
    outside = ~((whole >= -(2.0**63)) & (whole < 2.0**63))
    return np.where(outside, 0.0, whole).astype(np.int64), outside


def _pick(prefer: Callable[[Array, Array], Array]) -> Callable[..., Result]:
    def choose(*arrays: Array) -> Result:
        chosen = arrays[0]
        for candidate in arrays[1:]:
            chosen = np.where(prefer(candidate, chosen), candidate, chosen)
        return chosen, None

    return choose


def _each(function: Callable[..., Any], dtype: Any) -> Callable[..., Result]:
    """Return the vector form of a function on Python strings or integers."""

    def apply(*arrays: Array) -> Result:
        results = [function(*items) for items in zip(*(array.tolist() for array in arrays), strict=True)]
        values = np.empty(len(results), dtype=dtype)
        values[:] = results
        return values, None

    return apply


_US_PER_MINUTE = 60_000_000
_US_PER_HOUR = 60 * _US_PER_MINUTE
_US_PER_DAY = 24 * _US_PER_HOUR


def _month(instants: Array) -> Result:
    months = (instants // _US_PER_DAY).view("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    return months % 12 + 1, None


_ANY: dict[str, Callable[..., Result]] = {
    "eq": lambda left, right: (np.equal(left, right).astype(np.bool_, copy=False), None),
    "ne": lambda left, right: (np.not_equal(left, right).astype(np.bool_, copy=False), None),
    "lt": lambda left, right: (np.less(left, right).astype(np.bool_, copy=False), None),
    "le": lambda left, right: (np.less_equal(left, right).astype(np.bool_, copy=False), None),
    "gt": lambda left, right: (np.greater(left, right).astype(np.bool_, copy=False), None),
    "ge": lambda left, right: (np.greater_equal(left, right).astype(np.bool_, copy=False), None),
    "not": lambda values: (~values, None),
    "least": _pick(np.less),
    "greatest": _pick(np.greater),
    "div": _float_div,
    "intdiv": _int_div,
    "round": lambda values: (np.rint(values), None),
    "floor": lambda values: (np.floor(values), None),
    "ceil": lambda values: (np.ceil(values), None),
    "widen": lambda values: (values.astype(np.float64), None),
    "cast_float": lambda values: (values.astype(np.float64), None),
    "cast_int": _to_int,
    "cast_string": _each(str, np.object_),
    "lower": _each(str.lower, np.object_),
    "upper": _each(str.upper, np.object_),
    "length": _each(len, np.int64),
    "concat": _each(lambda *parts: "".join(parts), np.object_),
    "hour": lambda instants: (instants // _US_PER_HOUR % 24, None),
    "minute": lambda instants: (instants // _US_PER_MINUTE % 60, None),
    # 1970-01-01 was a Thursday, the fourth day after Sunday.
    "dow": lambda instants: ((instants // _US_PER_DAY + 4) % 7, None),
    "month": _month,
}
_INTEGER: dict[str, Callable[..., Result]] = {
    "add": _int_add,
    "sub": _int_sub,
    "mul": _int_mul,
    "mod": _int_mod,
    "neg": lambda values: (-values, values == INT64_MIN),
    "abs": lambda values: (np.abs(values), values == INT64_MIN),
}
_FLOAT: dict[str, Callable[..., Result]] = {
    "add": lambda left, right: _finite(left + right),
    "sub": lambda left, right: _finite(left - right),
    "mul": lambda left, right: _finite(left * right),
    "mod": _float_mod,
    "neg": lambda values: (-values, None),
    "abs": lambda values: (np.abs(values), None),
}


def _strict(node: Call) -> Callable[..., Result]:
    """Return the operation that is NULL wherever an argument is."""
    typed = _INTEGER if node.type == INT64 else _FLOAT
    return typed[node.op] if node.op in typed else _ANY[node.op]
