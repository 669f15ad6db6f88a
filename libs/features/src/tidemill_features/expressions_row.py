"""Expressions over one row at a time: closures on Python values, with the results of the column form."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from tidemill_features.expressions_tree import (
    FLOAT64,
    INT64,
    INT64_MAX,
    INT64_MIN,
    FieldRef,
    Literal,
    Node,
    Scalar,
)

Row = Mapping[str, Any]
RowFunction = Callable[[Row], Any]


def build(node: Node) -> RowFunction:
    """Return a function from a row (key → value, None or absent for NULL) to the expression's value or None."""
    if isinstance(node, FieldRef):
        return _field(node)
    if isinstance(node, Literal):
        value: Scalar = node.value
        return lambda _row: value
    arguments = [build(argument) for argument in node.args]
    combine = _COMBINING.get(node.op)
    if combine is not None:
        return combine(arguments)
    typed = _INTEGER if node.type == INT64 else _FLOAT
    function = typed[node.op] if node.op in typed else _ANY[node.op]
    if len(arguments) == 1:
        return _unary(function, arguments[0])
    if len(arguments) == 2:
        return _binary(function, arguments[0], arguments[1])
    return _variadic(function, arguments)


def _field(node: FieldRef) -> RowFunction:
    name = node.key
    if node.type != FLOAT64:
        return lambda row: row.get(name)

    def number(row: Row) -> float | None:
        value = row.get(name)
        return None if value is None else _finite(float(value))

    return number


def _unary(function: Callable[..., Any], argument: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        value = argument(row)
        return None if value is None else function(value)

    return evaluate


def _binary(function: Callable[..., Any], first: RowFunction, second: RowFunction) -> RowFunction:
    def evaluate(row: Row) -> Any:
        left, right = first(row), second(row)
        return None if left is None or right is None else function(left, right)

    return evaluate


def _variadic(function: Callable[..., Any], arguments: list[RowFunction]) -> RowFunction:
    def evaluate(row: Row) -> Any:
        values = [argument(row) for argument in arguments]
        return None if None in values else function(*values)

    return evaluate


def _and(arguments: list[RowFunction]) -> RowFunction:
    def evaluate(row: Row) -> bool | None:
        answer: bool | None = True
        for argument in arguments:
            value = argument(row)
            if value is None:
                answer = None
            elif not value:
                return False
        return answer

    return evaluate


def _or(arguments: list[RowFunction]) -> RowFunction:
    def evaluate(row: Row) -> bool | None:
        answer: bool | None = False
        for argument in arguments:
            value = argument(row)
            if value is None:
                answer = None
            elif value:
                return True
        return answer

    return evaluate


def _is_null(arguments: list[RowFunction]) -> RowFunction:
    argument = arguments[0]
    return lambda row: argument(row) is None


def _case(arguments: list[RowFunction]) -> RowFunction:
    pairs = list(zip(arguments[:-1:2], arguments[1:-1:2], strict=True))
    default = arguments[-1]

    def evaluate(row: Row) -> Any:
        for condition, result in pairs:
            if condition(row):
                return result(row)
        return default(row)

    return evaluate


def _coalesce(arguments: list[RowFunction]) -> RowFunction:
    def evaluate(row: Row) -> Any:
        for argument in arguments:
            value = argument(row)
            if value is not None:
                return value
        return None

    return evaluate


_COMBINING: dict[str, Callable[[list[RowFunction]], RowFunction]] = {
    "and": _and,
    "or": _or,
    "is_null": _is_null,
    "case": _case,
    "coalesce": _coalesce,
}


def _in_range(value: int) -> int | None:
    return value if INT64_MIN <= value <= INT64_MAX else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _int_div(left: int, right: int) -> int | None:
    if right == 0:
        return None
    quotient = abs(left) // abs(right)
    return _in_range(quotient if (left < 0) == (right < 0) else -quotient)


def _int_mod(left: int, right: int) -> int | None:
    if right == 0:
        return None
    rest = abs(left) % abs(right)
    return -rest if left < 0 else rest


def _float_div(left: float, right: float) -> float | None:
    return None if right == 0 else _finite(left / right)


def _to_int(value: bool | float) -> int | None:
    return _in_range(int(value))


def _least(*values: Any) -> Any:
    chosen = values[0]
    for candidate in values[1:]:
        if candidate < chosen:
            chosen = candidate
    return chosen


def _greatest(*values: Any) -> Any:
    chosen = values[0]
    for candidate in values[1:]:
        if candidate > chosen:
            chosen = candidate
    return chosen


_US_PER_MINUTE = 60_000_000
_US_PER_HOUR = 60 * _US_PER_MINUTE
_US_PER_DAY = 24 * _US_PER_HOUR


def _month(instant_us: int) -> int:
    """Return the month of an instant in any year, which `datetime` cannot.

    Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    """
    day_of_era = (instant_us // _US_PER_DAY + 719_468) % 146_097
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    return shifted + 3 if shifted < 10 else shifted - 9


_ANY: dict[str, Callable[..., Any]] = {
    "eq": lambda left, right: left == right,
    "ne": lambda left, right: left != right,
    "lt": lambda left, right: left < right,
    "le": lambda left, right: left <= right,
    "gt": lambda left, right: left > right,
    "ge": lambda left, right: left >= right,
    "not": lambda value: not value,
    "least": _least,
    "greatest": _greatest,
    "div": _float_div,
    "intdiv": _int_div,
    "round": lambda value: math.copysign(round(value), value),
    "floor": lambda value: math.copysign(math.floor(value), value),
    "ceil": lambda value: math.copysign(math.ceil(value), value),
    "widen": float,
    "cast_float": float,
    "cast_int": _to_int,
    "cast_string": str,
    "lower": str.lower,
    "upper": str.upper,
    "length": len,
    "concat": lambda *parts: "".join(parts),
    "hour": lambda instant_us: instant_us // _US_PER_HOUR % 24,
    "minute": lambda instant_us: instant_us // _US_PER_MINUTE % 60,
    "dow": lambda instant_us: (instant_us // _US_PER_DAY + 4) % 7,
    "month": _month,
}
_INTEGER: dict[str, Callable[..., int | None]] = {
    "add": lambda left, right: _in_range(left + right),
    "sub": lambda left, right: _in_range(left - right),
    "mul": lambda left, right: _in_range(left * right),
    "mod": _int_mod,
    "neg": lambda value: _in_range(-value),
    "abs": lambda value: _in_range(abs(value)),
}
_FLOAT: dict[str, Callable[..., float | None]] = {
    "add": lambda left, right: _finite(left + right),
    "sub": lambda left, right: _finite(left - right),
    "mul": lambda left, right: _finite(left * right),
    "mod": lambda left, right: None if right == 0 else math.fmod(left, right),
    "neg": lambda value: -value,
    "abs": abs,
}
