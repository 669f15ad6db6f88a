"""How an expression's terms are bounded, typed and refused; what each kind of term means is in `expressions_parse`."""

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlglot import exp
from tidemill_contracts.definition.v1 import definition_pb2 as definition

from tidemill_features.expressions_errors import ExpressionError
from tidemill_features.expressions_tree import (
    BOOL,
    FLOAT64,
    INT64,
    STRING,
    TYPE_NAMES,
    UNTYPED,
    Call,
    Literal,
    Node,
    Type,
    walk,
)

MAX_NODES = 512
MAX_DEPTH = 64

# Partial: the operation can give NULL though no argument is NULL (overflow, division by zero, not finite).
_PARTIAL = frozenset({"add", "sub", "mul", "mod", "div", "intdiv", "neg", "abs", "cast_int"})
_NOT_DETERMINISTIC = frozenset(
    {
        "current_date",
        "current_datetime",
        "current_time",
        "current_timestamp",
        "current_user",
        "gen_random_uuid",
        "getdate",
        "localtime",
        "localtimestamp",
        "nextval",
        "now",
        "rand",
        "randn",
        "random",
        "sysdate",
        "today",
        "unix_timestamp",
        "uuid",
    }
)
SUPPORTED = (
    "ABS, CASE, CAST, CEIL, COALESCE, CONCAT, DOW, FLOOR, GREATEST, HOUR, LEAST, LENGTH, LOWER, MINUTE, MONTH, "
    "NULLIF, ROUND, UPPER"
)


Handler = Callable[["Checker", Any, int], Node]
Schema = Mapping[str, definition.Field]


class Scope(NamedTuple):
    """What an expression may read.

    `schema`: the fields of an event, which messages call `owner`; `views`: the features of each view that is looked up,
    by the name under which it is.
    """

    schema: Schema
    owner: str = ""
    views: Mapping[str, Schema] = MappingProxyType({})


class Checker:
    """Turns sqlglot's tree into ours, checking names and types on the way."""

    def __init__(self, text: str, scope: Scope, handlers: Mapping[type[Any], Handler]) -> None:
        self.text = text
        self.scope = scope
        self.handlers = handlers
        self.nodes = 0

    def check(self, node: exp.Expr, depth: int) -> Node:
        self.nodes += 1
        self.bound(node, depth)
        handler = self.handlers.get(type(node))
        if handler is None:
            raise self.unsupported(node)
        return handler(self, node, depth + 1)

    def charge(self, source: exp.Expr, node: Node, copies: int) -> None:
        """Count the copies of a term that a shorthand stands for, so that nested ones cannot multiply without end."""
        self.nodes += copies * sum(1 for _ in walk(node))
        self.bound(source, 0)

    def bound(self, node: exp.Expr, depth: int) -> None:
        if self.nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self.error(node, f"the expression is too large: at most {MAX_NODES} terms, {MAX_DEPTH} levels deep")

    def error(self, node: exp.Expr, message: str) -> ExpressionError:
        offsets = [item.meta["start"] for item in node.walk() if "start" in item.meta]
        return ExpressionError(self.text, message, min(offsets, default=None))

    def unsupported(self, node: exp.Expr) -> ExpressionError:
        name = node.name if isinstance(node, exp.Anonymous) else node.key
        if isinstance(node, exp.Func) and not isinstance(node, exp.Anonymous):
            name = node.sql_name()
        if name.lower() in _NOT_DETERMINISTIC:
            return self.error(node, f"{name.upper()} is not deterministic: a replay would give other values")
        if isinstance(node, exp.AggFunc):
            return self.error(node, f"{name.upper()} is an aggregate; aggregate with tm.count, tm.sum, tm.mean, …")
        if isinstance(node, exp.Query | exp.Subquery | exp.Window):
            return self.error(node, "queries and window functions are not scalar expressions")
        if isinstance(node, exp.Func):
            close = difflib.get_close_matches(name.upper(), SUPPORTED.split(", "), n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are: {SUPPORTED}"
            return self.error(node, f"no function {name.upper()}; {hint}")
        return self.error(node, f"{type(node).__name__} is not part of the expression language")

    def string(self, node: exp.Expr, depth: int) -> Node:
        argument = self.check(node, depth)
        if argument.type == STRING:
            return argument
        hint = "; write CAST(… AS VARCHAR)" if argument.type == INT64 else ""
        raise self.error(node, f"a string is wanted, not {TYPE_NAMES[argument.type]}{hint}")

    def numeric(self, source: exp.Expr, node: Node) -> Node:
        if node.type in (INT64, FLOAT64):
            return node
        hint = "; write CAST(… AS BIGINT)" if node.type == BOOL else ""
        raise self.error(source, f"a number is wanted, not {TYPE_NAMES[node.type]}{hint}")

    def boolean(self, source: exp.Expr, node: Node) -> Node:
        if node.type == UNTYPED:
            return Literal(None, BOOL)
        if node.type != BOOL:
            raise self.error(source, f"a condition is wanted, not {TYPE_NAMES[node.type]}")
        return node

    def unified_numbers(self, node: exp.Expr, depth: int) -> tuple[Node, Node]:
        left = self.numeric(node.this, self.check(node.this, depth))
        right = self.numeric(node.expression, self.check(node.expression, depth))
        if left.type == right.type:
            return left, right
        return widened(left), widened(right)

    def unified(self, source: exp.Expr, nodes: list[Node], verb: str) -> list[Node]:
        """Return the nodes with one type: NULL takes any, int64 widens to float64."""
        types = {node.type for node in nodes} - {UNTYPED}
        if types == {INT64, FLOAT64}:
            nodes = [node if node.type == UNTYPED else widened(node) for node in nodes]
            types = {FLOAT64}
        if len(types) > 1:
            names = " and ".join(sorted(TYPE_NAMES[item] for item in types))
            raise self.error(source, f"cannot {verb} {names} together")
        one = next(iter(types), UNTYPED)
        return [Literal(None, one) if isinstance(node, Literal) and node.value is None else node for node in nodes]

    def compared(self, source: exp.Expr, op: str, left: Node, right: Node) -> Node:
        if UNTYPED in (left.type, right.type):
            raise self.error(source, "a comparison with NULL is always NULL; write IS NULL")
        left, right = self.unified(source, [left, right], "compare")
        if left.type == BOOL and op not in ("eq", "ne"):
            raise self.error(source, "booleans have no order; compare them with = or <>")
        return self.call(op, (left, right), BOOL)

    def call(self, op: str, arguments: tuple[Node, ...], type_: Type) -> Call:
        return Call(op, arguments, type_, op in _PARTIAL or any(item.nullable for item in arguments))

    def arguments(self, node: exp.Expr, depth: int) -> list[Node]:
        return [self.check(item, depth) for item in (node.this, *node.expressions)]


def widened(node: Node) -> Node:
    """Return an int64 node as float64; a literal is converted at once."""
    if node.type != INT64:
        return node
    if isinstance(node, Literal) and isinstance(node.value, int):
        return Literal(float(node.value), FLOAT64)
    return Call("widen", (node,), FLOAT64, node.nullable)
