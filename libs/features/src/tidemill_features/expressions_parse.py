"""From SQL text to a typed tree: parsed once with sqlglot, checked against a schema."""

import difflib
import math
import re
from collections.abc import Collection
from typing import Any

from sqlglot import Dialect, exp
from sqlglot.errors import SqlglotError
from tidemill_contracts.bounds import MAX_TEXT_CHARS

from tidemill_features.expressions_checker import MAX_DEPTH, Checker, Handler, Scope, widened
from tidemill_features.expressions_errors import ExpressionError
from tidemill_features.expressions_functions import FUNCTIONS
from tidemill_features.expressions_tree import (
    BOOL,
    FLOAT64,
    INT64,
    INT64_MAX,
    INT64_MIN,
    STRING,
    TYPE_NAMES,
    UNTYPED,
    Call,
    FieldRef,
    Literal,
    Node,
    depth_of,
    render,
)

# Brackets and CASEs within each other; sqlglot spends about twenty Python frames on each.
MAX_NESTING = 16

_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*\"""")
_NESTING = re.compile(r"[()]|\b(?:case|end)\b", re.IGNORECASE)
_DIALECT = Dialect.get_or_raise(None)

_ARITHMETIC: dict[type[exp.Expr], str] = {exp.Add: "add", exp.Sub: "sub", exp.Mul: "mul", exp.Mod: "mod"}
_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "eq",
    exp.NEQ: "ne",
    exp.LT: "lt",
    exp.LTE: "le",
    exp.GT: "gt",
    exp.GTE: "ge",
}


def parse(text: str, scope: Scope) -> Node:
    """Return the typed tree of `text`, an SQL scalar expression over what is in scope.

    Raises `ExpressionError`, which points into the text.
    """
    if len(text) > MAX_TEXT_CHARS:
        raise ExpressionError(text, f"the expression has {len(text)} characters; at most {MAX_TEXT_CHARS} are allowed")
    if nesting_of(text) > MAX_NESTING:
        raise ExpressionError(text, f"the expression is nested too deeply: at most {MAX_NESTING} brackets and CASEs")
    try:
        found = _DIALECT.parse_into(exp.Condition, text)
    except SqlglotError as error:
        raise _syntax_error(text, error) from None
    root = found[0] if len(found) == 1 else None
    if root is None:
        raise ExpressionError(text, "exactly one expression is wanted")
    node = Checker(text, scope, _HANDLERS).check(root, 0)
    if node.type == UNTYPED:
        raise ExpressionError(text, "the expression is always NULL")
    # Measured on the tree, whose own text every service parses again.
    canonical = render(node)
    if depth_of(node) > MAX_DEPTH or len(canonical) > MAX_TEXT_CHARS or nesting_of(canonical) > MAX_NESTING:
        raise ExpressionError(text, f"the expression is too large when written out: {canonical[:80]}…")
    return node


def nesting_of(text: str) -> int:
    """Return how deep brackets and CASEs stand within each other."""
    depth = deepest = 0
    for token in _NESTING.findall(_QUOTED.sub("", text)):
        depth += 1 if token.lower() in ("(", "case") else -1
        deepest = max(deepest, depth)
    return deepest


def _syntax_error(text: str, error: SqlglotError) -> ExpressionError:
    details = getattr(error, "errors", None)
    if not details:
        return ExpressionError(text, "not an SQL expression: a quote or bracket is not closed")
    first = details[0]
    lines = text.splitlines(keepends=True) or [""]
    line = min(int(first.get("line") or 1), len(lines))
    end = sum(map(len, lines[: line - 1])) + int(first.get("col") or 1)
    token = str(first.get("highlight") or " ")
    description = str(first.get("description", ""))
    if description.startswith("Required keyword"):
        what = f"something is missing after {token!r}"
    elif description.startswith("Expecting"):
        what = f"{description[10:]!r} is missing after {token!r}"
    else:
        what = f"{token!r} is not expected here"
    return ExpressionError(text, f"not an SQL expression: {what}", max(0, end - len(token)))


def _inside(checker: Checker, node: exp.Expr, depth: int) -> Node:
    """Take away brackets."""
    checker.nodes -= 1
    return checker.check(node.this, depth - 1)


def _field(checker: Checker, node: exp.Column, _depth: int) -> Node:
    if node.args.get("table") is not None:
        return _feature(checker, node)
    schema, owner, views = checker.scope
    found = schema.get(node.name)
    if found is not None:
        return FieldRef(found.name, found.type, found.nullable)
    hint = _nearest(node.name, schema, "it has")
    alike = [
        render(FieldRef(node.name, UNTYPED, True, source)) for source in sorted(views) if node.name in views[source]
    ]
    if alike:
        hint = f"; of what is looked up it is {' or '.join(alike)}"
    elif node.this.args.get("quoted") and not hint.endswith("?"):
        hint = "; a string takes single quotes"
    where = f" in {owner}" if owner else ""
    raise checker.error(node, f"no field {node.name!r}{where}{hint}")


def _feature(checker: Checker, node: exp.Column) -> Node:
    views = checker.scope.views
    if not views or node.args.get("db") is not None:
        first, *others = (part.name for part in node.parts)
        if ".".join(others) in views.get(first, ()):
            meant = render(FieldRef(".".join(others), UNTYPED, True, first))
            raise checker.error(node, f"a name with a dot is quoted: write {meant}")
        raise checker.error(node, f"write the field's bare name, not {node.sql()!r}")
    source = node.text("table")
    if source not in views:
        raise checker.error(node, f"no view is looked up as {source!r}{_nearest(source, views, 'looked up are')}")
    found = views[source].get(node.name)
    if found is None:
        raise checker.error(
            node, f"no feature {node.name!r} in {source!r}{_nearest(node.name, views[source], 'it has')}"
        )
    feature = FieldRef(found.name, found.type, found.nullable, source)
    if feature.key in checker.scope.schema:
        raise checker.error(node, f"{feature.key!r} is the name of a field, too; look the view up under another name")
    return feature


def _nearest(name: str, known: Collection[str], otherwise: str) -> str:
    folded = {one.lower(): one for one in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else f"; {otherwise} {', '.join(sorted(known))}"


def _literal(checker: Checker, node: exp.Expr, _depth: int) -> Node:
    if node.args["is_string"]:
        return Literal(node.this, STRING)
    return _number(checker, node, node.this)


def _number(checker: Checker, node: exp.Expr, digits: str) -> Node:
    try:
        value: int | float = int(digits)
    except ValueError:
        value = float(digits)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise checker.error(node, f"{digits} is beyond float64")
        return Literal(value, FLOAT64)
    if not INT64_MIN <= value <= INT64_MAX:
        raise checker.error(node, f"{digits} is beyond int64")
    return Literal(value, INT64)


def _negation(checker: Checker, node: exp.Expr, depth: int) -> Node:
    inner = node.this
    if isinstance(inner, exp.Literal) and not inner.args["is_string"]:
        return _number(checker, inner, f"-{inner.this}")
    argument = checker.numeric(inner, checker.check(inner, depth))
    if isinstance(argument, Literal) and isinstance(argument.value, int | float) and argument.value != INT64_MIN:
        return Literal(-argument.value, argument.type)
    return checker.call("neg", (argument,), argument.type)


def _arithmetic(checker: Checker, node: exp.Expr, depth: int) -> Node:
    left, right = checker.unified_numbers(node, depth)
    return checker.call(_ARITHMETIC[type(node)], (left, right), left.type)


def _division(checker: Checker, node: exp.Expr, depth: int) -> Node:
    left = checker.numeric(node.this, checker.check(node.this, depth))
    right = checker.numeric(node.expression, checker.check(node.expression, depth))
    return checker.call("div", (widened(left), widened(right)), FLOAT64)


def _integer_division(checker: Checker, node: exp.Expr, depth: int) -> Node:
    left, right = checker.unified_numbers(node, depth)
    if left.type != INT64:
        raise checker.error(node, f"DIV divides integers, not {TYPE_NAMES[left.type]}; use /")
    return checker.call("intdiv", (left, right), INT64)


def _comparison(checker: Checker, node: exp.Expr, depth: int) -> Node:
    left, right = checker.check(node.this, depth), checker.check(node.expression, depth)
    return checker.compared(node, _COMPARISONS[type(node)], left, right)


def _between(checker: Checker, node: exp.Expr, depth: int) -> Node:
    value = checker.check(node.this, depth)
    checker.charge(node, value, 1)
    low, high = checker.check(node.args["low"], depth), checker.check(node.args["high"], depth)
    above = checker.compared(node, "ge", value, low)
    return checker.call("and", (above, checker.compared(node, "le", value, high)), BOOL)


def _membership(checker: Checker, node: exp.Expr, depth: int) -> Node:
    options = node.expressions
    if not options:
        raise checker.error(node, "IN takes a list of values, as in x IN ('a', 'b')")
    value = checker.check(node.this, depth)
    checker.charge(node, value, len(options) - 1)
    matches = [checker.compared(item, "eq", value, checker.check(item, depth)) for item in options]
    return matches[0] if len(matches) == 1 else checker.call("or", tuple(matches), BOOL)


def _logical(checker: Checker, node: exp.Expr, depth: int) -> Node:
    op = "and" if isinstance(node, exp.And) else "or"
    parts: list[Node] = []
    # Walked by hand: a long chain nests to the left, one level per term.
    spine = [node]
    terms: list[exp.Expr] = []
    while spine:
        item = spine.pop()
        if type(item) is type(node):
            spine += [item.expression, item.this]
        elif isinstance(item, exp.Paren) and type(item.this) is type(node):
            spine.append(item.this)
        else:
            terms.append(item)
    for term in terms:
        part = checker.boolean(term, checker.check(term, depth))
        parts += part.args if isinstance(part, Call) and part.op == op else (part,)
    return checker.call(op, tuple(parts), BOOL)


def _inversion(checker: Checker, node: exp.Expr, depth: int) -> Node:
    return checker.call("not", (checker.boolean(node.this, checker.check(node.this, depth)),), BOOL)


def _null_test(checker: Checker, node: exp.Expr, depth: int) -> Node:
    if not isinstance(node.expression, exp.Null):
        raise checker.error(node, "IS tests for NULL only; write x = TRUE")
    return Call("is_null", (checker.check(node.this, depth),), BOOL, nullable=False)


_HANDLERS: dict[type[Any], Handler] = {
    exp.Column: _field,
    exp.Literal: _literal,
    exp.Boolean: lambda _checker, node, _depth: Literal(bool(node.this), BOOL),
    exp.Null: lambda _checker, _node, _depth: Literal(None, UNTYPED),
    exp.Paren: _inside,
    exp.Neg: _negation,
    exp.Div: _division,
    exp.IntDiv: _integer_division,
    exp.And: _logical,
    exp.Or: _logical,
    exp.Not: _inversion,
    exp.Is: _null_test,
    exp.Between: _between,
    exp.In: _membership,
    **dict.fromkeys(_ARITHMETIC, _arithmetic),
    **dict.fromkeys(_COMPARISONS, _comparison),
    **FUNCTIONS,
}
