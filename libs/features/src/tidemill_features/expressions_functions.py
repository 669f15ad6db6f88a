"""What the functions of the expression language mean."""

from typing import Any

from sqlglot import exp
from tidemill_contracts.instants import parse_us

from tidemill_features.expressions_checker import Checker, Handler, widened
from tidemill_features.expressions_tree import (
    BOOL,
    FLOAT64,
    INT64,
    STRING,
    TIMESTAMP,
    TYPE_NAMES,
    UNTYPED,
    Call,
    Literal,
    Node,
)

_CALENDAR: dict[type[exp.Expr], str] = {
    exp.Hour: "hour",
    exp.Minute: "minute",
    exp.Month: "month",
    exp.DayOfWeek: "dow",
}
_ROUNDING: dict[type[exp.Expr], str] = {exp.Round: "round", exp.Floor: "floor", exp.Ceil: "ceil"}
_STRING_TO_STRING: dict[type[exp.Expr], str] = {exp.Lower: "lower", exp.Upper: "upper"}
_CASTS = {
    "DOUBLE": ("cast_float", FLOAT64, (BOOL, INT64, FLOAT64)),
    "BIGINT": ("cast_int", INT64, (BOOL, INT64, FLOAT64)),
    "VARCHAR": ("cast_string", STRING, (INT64, STRING)),
}
_CAST_NAMES = {"FLOAT": "DOUBLE", "INT": "BIGINT", "TEXT": "VARCHAR"}


def _case(checker: Checker, node: exp.Expr, depth: int) -> Node:
    subject = node.args.get("this")
    value = None if subject is None else checker.check(subject, depth)
    conditions: list[Node] = []
    results: list[Node] = []
    for branch in node.args["ifs"]:
        condition = checker.check(branch.this, depth)
        if value is not None:
            checker.charge(branch, value, 1)
            condition = checker.compared(branch, "eq", value, condition)
        conditions.append(checker.boolean(branch.this, condition))
        results.append(checker.check(branch.args["true"], depth))
    default = node.args.get("default")
    results.append(Literal(None, UNTYPED) if default is None else checker.check(default, depth))
    results = checker.unified(node, results, "return")
    pairs = [item for pair in zip(conditions, results, strict=False) for item in pair]
    return Call("case", (*pairs, results[-1]), results[-1].type, any(item.nullable for item in results))


def _null_if(checker: Checker, node: exp.Expr, depth: int) -> Node:
    value, other = checker.check(node.this, depth), checker.check(node.expression, depth)
    if value.type == UNTYPED:
        raise checker.error(node, "NULLIF of NULL is always NULL")
    checker.charge(node, value, 1)
    condition = checker.compared(node, "eq", value, other)
    return Call("case", (condition, Literal(None, value.type), value), value.type, nullable=True)


def _coalesce(checker: Checker, node: exp.Expr, depth: int) -> Node:
    arguments = checker.unified(node, checker.arguments(node, depth), "return")
    return Call("coalesce", tuple(arguments), arguments[0].type, all(item.nullable for item in arguments))


def _extreme(checker: Checker, node: exp.Expr, depth: int) -> Node:
    arguments = checker.unified(node, checker.arguments(node, depth), "compare")
    if arguments[0].type in (BOOL, UNTYPED):
        raise checker.error(node, f"{node.key.upper()} orders numbers, strings or timestamps")
    return checker.call(node.key, tuple(arguments), arguments[0].type)


def _absolute(checker: Checker, node: exp.Expr, depth: int) -> Node:
    argument = checker.numeric(node.this, checker.check(node.this, depth))
    return checker.call("abs", (argument,), argument.type)


def _rounding(checker: Checker, node: exp.Expr, depth: int) -> Node:
    if node.args.get("decimals") is not None:
        raise checker.error(node, f"{node.key.upper()} takes one argument; scale with * and / to keep digits")
    argument = checker.numeric(node.this, checker.check(node.this, depth))
    return checker.call(_ROUNDING[type(node)], (widened(argument),), FLOAT64)


def _calendar(checker: Checker, node: exp.Expr, depth: int) -> Node:
    return _calendar_part(checker, node, _CALENDAR[type(node)], node.this, depth)


def _calendar_part(checker: Checker, node: exp.Expr, op: str, inner: exp.Expr, depth: int) -> Node:
    argument = checker.check(inner, depth)
    if argument.type != TIMESTAMP:
        raise checker.error(inner, f"{op.upper()} takes a timestamp, not {TYPE_NAMES[argument.type]}")
    return checker.call(op, (argument,), INT64)


def _named(checker: Checker, node: exp.Expr, depth: int) -> Node:
    if node.name.lower() == "dow" and len(node.expressions) == 1:
        return _calendar_part(checker, node, "dow", node.expressions[0], depth)
    raise checker.unsupported(node)


def _string_case(checker: Checker, node: exp.Expr, depth: int) -> Node:
    return checker.call(_STRING_TO_STRING[type(node)], (checker.string(node.this, depth),), STRING)


def _length(checker: Checker, node: exp.Expr, depth: int) -> Node:
    return checker.call("length", (checker.string(node.this, depth),), INT64)


def _concatenation(checker: Checker, node: exp.Expr, depth: int) -> Node:
    items = [node.this, node.expression] if isinstance(node, exp.DPipe) else node.expressions
    return checker.call("concat", tuple(checker.string(item, depth) for item in items), STRING)


def _cast(checker: Checker, node: exp.Expr, depth: int) -> Node:
    target = node.args["to"].this.name
    if target.startswith("TIMESTAMP"):
        return _timestamp(checker, node)
    name = _CAST_NAMES.get(target, target)
    if name not in _CASTS:
        raise checker.error(node, f"cannot cast to {target}; there are DOUBLE, BIGINT and VARCHAR")
    op, type_, sources = _CASTS[name]
    argument = checker.check(node.this, depth)
    if argument.type not in sources:
        raise checker.error(node.this, f"cannot cast {TYPE_NAMES[argument.type]} to {name}")
    return argument if argument.type == type_ else checker.call(op, (argument,), type_)


def _timestamp(checker: Checker, node: exp.Expr) -> Node:
    if not (isinstance(node.this, exp.Literal) and node.this.args["is_string"]):
        raise checker.error(node, "only a string literal becomes a timestamp, as in TIMESTAMP '2013-06-04T00:00:00Z'")
    try:
        return Literal(parse_us(node.this.this), TIMESTAMP)
    except ValueError as error:
        raise checker.error(node, f"not an instant: {error}") from None


FUNCTIONS: dict[type[Any], Handler] = {
    exp.Case: _case,
    exp.Nullif: _null_if,
    exp.Coalesce: _coalesce,
    exp.Least: _extreme,
    exp.Greatest: _extreme,
    exp.Abs: _absolute,
    exp.Length: _length,
    exp.Concat: _concatenation,
    exp.DPipe: _concatenation,
    exp.Cast: _cast,
    exp.Anonymous: _named,
    **dict.fromkeys(_CALENDAR, _calendar),
    **dict.fromkeys(_ROUNDING, _rounding),
    **dict.fromkeys(_STRING_TO_STRING, _string_case),
}
